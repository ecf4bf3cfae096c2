"""Weights with a card: others train under them without this package."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import nn

import patterning as pt
from patterning.intervention.card import row_hashes

X = torch.arange(12.0)[:, None]


def square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch)[:, 0] - 1) ** 2


def task(values: torch.Tensor = X) -> pt.Task:
    torch.manual_seed(0)
    return pt.Task(nn.Linear(1, 1), square, values)


def weights(of: pt.Task) -> pt.Weights:
    plain = pt.Weights.uniform(of)
    facts = {"what": "lower loss (-1)", "target": {"loss": -1.0, "other": 0.0}, "policy": "clip", "strength": 0.5}
    return pt.Weights(np.linspace(0.5, 1.5, 12), plain.ids, plain.base_weights, plain.free, plain.data, facts)


def evidence(rho: pt.Weights) -> pt.Evidence:
    def train(own: pt.Weights, seed: int) -> tuple[float, float]:
        noise = np.random.default_rng(seed).normal()
        return float(own.rho @ np.arange(12)) + noise, noise

    return pt.verify(train, {"heavier": rho}, {"sum": lambda pair: pair[0] - pair[1] / 2}, range(6))


def test_a_card_says_what_was_asked_and_what_came_of_it(tmp_path: Path) -> None:
    rho = weights(task())
    found = evidence(rho)
    folder = rho.save_card(
        tmp_path / "card",
        evidence=found,
        task=task(),
        chi=np.arange(12.0),
        chi_se=np.full(12, 0.1),
        licence="CC-BY-4.0",
    )
    again = pt.Weights.from_folder(folder)
    for name in ("rho", "ids", "base_weights", "free"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rho, name))
    assert (again.data, again.facts) == (rho.data, dict(rho.facts))
    table = pyarrow.parquet.read_table(folder / "rho.parquet").to_pydict()  # as others read it
    assert table["chi"] == list(range(12))
    assert table["sample_hash"] == row_hashes(task().data)
    text = (folder / "README.md").read_text()
    effect = found.effect("heavier", "sum")
    for words in (
        "lower loss (-1)", "`loss`: lower (-1)", "`other`: held where it is (+0)", "clip", "CC-BY-4.0",
        "6 paired seeds",
        f"{effect.difference:+.3g} [{effect.low:+.3g}, {effect.high:+.3g}]",
        f"{100 * rho.summary().effective_sample_size:.1f} %", rho.data, "`sample_hash`",
    ):  # fmt: skip
        assert words in text, words


def test_the_card_s_own_lines_train_as_the_package_does(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    rho = weights(task())
    folder = rho.save_card(tmp_path)
    ids, losses = [3, 0, 7], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    names = {"pd": pd, "torch": torch, "ids": ids, "losses": losses}
    lines = [line.strip() for line in (folder / "README.md").read_text().splitlines() if line.startswith("    ")]
    exec("\n".join(lines).replace('"rho.parquet"', repr(str(folder / "rho.parquet"))), names)
    assert float(names["loss"]) == pytest.approx(float(rho.loss(losses, ids)))
    assert "Not verified" in (folder / "README.md").read_text()
    assert rho.save_card(folder) == folder  # in place of its own card


def test_a_readme_of_the_user_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# My model\n")
    with pytest.raises(pt.PatterningError, match=r"has a README.md that is no card of weights"):
        weights(task()).save_card(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "# My model\n"


def test_rows_are_known_by_their_hash() -> None:
    own, other = row_hashes(task().data), row_hashes(task(X.flip(0)).data)
    assert len(set(own)) == 12
    assert own == other[::-1]
    assert own != row_hashes(task(X + 1).data)


def test_what_does_not_fit_the_weights_is_refused(tmp_path: Path) -> None:
    rho = weights(task())
    with pytest.raises(pt.PatterningError, match="made for other data"):
        rho.save_card(tmp_path / "a", task=task(X.flip(0)))
    with pytest.raises(pt.PatterningError, match="the weights are of 12 rows"):
        rho.save_card(tmp_path / "a", chi=np.ones(5))
    with pytest.raises(pt.PatterningError, match="the evidence has heavier"):
        rho.save_card(tmp_path / "a", evidence=evidence(rho), arm="lighter")
    assert not (tmp_path / "a").exists()
    with pytest.raises(pt.PatterningError, match="holds no weights"):
        pt.Weights.from_folder(tmp_path)


class FakeHub:
    """What is used of `huggingface_hub.HfApi`, without a network."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.private = False
        self.files: set[str] = set()

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private = private
        self.calls.append((repo_id, repo_type))

    def upload_folder(self, *, folder_path: str, repo_id: str, repo_type: str, allow_patterns: list[str]) -> str:
        self.calls.append((repo_id, repo_type))
        self.files = {p.name for p in Path(folder_path).iterdir()} & set(allow_patterns)
        return "done"


def test_a_folder_is_uploaded_whole() -> None:
    hub = FakeHub()
    assert weights(task()).push_to_hub("me/rho", hub, private=True, licence="MIT") == "done"
    assert hub.calls == [("me/rho", "dataset")] * 2
    assert hub.private
    assert hub.files == {"rho.parquet", "README.md"}
