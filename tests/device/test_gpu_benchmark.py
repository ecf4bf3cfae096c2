"""`benchmarks/gpu.py` at toy size on the CPU: the code that would run on a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(out: Path, *more: str) -> dict:
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--device", "cpu", "--out", out, *more], capture_output=True, text=True, check=True
    )
    results = json.loads(out.read_text(encoding="utf-8"))
    printed = json.loads("[" + done.stdout.replace("}\n{", "},{") + "]")
    assert {name: part for section in printed for name, part in section.items()}.items() <= results.items()
    return results


def test_every_section_runs_at_toy_size(tmp_path: Path) -> None:
    results = run(tmp_path / "gpu.json")
    assert results["toy"]
    for name in ("card", "agreement", "training", "chi", "parentheses"):
        assert "error" not in results[name], results[name]
    assert results["card"]["float32 flop/s"] > 1e6
    agreement = results["agreement"]
    assert agreement["losses agree to 1e-5"]
    for name in ("χ, pathwise", "χ, covariance"):
        # on the CPU both sides are the same chains; with Philox in place of numpy they are others of the same law
        assert agreement[name]["root mean square of the difference in its standard errors"] == 0
        assert agreement[name]["same random numbers: largest difference in standard errors"] > 0.1
    precision = agreement["precision"]
    assert precision["float32"]["largest"] < 0.1 < precision["bfloat16"]["largest"]
    # Rates of a step are differences of two times. At toy size on a busy core they may come out negative, and are None
    # then: so the tests look at what was counted, and not at how fast it went.
    assert "MFU" in results["training"]["float32"]
    part = results["chi"]["tiny l0h0"]
    assert part["floor of a step, ms"] > 0
    assert part["ms a step of all chains"] is None or part["ms a step of all chains"] > 0
    assert min(part["flop of a step"], part["bytes of a step"]) > 0
    assert -1 <= part["reliability"] <= 1  # a number: few chains are not reliable
    assert results["parentheses"]["2 replicas"]["models of 125,000 steps an hour"] > 0


def test_a_section_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    import gpu

    def broken(bench: gpu.Bench) -> dict:
        raise MemoryError("out of memory, say")

    monkeypatch.setitem(gpu.SECTIONS, "card", broken)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--only", "card", "parentheses", "--out",
                                      str(tmp_path / "gpu.json")])  # fmt: skip
    gpu.main()
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert "out of memory" in results["card"]["error"]
    assert results["parentheses"]["2 replicas"]["ms a step"] > 0
