"""Files whole or not at all; units found again by what went into them, and never stale."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterning.core import store
from patterning.core.errors import PatterningError
from patterning.core.store import RunFolder, Unit, fingerprint, open_run, write_json, write_whole

BASE = {"name": "run", "nested": {"rate": 0.1, "layers": [1, 2]}, "rho": np.arange(6.0)}
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
TREES = st.recursive(LEAVES, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=6)


def test_a_fingerprint_is_sixteen_hex_digits_and_repeats() -> None:
    assert len(fingerprint(BASE)) == 16
    assert int(fingerprint(BASE), 16) >= 0
    again = {"rho": np.arange(6.0), "nested": {"layers": [1, 2], "rate": 0.1}, "name": "run"}  # another order
    assert fingerprint(again) == fingerprint(BASE)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "walk"},
        {"nested": {"rate": 0.1, "layers": [2, 1]}},
        {"nested": {"rate": 0.1 + 1e-16 * 2, "layers": [1, 2]}},
        {"nested": {"rate": 0.1, "layers": [1, 2], "more": None}},
        {"nested": {"layers": [1, 2]}},
        {"nested": {"rate": "0.1", "layers": [1, 2]}},
        {"rho": np.arange(6.0)[::-1]},
        {"rho": np.nextafter(np.arange(6.0), 9)},
        {"rho": np.arange(6.0).reshape(2, 3)},
        {"rho": np.arange(6.0, dtype=np.float32)},
        {"rho": np.arange(6)},
        {"rho": np.append(np.arange(6.0), 0)},
        {"rho": list(range(6))},
        {"extra": 1},
    ],
)
def test_every_part_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert fingerprint({**BASE, **change}) != fingerprint(BASE)


def test_parts_do_not_run_into_each_other() -> None:
    prints = [
        fingerprint("ab", "c"),
        fingerprint("a", "bc"),
        fingerprint("abc"),
        fingerprint(12, 3),
        fingerprint(1, 23),
        fingerprint(123),
        fingerprint(["ab", "c"]),
        fingerprint({"ab": "c"}),
        fingerprint({"a": {"b": "c"}}),
        fingerprint({"a": "b"}, "c"),
        fingerprint(),
        fingerprint({}),
        fingerprint(None),
    ]
    assert len(set(prints)) == len(prints)


def test_equal_bytes_of_another_type_are_another_array() -> None:
    zeros = [np.zeros(4, dtype=dtype) for dtype in (np.float64, np.int64, np.uint64)]
    assert len({fingerprint(array) for array in zeros}) == 3
    assert fingerprint(np.zeros(8, dtype=np.float32)) != fingerprint(np.zeros((2, 4), dtype=np.float32))


def test_the_memory_layout_of_an_array_does_not_matter() -> None:
    array = np.arange(12.0).reshape(3, 4)
    assert fingerprint(np.asfortranarray(array)) == fingerprint(array) == fingerprint(array.T.copy().T)


@given(TREES, TREES)
def test_fingerprints_are_equal_exactly_when_the_json_is(a: object, b: object) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (fingerprint(a) == fingerprint(b)) == same


def test_files_are_written_whole_and_leave_no_part(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    path = folder.units / "unit.safetensors"
    write_whole(path, b"old")

    def killed(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new, half of it")
    assert path.read_bytes() == b"old"
    assert list(folder.units.glob("*.part"))
    folder.create()  # the next run clears what was left
    assert [each.name for each in folder.units.iterdir()] == ["unit.safetensors"]


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    where: Path


def test_json_holds_arrays_numbers_paths_and_dataclasses(tmp_path: Path) -> None:
    value = {"a": np.float32(1.5), "b": np.arange(3), "c": Point(1, Path("there")), "d": np.bool_(True)}
    write_json(tmp_path / "v.json", value)
    assert json.loads((tmp_path / "v.json").read_text()) == {
        "a": 1.5,
        "b": [0, 1, 2],
        "c": {"x": 1, "where": "there"},
        "d": True,
    }
    with pytest.raises(TypeError, match="set has no JSON form"):
        write_json(tmp_path / "v.json", {"a": {1}})
    assert json.loads((tmp_path / "v.json").read_text())["a"] == 1.5


CALLS: list[float] = []


def double(rho: np.ndarray, factor: float, scratch: Path) -> dict[str, np.ndarray]:
    CALLS.append(factor)
    scratch.write_bytes(b"where I stand")
    return {"doubled": (rho * factor).reshape(2, -1).T, "mask": rho > 1}


def fail_once(scratch: Path) -> dict[str, np.ndarray]:
    if not scratch.exists():
        scratch.write_bytes(b"half way")
        raise RuntimeError("killed")
    return {"resumed": np.array([1.0])}


def test_a_unit_is_computed_once_and_read_after(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    unit = Unit("double", double, {"rho": np.arange(4.0), "factor": 2.0})
    CALLS.clear()
    assert folder.load(unit) is None
    first, second = folder.compute(unit), folder.compute(unit)
    third = RunFolder(tmp_path / "run").compute(Unit("double", double, {"factor": 2.0, "rho": np.arange(4.0)}))
    assert CALLS == [2.0]
    for found in (first, second, third):
        np.testing.assert_array_equal(found["doubled"], [[0, 4], [2, 6]])
        np.testing.assert_array_equal(found["mask"], [False, False, True, True])
        assert found["mask"].dtype == np.bool_
    assert [each.name for each in folder.units.iterdir()] == [f"{unit.key}.safetensors"]  # no scratch, no part


def test_a_unit_with_other_arguments_is_another_unit(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    CALLS.clear()
    for rho, factor in ((np.arange(4.0), 2.0), (np.arange(4.0), 3.0), (np.arange(4.0) + 1e-12, 2.0)):
        folder.compute(Unit("double", double, {"rho": rho, "factor": factor}))
    assert CALLS == [2.0, 3.0, 2.0]
    assert len(list(folder.units.iterdir())) == 3
    assert Unit("a", double, {}).key != Unit("b", double, {}).key
    assert Unit("a", double, {}).key != Unit("a", fail_once, {}).key


def test_a_unit_that_fails_leaves_no_result_and_finds_its_scratch_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    unit = Unit("fail", fail_once, {})
    with pytest.raises(RuntimeError, match="killed"):
        folder.compute(unit)
    assert folder.load(unit) is None
    np.testing.assert_array_equal(folder.compute(unit)["resumed"], [1])
    assert [each.name for each in folder.units.iterdir()] == [f"{unit.key}.safetensors"]


def test_only_a_run_folder_is_opened(tmp_path: Path) -> None:
    with pytest.raises(PatterningError, match="is not a folder"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(PatterningError, match=r"holds no config\.yaml"):
        open_run(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert open_run(tmp_path).path == tmp_path


def test_a_result_of_other_code_is_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = store.Unit("work", store.write_json, {"x": 1})
    before = unit.key
    assert store.Unit("work", store.write_json, {"x": 1}).key == before
    monkeypatch.setattr(store, "code_version", lambda _module: "other")
    assert store.Unit("work", store.write_json, {"x": 1}).key != before
    assert unit.key == before  # computed once
