"""Requests of the command line and of `measure`, `invert` and `Task` that would do something else than they say."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import patterning as pt
from patterning.core.errors import PatterningError
from patterning.core.task import Task
from tests.faults.common import KERNEL, X, Y, classify, linear_task, seeded

FILE = """
import os
import numpy as np

os.chdir("{elsewhere}")


def train(weights, seed):
    return float(weights.rho[0]) + 0.01 * float(np.random.default_rng(seed).standard_normal())


measures = {{"first": lambda result: result}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine.py").write_text(FILE.format(elsewhere=tmp_path / "elsewhere"))
    for name, first in (("w", 1.5), ("v", 0.5)):
        pt.Weights.of_rows([first, 2 - first, 1.2, 0.8, 0.9, 1.1]).to_parquet(tmp_path / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verify(in_process, place: Path, *more: str, seeds: str = "0-2", out: str = "proof"):
    os.chdir(place)  # the user's file has gone elsewhere
    file, arm = place / "mine.py", f"a={place / 'w.parquet'}"
    return in_process(
        "verify", f"{file}:train", "--measures", f"{file}:measures", "--arm", arm, "--seeds", seeds, "--out", out,
        "--workers", "1", *more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "seeds", "sentence"),
    [
        (("--arm", "a=v.parquet"), "0-2", "--arm names 'a' twice: give each set of weights a name"),
        ((), "0-99999999999999", "--seeds 0-99999999999999 names 100000000000000 seeds"),
        ((), "5-2", "--seeds 5-2 names 0 seeds"),
    ],
)
def test_a_name_that_is_given_twice_or_a_slip_in_the_seeds_is_refused(place, in_process, more, seeds, sentence) -> None:
    more = [str(part).replace("=v", f"={place / 'v'}") for part in more]
    found = verify(in_process, place, *more, seeds=seeds)
    assert found.returncode == 2
    assert sentence in " ".join(found.stderr.split())


def test_a_proof_lies_where_it_was_asked_for_and_an_edited_one_is_not_shown(place: Path, in_process) -> None:
    assert verify(in_process, place).returncode == 0
    results = place / "proof" / "results.json"
    assert not list((place / "elsewhere").iterdir())
    assert in_process("report", str(place / "proof")).returncode == 0
    whole = json.loads(results.read_text())
    results.write_text(json.dumps(whole))  # another layout, the same numbers
    assert in_process("report", str(place / "proof")).returncode == 0
    edited = whole | {"findings": ["a: steers: everything"]}
    for text in (json.dumps(edited), '{"cells": []}'):
        results.write_text(text)
        found = in_process("report", str(place / "proof"))
        assert found.returncode == 2
        assert "results.json is damaged: it is not what was written" in " ".join(found.stderr.split())
        assert "steers" not in found.stdout
    assert verify(in_process, place).returncode == 0  # made again from its runs
    assert json.loads(results.read_text()) == whole
    units = len(list((place / "proof" / "units").iterdir()))
    assert verify(in_process, place, "--no-recheck").returncode == 0
    assert len(list((place / "proof" / "units").iterdir())) == units == 3 * 3 + 1


def test_a_row_that_is_wanted_twice_is_refused(place: Path, in_process) -> None:
    found = in_process(
        "invert", "chi", "--task", "mine.py:task", "--want", "a=1", "--want", "a=-1", "--out", "w2.parquet"
    )
    assert found.returncode == 2
    assert "--want names the row 'a' twice" in " ".join(found.stderr.split())


def first(model: nn.Module) -> torch.Tensor:
    return model.weight[0, 0]


@pytest.fixture(scope="module")
def chi() -> pt.Response:
    return pt.measure(linear_task(), {"a": first, "b": lambda model: model.weight[1, 1]}, sampler=KERNEL,
                      estimator="first-order", progress=False)  # fmt: skip


def test_the_size_of_a_wish_does_not_count_however_small_or_large_it_is(chi: pt.Response) -> None:
    usual = chi.invert({"a": -1, "b": 0.5})
    for size in (1e-300, 2.0**-900, 1e300):
        found = chi.invert({"a": -size, "b": 0.5 * size})
        np.testing.assert_allclose(found.s, usual.s, rtol=1e-12)
        assert found.refused == usual.refused
    np.testing.assert_array_equal(chi.invert({"a": -(2.0**-900), "b": 2.0**-901}).s, usual.s)


def test_a_row_that_is_wanted_under_two_names_is_refused(chi: pt.Response) -> None:
    with pytest.raises(PatterningError, match=r"row 'a' is wanted twice, the second time as \('full', 'a'\)"):
        chi.invert({"a": 1, ("full", "a"): -1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observables": [first]}, "observables is list: give names and functions of the module"),
        ({"observables": first}, "observables is function: give names"),
        ({"reliability": "high"}, "reliability is 'high': it must be between 0 and 1"),
        ({"reliability": True}, "reliability is True"),
        ({"sampler": None}, "sampler None is no sampler: give SGLD"),
    ],
)
def test_what_measure_cannot_read_is_one_sentence(options, message: str) -> None:
    usual = {"observables": {"a": first}, "sampler": KERNEL, "progress": False} | options
    with pytest.raises(PatterningError, match=message):
        pt.measure(linear_task(), **usual)


def test_a_relative_folder_of_a_measurement_is_that_of_the_call(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def wanders(model: nn.Module) -> torch.Tensor:
        os.chdir(tmp_path / "elsewhere")
        return first(model)

    pt.measure(linear_task(), {"a": wanders}, sampler=KERNEL, draws=4, burn_in=2, chains=2, budget=1, out="o",
               estimator="covariance", progress=False)  # fmt: skip
    assert list((tmp_path / "o" / "units").iterdir())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_compiled_module_is_taken_as_what_it_was_compiled_from() -> None:
    net = seeded(nn.Linear(6, 3))
    plain, compiled = Task(net, classify, (X, Y)), Task(torch.compile(net, backend="eager"), classify, (X, Y))  # type: ignore[arg-type]
    assert [note for note in compiled.notes if note not in plain.notes] == [compiled.notes[0]]
    assert "was compiled by torch.compile" in compiled.notes[0]
    other = seeded(nn.Linear(6, 3), 1)
    wrapped = torch.compile(other, backend="eager")
    torch.testing.assert_close(compiled.flatten(wrapped), plain.flatten(other), rtol=0, atol=0)
    rows = torch.arange(8)[None]
    torch.testing.assert_close(
        compiled.losses(compiled.own_row()[None], rows), plain.losses(plain.own_row()[None], rows), rtol=0, atol=0
    )
    compiled.load(wrapped, compiled.own_row())
    torch.testing.assert_close(other.weight, net.weight, rtol=0, atol=0)
