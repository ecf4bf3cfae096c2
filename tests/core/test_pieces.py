"""Large memory apart: what comes back is what went in, shares what it shared, and belongs to whoever unpacked it."""

import threading
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from patterning.core import ray_connect
from patterning.core.errors import PatterningError
from patterning.core.executors import Ray
from patterning.core.pieces import LARGE, Pieces
from patterning.core.ray_connect import connect
from patterning.core.ray_job import difference, perform_job, versions
from patterning.core.shipping import dump, load
from patterning.core.store import RunFolder, Unit
from patterning.core.worker import DONE
from patterning.core.workers import Workers


def test_the_same_comes_back_and_shares_what_it_shared() -> None:
    whole = torch.arange(LARGE, dtype=torch.float32)
    net = nn.Linear(600, 100)
    table = np.arange(LARGE, dtype=np.int64).reshape(64, -1)
    value = {
        "whole": whole, "part": whole[10:20], "wide": whole.view(-1, 2).T, "net": net, "table": table,
        "columns": np.asfortranarray(table), "stepped": table[:, ::2], "small": np.ones(3),
        "grad": net.weight[1:].detach(),
        "half": whole.half(), "complex": torch.view_as_complex(whole.view(-1, 2)).conj(), "words": ["a"],
    }  # fmt: skip
    pieces = Pieces()
    data = dump(value, pieces)
    found = load(data, pieces.by_name)
    for name in ("whole", "part", "wide", "half", "complex", "grad"):
        assert found[name].dtype == value[name].dtype
        assert found[name].stride() == value[name].stride()
        assert torch.equal(found[name].resolve_conj(), value[name].resolve_conj())
    for name in ("table", "columns", "stepped", "small"):
        np.testing.assert_array_equal(found[name], value[name])
        assert found[name].dtype == value[name].dtype
    assert found["columns"].flags.f_contiguous
    assert found["whole"].untyped_storage().data_ptr() == found["part"].untyped_storage().data_ptr()
    assert isinstance(found["net"].weight, nn.Parameter)
    assert found["net"].weight.requires_grad
    assert found["net"].weight.data_ptr() == found["grad"].data_ptr() - 4 * 600
    assert torch.equal(found["net"].weight, net.weight)
    found["whole"][0] = -1.0  # writable, and no one else's
    found["table"][0, 0] = -1
    assert whole[0] == next(iter(pieces.by_name.values()))[0] == table[0, 0] == 0


def test_large_memory_is_named_by_its_bytes_and_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from patterning.core import pieces as module

    hashed: list[int] = []
    real = module.hashlib.blake2b

    def counted(data: memoryview, **options: int) -> object:
        hashed.append(len(data))
        return real(data, **options)

    monkeypatch.setattr(module, "hashlib", SimpleNamespace(blake2b=counted))
    one, same, other = torch.zeros(LARGE), torch.zeros(LARGE), torch.ones(LARGE)
    pieces = Pieces()
    first, again = dump(one, pieces), dump([one, 5], pieces)
    assert len(hashed) == 1
    assert max(len(first), len(again)) < LARGE / 10
    pieces.used.clear()
    dump([same, other], pieces)
    assert (len(pieces.by_name), len(pieces.used), len(hashed)) == (2, 2, 3)


def test_what_cannot_leave_fails_as_without_pieces() -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        dump(threading.Lock(), Pieces())


def note_and_sum(data: torch.Tensor, scratch: Path) -> dict[str, np.ndarray]:
    import logging

    from patterning.core.progress import report_progress

    report_progress(0.5)
    logging.getLogger("patterning").warning("something to know")
    assert not scratch.exists()
    return {"sum": np.array(float(data.sum())), "threads": np.array(torch.get_num_threads())}


class Sum(Unit):
    """A unit whose argument is a tensor, keyed by name alone."""

    key = "sum"


def test_a_job_on_a_machine_of_the_cluster(tmp_path: Path) -> None:
    """What a Ray worker does, in this process."""
    pieces, heard = Pieces(), list[float]()
    frame = dump(Sum("sum", note_and_sum, {"data": torch.ones(LARGE)}), pieces)
    before = torch.get_num_threads()
    try:
        notes, message = perform_job(frame, pieces.by_name, versions(), heard.append, None)
        assert notes == ["something to know"]
        assert message[0] == DONE
        assert {name: float(value) for name, value in message[1].items()} == {"sum": LARGE, "threads": 1}
        assert heard == [0.5]
        run = RunFolder(tmp_path)
        run.create()
        assert perform_job(frame, pieces.by_name, versions(), heard.append, str(tmp_path))[1] == (DONE, None)
        assert (tmp_path / "units" / "sum.safetensors").exists()
        assert not list(tmp_path.rglob("*.state"))
        _, (word, why) = perform_job(frame, pieces.by_name, {**versions(), "torch": "1.0"}, heard.append, None)
        assert (word, why) == ("other", f"torch {torch.__version__} there, 1.0 here: install the same on all machines")
    finally:
        torch.set_num_threads(before)


def test_other_versions_are_told_in_words() -> None:
    assert difference(versions()) is None
    both = {**versions(), "patterning": "x", "Python": "2.7"}
    assert difference(both) == (
        f"Python {versions()['Python']} there, 2.7 here, another version of patterning there: install the same on all "
        "machines"
    )


def test_without_ray_the_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        if name.startswith("ray"):
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return import_module(name)

    monkeypatch.setattr(ray_connect, "import_module", missing)
    with pytest.raises(PatterningError, match=r"No module named 'ray'\): pip install 'patterning\[cluster\]'"):
        Workers(RunFolder(tmp_path), Ray()).__enter__()
    with Workers(RunFolder(tmp_path), 1):  # the folder is free again
        pass


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (
            "127.0.0.1:9",
            r"no Ray cluster answers at 127.0.0.1:9 \(Connection refused\): start one \(ray start --head\)",
        ),
        ("ray://head:10001", "is of Ray's client: give the command on a machine of the cluster, and name host:port"),
        ("head", "'head' is not host:port of a Ray cluster's head"),
        ("127.0.0.1:99999", "no Ray cluster answers at 127.0.0.1:99999"),
    ],
)
def test_an_address_that_cannot_be_reached_is_one_sentence(address: str, says: str) -> None:
    with pytest.raises(PatterningError, match=says):
        connect(SimpleNamespace(), address)


def test_what_ray_itself_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n  Ray: 2.1\n  Python: 3.9")

    with pytest.raises(
        PatterningError, match=r"differ \(Version mismatch: .* Ray: 2.1 Python: 3.9\): install the same"
    ):
        connect(SimpleNamespace(init=init), "auto")
