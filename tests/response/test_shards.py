"""Sampling and reading as two jobs: the same χ, no sampling for other observables or probes, memory of one shard."""

from pathlib import Path

import numpy as np
import pytest
import torch
from faults.test_hostile_stages import ROUGH

import patterning as pt
from patterning.models import restricted
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.posterior import short_chain
from patterning.response import capability, draws, one_component, pathwise_shards, sharded_pathwise, way_back

TOKENS = torch.randint(9, (24, 5), generator=torch.Generator().manual_seed(0))
SETTINGS = {
    "sampler": pt.SGLD(30, 300, 1e-3), "chains": 3, "draws": 6, "burn_in": 4, "steps_between_draws": 2, "batch_size": 8,
    "components": ["l0h1"], "budget": 1, "progress": False,
}  # fmt: skip
FEW = {"probes": range(3, 8), "draws": 4, "burn_in": 2}
"""Pathwise takes a derivative of every probe at every second step."""


def masked(model: torch.nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    losses = next_token_losses(model, batch)
    return losses, torch.arange(losses.shape[1]) < 2 + batch[:, :1] % 3


@pytest.fixture(scope="module")
def task() -> pt.Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pt.Task(LanguageModel(LanguageConfig(9, 5, 2, 2, 8)), masked, TOKENS)


@pytest.fixture(autouse=True)
def small_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of the model takes 4 rows of a replica, as 4,096 of a large one would; what is tried before takes few."""
    monkeypatch.setitem(restricted.CELLS_AT_ONCE, "cpu", 4 * 4 * 3)
    for module, name in ((short_chain, "ROWS"), (capability, "ROWS"), (capability, "ROWS_ON_THE_WAY")):
        monkeypatch.setattr(module, name, 8)


def logit(model: torch.nn.Module) -> torch.Tensor:
    return model(TOKENS[:3]).square().mean()


def norm(model: torch.nn.Module) -> torch.Tensor:
    return sum(p.square().sum() for p in model.parameters())


def fields(response: pt.Response) -> dict[str, np.ndarray]:
    data = response.data
    shown = [name for name in data["observable"].values if name != "component loss"] or ["component loss"]
    names = ("chi", "standard_error", "halves", "chi_of_chain", "mean_loss", "rise", "reliability", "r_hat")
    picked = {name: data[name] for name in names}
    return {
        name: (value.sel(observable=shown) if "observable" in value.dims else value).values
        for name, value in picked.items()
    } | {"phi": response.tree["posterior"]["phi"].sel(observable=shown).values}


@pytest.mark.parametrize("estimator", ["covariance", "first-order", "pathwise"])
def test_chi_of_observables_has_the_same_bits(task: pt.Task, estimator: str) -> None:
    observables = {"logit": logit, "norm": norm}
    settings = {**SETTINGS, "estimator": estimator} | (FEW if estimator == "pathwise" else {})
    whole = pt.measure(task, observables, **settings)
    parts = pt.measure(task, observables, shards=3, **settings)
    assert parts.names == whole.names
    found = fields(parts)
    for name, value in fields(whole).items():
        if estimator == "pathwise":  # sums are taken in another order
            np.testing.assert_allclose(
                found[name], value, rtol=1e-9, atol=1e-12 * np.nanmax(np.abs(value)), err_msg=name
            )
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert parts.warnings == [line for line in whole.warnings if "component loss" not in line]  # which was not read


@pytest.mark.parametrize(
    ("phi", "estimator"),
    [
        ("probes", "covariance"),
        (range(4, 10), "covariance"),
        ("probes", "first-order"),
        pytest.param("probes", "pathwise", marks=pytest.mark.slow),
        pytest.param(range(4, 10), "pathwise", marks=pytest.mark.long),
        ("data", "pathwise"),
    ],
)
def test_chi_of_the_component_loss_agrees_up_to_rounding(task: pt.Task, phi: object, estimator: str) -> None:
    settings = {**SETTINGS, "phi": phi, "probes": range(3, 20), "estimator": estimator}
    settings |= FEW if estimator == "pathwise" else {}
    whole, parts = pt.measure(task, **settings), pt.measure(task, shards=3, **settings)
    np.testing.assert_array_equal(parts.row, whole.row)
    found = fields(parts)
    for name, value in fields(whole).items():
        size = np.nanmax(np.abs(value), initial=0.0)
        if name != "reliability":  # of ranks, which rounding may exchange
            np.testing.assert_allclose(found[name], value, atol=3e-5 * size, err_msg=name)


@pytest.mark.long
def test_other_observables_and_other_probes_cost_no_sampling(
    task: pt.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "estimator": "covariance", "shards": 2, "out": tmp_path, "reliability": None}
    settings |= {"components": ["l0h1", "l1 mlp"], "budget": 2}
    first = pt.measure(task, {"logit": logit}, **settings)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "draws").iterdir()}
    assert len(written) == 4  # two components, two rounds
    steps = []
    run = draws.run_chains
    monkeypatch.setattr(draws, "run_chains", lambda *a, **k: steps.append(1) or run(*a, **k))
    other = pt.measure(task, {"norm": norm}, probes=[20, 1, 5, 7, 13], **settings)
    alone = pt.measure(task, {"norm": norm}, probes=[20, 1, 5, 7, 13], **{**settings, "shards": None, "out": None})
    np.testing.assert_array_equal(other.chi, alone.chi)
    losses = pt.measure(task, **settings)
    assert (steps, losses.names) == ([], ("l0h1", "l1 mlp"))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "draws").iterdir()} == written
    # draws that are lost are sampled again, to the same bits
    lost = next(iter(written))
    before = lost.read_bytes()
    lost.unlink()
    again = pt.measure(task, {"logit": logit}, probes=range(6), **settings)
    assert (len(steps), lost.read_bytes()) == (1, before)
    assert again.names == first.names == ("l0h1", "l1 mlp")


@pytest.mark.long
def test_pathwise_reads_other_probes_without_sampling_and_other_observables_by_a_way_back(
    task: pt.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "estimator": "pathwise", "shards": 2, "out": tmp_path, "reliability": None}
    settings |= {"budget": 2} | FEW
    pt.measure(task, {"logit": logit}, **settings)
    steps, ways = [], []
    forward, gradient = pathwise_shards.forward, way_back.curvature
    some = {**settings, "probes": [20, 1, 5]}
    with monkeypatch.context() as patch:
        patch.setattr(pathwise_shards, "forward", lambda *a: steps.append(1) or forward(*a))
        patch.setattr(way_back, "curvature", lambda *a: ways.append(1) or gradient(*a))
        other = pt.measure(task, {"logit": logit}, **some)
        assert (steps, ways) == ([], [])
        new = pt.measure(task, {"norm": norm}, **some)
        assert (steps, len(ways)) == ([], 2 * 10)  # two rounds, 10 steps back
    apart = {**some, "shards": None, "out": None}
    for name, found in (("logit", other), ("norm", new)):
        alone = pt.measure(task, {name: {"logit": logit, "norm": norm}[name]}, **apart)
        np.testing.assert_allclose(found.chi, alone.chi, rtol=1e-9, atol=1e-12 * np.abs(alone.chi).max())
        assert found.row.tolist() == alone.row.tolist()
    # a file that is lost is made again, to the same bits
    for kind in ("steps", "adjoints"):
        lost = sorted((tmp_path / "draws").glob(f"*.{kind}"))[0]
        before = lost.read_bytes()
        lost.unlink()
        pt.measure(task, {"logit": logit, "norm": norm}, **{**settings, "probes": range(2)})
        assert lost.read_bytes() == before


@pytest.mark.parametrize("limit", [pytest.param("expansion", marks=pytest.mark.slow), "curvature"])
def test_what_pathwise_cannot_serve_is_refused_in_shards_too(
    task: pt.Task, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    if limit == "expansion":
        for module in (one_component, sharded_pathwise):
            monkeypatch.setattr(module, "REFUSED_EXPANSION", 1e-9)
    else:
        task = ROUGH["hidden"]  # whose gradient hides what it depends on
    answers, settings = [], {**SETTINGS, **FEW, "estimator": "pathwise", "components": "full"}
    for shards in (None, 2):
        with pytest.raises(pt.PatterningError, match="the pathwise estimator cannot serve this component") as refusal:
            pt.measure(task, {"norm": norm}, shards=shards, **settings)
        answers.append(str(refusal.value).partition("; use")[0])
    assert answers[0] == answers[1]


def test_a_changed_byte_of_the_draws_is_an_error(task: pt.Task, tmp_path: Path) -> None:
    settings = {**SETTINGS, "estimator": "covariance", "shards": 2, "out": tmp_path, "budget": 1}
    pt.measure(task, {"logit": logit}, **settings)
    path = sorted((tmp_path / "draws").iterdir())[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(pt.PatterningError, match="is damaged at draw 0: delete"):
        pt.measure(task, {"norm": norm}, **settings)


def test_what_cannot_be_read_in_shards_is_refused(task: pt.Task) -> None:
    with pytest.raises(pt.PatterningError, match="'auto' chooses it after they have run"):
        pt.measure(task, estimator="auto", shards=2, **SETTINGS)
    with pytest.raises(pt.PatterningError, match="shards is 0: it must be at least 1"):
        pt.measure(task, estimator="covariance", shards=0, **SETTINGS)


@pytest.mark.long
def test_components_whose_chains_explode_are_refused_as_without_shards(task: pt.Task) -> None:
    wild = {**SETTINGS, **FEW, "sampler": pt.SGLD(30, 0.5, 1.0), "estimator": "covariance", "components": ["full"]}
    with pytest.raises(pt.PatterningError, match="3 of 3 chains diverged and χ needs 2") as whole:
        pt.measure(task, {"logit": logit}, **wild)
    with pytest.raises(pt.PatterningError, match="3 of 3 chains diverged and χ needs 2") as parts:
        pt.measure(task, {"logit": logit}, shards=2, **wild)
    assert str(whole.value)[:60] == str(parts.value)[:60]
