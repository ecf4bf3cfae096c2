"""`load` and `from_devinterp`: stores of the layout that devinterp 2.0.1 writes, with χ that is known in closed form.

Stores that devinterp itself wrote are read in tests/peer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import patterning as pt
from patterning.models.components import find_component
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses

CHAINS, DRAWS, ROWS, T = 4, 24, 3, 5
SAMPLER = {
    "lr": 1e-4, "n_beta": 30.0, "localization": 300.0, "num_chains": CHAINS, "num_draws": DRAWS, "batch_size": 2,
    "num_burnin_steps": 5, "num_steps_bw_draws": 1, "init_seed": 100, "noise_level": 1.0, "llc_weight_decay": 0.0,
    "bounding_box_size": None, "sampling_method": "sgmcmc_sgld",
}  # fmt: skip
TEXTS = {name: torch.randint(13, (ROWS, T + 1), generator=torch.Generator().manual_seed(i)).numpy()
         for i, name in enumerate(("train", "code"))}  # fmt: skip
SLOPES = {"train": np.linspace(0.5, 2, ROWS * T), "code": np.linspace(-1, 3, ROWS * T) ** 2}
"""b_j: every loss is 1 + b_j x with x the same number for all of a draw."""
X = np.random.default_rng(0).normal(size=(CHAINS, DRAWS)) + np.arange(CHAINS)[:, None]
"""The chains stand at other places, which must not pass for covariance."""


def store(path: Path, attributes: Mapping[str, Any] | None = None, x: np.ndarray = X, **sampler: Any) -> Path:
    """Draws in the layout of devinterp's `sample`: variables and their axes at the root, settings in its attributes."""
    variables: dict[str, Any] = {"init_loss": (("chain", "token_pos"), np.ones((CHAINS, T), np.float32))}
    for name, slopes in SLOPES.items():
        losses = 1 + slopes.reshape(ROWS, T) * x[..., None, None]
        axes = ("chain", "draw", f"batch_{name}", "token_pos")
        variables[f"loss_{name}"] = (axes, losses.astype(np.float32))
        variables[f"input_ids_{name}"] = ((f"batch_{name}", "token"), TEXTS[name])
    step = x[..., None, None] * np.ones((2, T), np.float32)
    variables["sampling_loss"] = (("chain", "draw", "batch", "token_pos"), step.astype(np.float32))
    observables = [{"type": "ObserveDifferentDataset", "obs_id": name, "batches_per_draw": 1} for name in SLOPES]
    config = {"sampler": SAMPLER | sampler, "observables": observables, "tokenizer_context_length": T + 1}
    data = xr.Dataset(variables, attrs={"metadata": {"config": config}, "completed": 1} | dict(attributes or {}))
    xr.DataTree(data).to_zarr(path, zarr_format=3, consolidated=False)
    return path


def exact(phi: str, probe: str) -> np.ndarray:
    """-Cov[φ, ℓ_j - L] of losses 1 + b_j x, with chains centred one by one."""
    slopes = SLOPES[probe]
    return -SLOPES[phi].mean() * (slopes - slopes.mean()) * X.var(axis=1, ddof=1).mean()


def test_draws_have_their_covariance_with_errors(tmp_path: Path) -> None:
    chi = pt.from_devinterp(store(tmp_path / "samples.zarr"), phi="train")
    assert chi.names == ("loss of train",)
    assert chi.estimator == {"samples": "covariance"}
    np.testing.assert_allclose(chi.chi[0], exact("train", "code"), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(chi.row, np.repeat(np.arange(ROWS), T))
    np.testing.assert_array_equal(chi.position, np.tile(np.arange(T), ROWS))
    assert (chi.standard_error[0][np.abs(chi.chi[0]) > 1e-3] > 0).all()
    assert chi.reliability["loss of train"] == pytest.approx(1)  # one x for all: halves agree in order
    assert chi.r_hat["loss of train"] > 1.5  # the chains do not
    assert chi.n_beta == 30
    said = str(chi)
    assert "nβ 30, γ 300, ε 0.0001" in said
    assert "error unknown" not in said
    both = pt.from_devinterp(tmp_path / "samples.zarr", phi="code", probes=["code", "train"]).chi[0]
    slopes = np.concatenate([SLOPES["code"], SLOPES["train"]])
    expected = -SLOPES["code"].mean() * (slopes - slopes.mean()) * X.var(axis=1, ddof=1).mean()
    np.testing.assert_allclose(both, expected, rtol=1e-5, atol=1e-6)
    later = pt.from_devinterp(tmp_path / "samples.zarr", phi="code", probes="code", skip_draws=4)
    factor = X[:, 4:].var(axis=1, ddof=1).mean() / X.var(axis=1, ddof=1).mean()
    np.testing.assert_allclose(later.chi[0], factor * exact("code", "code"), rtol=1e-5, atol=1e-6)


class Letters:
    """A tokenizer of letters."""

    @staticmethod
    def decode(tokens: list[int]) -> str:
        return "".join(chr(97 + token) for token in tokens)


def test_a_folder_of_stores_is_a_table_of_components(tmp_path: Path) -> None:
    store(tmp_path / "samples_full.zarr")
    store(tmp_path / "samples_l0h1.zarr", x=2 * X)
    chi = pt.from_devinterp(tmp_path, phi="train")
    assert chi.names == ("full", "l0h1")
    np.testing.assert_allclose(chi.chi[1], 4 * chi.chi[0], rtol=1e-5, atol=1e-5)
    most = chi.top(1, "full", decode=Letters())[0]
    j = int(np.argmax(exact("train", "code")))
    text = TEXTS["code"][j // T]
    assert most.text.endswith(f"⟦{Letters.decode([text[j % T + 1]])}⟧")
    chi.save(tmp_path / "ours.zarr")
    again = pt.load(tmp_path / "ours.zarr")
    np.testing.assert_array_equal(again.chi, chi.chi)
    assert str(again.top(1, "full", decode=Letters())[0]) == str(most)
    chi.page(tmp_path / "page.html")
    assert "loss of train" in (tmp_path / "page.html").read_text(encoding="utf-8")
    as_dict = {"a head": tmp_path / "samples_l0h1.zarr"}
    np.testing.assert_array_equal(pt.from_devinterp(as_dict, phi="train").chi[0], chi.chi[1])
    store(tmp_path / "samples_l1h0.zarr", n_beta=31.0)
    with pytest.raises(pt.PatterningError, match=r"n_beta is 30.0 for 'full' and 31.0 for 'l1h0'"):
        pt.from_devinterp(tmp_path, phi="train")


def test_with_its_task_there_are_weights(tmp_path: Path) -> None:
    tokens = torch.from_numpy(np.concatenate([TEXTS["train"], TEXTS["code"][::-1]]))
    task = pt.Task(LanguageModel(LanguageConfig(13, T + 1, 1, 2, 8)), next_token_losses, tokens)
    chi = pt.from_devinterp(store(tmp_path / "l0h1.zarr"), task, phi="train")
    assert chi.row.tolist() == np.repeat([5, 4, 3], T).tolist()  # found by their tokens
    assert chi.data["free_coordinates"].values.tolist() == [find_component(task.module, "l0h1").count(task.module)]
    weights = chi.invert({"loss of train": -1}).weights(0.3, force=True)
    assert (weights.rho[:3] == 1).all()  # rows that were not probed
    row, position = 3, int(np.argmax(SLOPES["code"].reshape(ROWS, T)[2]))
    assert weights.rho[row, position] == weights.rho.max()  # more weight on what falls with φ lowers it
    with pytest.raises(pt.PatterningError, match="row 0 of devinterp's probe rows is no row of the task's data"):
        pt.from_devinterp(tmp_path / "l0h1.zarr", pt.Task(task.module, next_token_losses, tokens[:3]), phi="train")
    other = pt.Task(nn.Linear(2, 2), lambda model, x: model(x).square().mean(1), torch.ones(3, 2))
    with pytest.raises(pt.PatterningError, match=r"5 predicted tokens each, and the task 1"):
        pt.from_devinterp(tmp_path / "l0h1.zarr", other, phi="train")


def table(values: np.ndarray, names: list[str]) -> xr.DataTree:
    """χ (tokens, restrictions) in the layout of devinterp's `susceptibilities`."""
    rows, places = np.meshgrid(np.arange(ROWS), np.arange(1, T + 1), indexing="ij")
    flat = {"dataset_id": np.zeros(ROWS * T, int), "batch": rows.ravel(), "target_position": places.ravel()}
    sus = xr.Dataset(
        {"sus": (("sus_flat", "wr"), values)},
        coords={key: ("sus_flat", column) for key, column in flat.items()} | {"wr": names},
        attrs={"dataset_id_to_name": ["code"]},
    )
    context = xr.Dataset({"input_ids": ("ctx_flat", TEXTS["code"].ravel())}, attrs={"dataset_id_to_name": ["code"]})
    return xr.DataTree.from_dict({"/susceptibilities": sus, "/context": context})


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")  # of the strings that are written
@pytest.mark.parametrize("stored", [False, True])
def test_a_table_without_errors_says_so(tmp_path: Path, stored: bool) -> None:
    values = np.random.default_rng(1).normal(size=(ROWS * T, 2))
    tree = table(values, ["l0h0", "l1h0"])
    if stored:
        tree.to_zarr(tmp_path / "sus.zarr", zarr_format=3, consolidated=False)
    chi = pt.load(tmp_path / "sus.zarr") if stored else pt.from_devinterp(tree)
    np.testing.assert_array_equal(chi.chi, values.T)  # devinterp's own numbers
    assert chi.estimator == {"l0h0": "devinterp2", "l1h0": "devinterp2"}
    assert np.isnan(chi.standard_error).all()
    assert np.isnan(chi.half_width()).all()
    assert np.isnan(list(chi.reliability.values())).all()
    example = chi.top(1, "l1h0", decode=Letters())[0]
    assert "(error unknown)" in str(example)
    assert example.text
    said = str(chi)
    assert said.count("(error unknown)") == 2
    assert "errors and reliability are unknown" in said
    np.testing.assert_allclose(chi.rows().chi, values.T.reshape(2, ROWS, T).mean(2))
    assert np.isnan(chi.rows().standard_error).all()
    chi.page(tmp_path / "page.html")
    with pytest.raises(pt.PatterningError, match="hold NaN or infinite"):
        chi.modes()
    with pytest.raises(pt.PatterningError, match="nβ of this χ is not known"):
        chi.invert({"l1h0": -1})
    known = pt.from_devinterp(tree, n_beta=30)
    plan = known.invert({"l1h0": -1})
    assert plan.refused == "the reliability of χ is not known (l1h0)"
    assert "(error unknown)" in str(plan.predicted["l1h0"])
    assert plan.predicted["l1h0"].value < 0
    known.save(tmp_path / "ours.zarr")
    np.testing.assert_array_equal(pt.load(tmp_path / "ours.zarr").chi, known.chi)


def test_what_cannot_serve_is_refused_by_name(tmp_path: Path) -> None:
    path = store(tmp_path / "samples.zarr")
    bad = X.copy()
    bad[2, 7] = np.nan
    for message, call in (
        ("say whose mean loss φ is, phi='train'", lambda: pt.load(path)),
        ("no losses of 'test': they have train, code", lambda: pt.from_devinterp(path, phi="test")),
        ("24 draws a chain, of which 22 are skipped", lambda: pt.from_devinterp(path, phi="train", skip_draws=22)),
        ("n_beta is stored with the draws", lambda: pt.from_devinterp(path, phi="train", n_beta=3)),
        ("are not complete", lambda: pt.from_devinterp(store(tmp_path / "half.zarr", {"completed": 0}), phi="train")),
        ("no store of draws", lambda: pt.from_devinterp(store(tmp_path / "else.zarr", {"metadata": 3}), phi="train")),
        ("neither a store of devinterp's draws", lambda: pt.from_devinterp(tmp_path / "nothing")),
        ("without draws: phi", lambda: pt.from_devinterp(table(np.ones((15, 1)), ["a"]), phi="train")),
        ("holds no susceptibilities", lambda: pt.load(tmp_path / "nothing")),
    ):
        with pytest.raises(pt.PatterningError, match=message):
            call()
    broken = pt.from_devinterp(store(tmp_path / "broken.zarr", x=bad), phi="train")
    assert "chain 2: a loss is NaN or infinite at draw 7" in str(broken)
    kept = np.delete(X, 2, axis=0).var(axis=1, ddof=1).mean() / X.var(axis=1, ddof=1).mean()
    np.testing.assert_allclose(broken.chi[0], kept * exact("train", "code"), rtol=1e-5, atol=1e-6)
    hot = pt.from_devinterp(store(tmp_path / "hot.zarr", noise_level=0.5, num_burnin_steps=0), phi="train")
    assert any("noise_level is 0.5" in line for line in hot.warnings)
    assert any("no burn-in" in line for line in hot.warnings)
