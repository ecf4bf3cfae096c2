"""A lost or changed byte in what is stored is an error, or is computed again: never another number."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from patterning.core.checksums import SUMS, array_digest, check, seal
from patterning.core.errors import PatterningError
from patterning.core.store import RunFolder, Unit, read_arrays, write_arrays
from patterning.core.task import Task
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.components import component_response
from patterning.response.store import open_response, save_response

CALLS: list[int] = []


def count(n: int, scratch: Path) -> dict[str, np.ndarray]:
    del scratch
    CALLS.append(n)
    return {"n": np.full((3, 4), n, dtype=np.float32), "empty": np.zeros((0, 2)), "one": np.array(n)}


def make_task() -> Task:
    torch.manual_seed(0)
    data = (torch.randn(12, 3), torch.randint(2, (12,)))
    return Task(nn.Linear(3, 2), lambda call, b: nn.functional.cross_entropy(call(b[0]), b[1], reduction="none"), data)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task, path = make_task(), tmp_path_factory.mktemp("stored") / "chi.zarr"
    found = component_response(
        task, task.flatten(task.module), ["weight", "bias"], SGLD(30, 100, 1e-3), ChainConfig(4, 8, 4, 2, 6)
    )
    save_response(found, path)
    return path


def test_the_digest_covers_names_types_shapes_and_bytes() -> None:
    base = {"a": np.arange(6.0), "b": np.array([True, False])}
    others = [
        {"a": np.arange(6.0)},
        {"a": np.arange(6.0), "c": np.array([True, False])},
        {"a": np.arange(6.0).reshape(2, 3), "b": base["b"]},
        {"a": np.arange(6.0, dtype=np.float32), "b": base["b"]},
        {"a": np.nextafter(np.arange(6.0), 9), "b": base["b"]},
        {"a": -np.zeros(6), "b": base["b"]},
    ]
    digests = {array_digest(each) for each in [base, *others]}
    assert len(digests) == 7
    assert array_digest({"b": base["b"], "a": np.arange(12.0)[::2] / 2}) == array_digest(base)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_a_stored_response_is_checked_by_sha256sum_too(stored: Path) -> None:
    open_response(stored)
    done = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=stored, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_file_that_is_missing_or_changed_is_named(stored: Path, tmp_path: Path) -> None:
    names = [path.relative_to(stored) for path in stored.rglob("*") if path.is_file()]
    assert len(names) > 40
    for i, name in enumerate(names):
        copy = tmp_path / f"copy{i}"
        shutil.copytree(stored, copy)
        (copy / name).unlink()
        with pytest.raises(PatterningError, match=rf"is damaged: {name} is missing: delete it and give"):
            open_response(copy)
        shutil.copyfile(stored / name, copy / name)
        open_response(copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(bytes(data))
        with pytest.raises(PatterningError, match="is damaged"):
            open_response(copy)


def test_a_file_that_was_not_written_is_named_but_not_a_file_managers(stored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stored, copy)
    (copy / ".DS_Store").write_text("x")
    (copy / "susceptibility" / "._chi").write_text("x")
    open_response(copy)
    (copy / "susceptibility" / "chi" / "1.0.0").write_text("x")
    with pytest.raises(PatterningError, match=r"susceptibility/chi/1\.0\.0 was not written by patterning"):
        open_response(copy)


def test_a_folder_of_an_older_version_opens_without_sums(stored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(stored, copy)
    (copy / SUMS).unlink()
    for file in (copy / ".zmetadata", copy / "susceptibility" / ".zattrs"):
        file.write_text(file.read_text().replace('"checksums": "SHA256SUMS"', '"other": "x"'))
    np.testing.assert_array_equal(
        open_response(copy)["susceptibility"]["chi"], open_response(stored)["susceptibility"]["chi"]
    )


@pytest.mark.parametrize("text", ["", "no sums", "{}", "0" * 64 + "  a\n"])
def test_damaged_sums(text: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    seal(tmp_path)
    check(tmp_path, "do something")
    (tmp_path / SUMS).write_text(text)
    with pytest.raises(PatterningError, match=r"is damaged: .*: do something"):
        check(tmp_path, "do something")


@pytest.mark.parametrize("kind", ["file", "empty folder", "zarr of something else"])
def test_what_is_no_response_is_said(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "chi.zarr"
    if kind == "file":
        path.write_text("hello")
    else:
        path.mkdir()
    if kind == "zarr of something else":
        import xarray

        xarray.Dataset({"x": ("a", [1.0])}).to_zarr(path, zarr_format=2)
    with pytest.raises(PatterningError, match=r"chi\.zarr holds no susceptibilities"):
        open_response(path)


def test_a_full_disk_leaves_no_half_response(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Path) -> None:
    from patterning.response import store

    task = make_task()
    found = component_response(
        task, task.flatten(task.module), ["weight"], SGLD(30, 100, 1e-3), ChainConfig(4, 8, 4, 2, 6)
    )

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "seal", full)
    says = r"chi\.zarr cannot be written \(No space left on device\): make room"
    with pytest.raises(PatterningError, match=says):
        save_response(found, tmp_path / "chi.zarr")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / "file").write_text("x")
    with pytest.raises(PatterningError, match="cannot be written"):
        save_response(found, tmp_path / "file" / "chi.zarr")
    save_response(found, tmp_path / "chi.zarr")


def test_a_folder_that_appears_meanwhile_is_left_alone(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patterning.response import store

    task, path = make_task(), tmp_path / "chi.zarr"
    found = component_response(
        task, task.flatten(task.module), ["weight"], SGLD(30, 100, 1e-3), ChainConfig(4, 8, 4, 2, 6)
    )
    monkeypatch.setattr(store, "seal", lambda part: (seal(part), shutil.copytree(stored, path)))
    with pytest.raises(PatterningError, match="appeared while it was written: name another folder"):
        save_response(found, path)
    assert open_response(path)["susceptibility"].sizes["component"] == 2
    assert [each.name for each in tmp_path.iterdir()] == ["chi.zarr"]


def test_a_damaged_unit_is_noticed_and_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, unit = RunFolder(tmp_path), Unit("count", count, {"n": 3})
    run.create()
    whole = run.compute(unit)
    path = run.file_of(unit)
    data = path.read_bytes()
    CALLS.clear()
    places = [0, 9, *range(20, len(data), max(1, len(data) // 60)), len(data) - 1]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        assert run.load(unit) is None, place
        assert not path.exists()
    for end in (0, 5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        assert run.load(unit) is None
    assert all("is damaged" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == len(places) + 4
    assert CALLS == []
    path.write_bytes(data[:-1] + b"x")
    again = run.compute(unit)
    assert CALLS == [3]
    for name, array in whole.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype
    assert path.read_bytes() == data


def test_arrays_without_a_digest_are_damaged(tmp_path: Path) -> None:
    from safetensors.numpy import save

    write_arrays(tmp_path / "x", {"a": np.arange(3)})
    np.testing.assert_array_equal(read_arrays(tmp_path / "x")["a"], [0, 1, 2])
    (tmp_path / "x").write_bytes(save({"a": np.arange(3)}))
    with pytest.raises(PatterningError, match="its numbers are not those that were written"):
        read_arrays(tmp_path / "x")


def test_a_damaged_state_starts_the_unit_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.numpy import load_file

    def resuming(scratch: Path) -> dict[str, np.ndarray]:
        return {"x": np.array(1.0 if not scratch.exists() else load_file(scratch)["x"])}

    run, unit = RunFolder(tmp_path), Unit("resuming", resuming, {})
    run.create()
    (run.units / f"{unit.key}.state").write_bytes(b"not a state")
    assert run.compute(unit)["x"] == 1
    assert "resuming starts anew" in caplog.text
    assert [path.name for path in run.units.iterdir()] == [f"{unit.key}.safetensors"]


def test_results_that_were_changed_are_refused(tmp_path: Path) -> None:
    from patterning.core.settings import Settings
    from patterning.study.conduct import conduct, read_json_results

    def read(path: Path) -> Settings:
        del path
        return Settings(preset="x")

    def stages(*_: object) -> dict:
        return {"experiment": "some", "numbers": [1.5, float("nan"), np.float32(0.1)], "by": {1: 2}}

    run, _ = conduct(Settings(preset="x"), tmp_path / "run", read, stages, 1, None)
    path = run.path / "results.json"
    results = read_json_results(run, "some", lambda _: True)
    assert results["numbers"][0] == 1.5
    path.write_text(path.read_text().replace("1.5", "1.6"))
    with pytest.raises(PatterningError, match="has changed since it was written: run the experiment again, it resumes"):
        read_json_results(run, "some", lambda _: True)
    older = json.loads(path.read_text())
    del older["provenance"]["sha256"]
    path.write_text(json.dumps(older))  # of a version that wrote no digest
    assert read_json_results(run, "some", lambda _: True)["numbers"][0] == 1.6
