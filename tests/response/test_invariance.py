"""χ does not depend on how the work is cut, on who does it, or, beyond its error, on the precision of arithmetic."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patterning.core.store import RunFolder
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.models import restricted
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.posterior import short_chain
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response import capability
from patterning.response.components import ComponentResponse, component_response

NAMES = ["l0h1", "l1h0", "l1 mlp"]
CHAINS = ChainConfig(chains=4, draws=8, burn_in=2, steps_between_draws=1, batch_size=3, seed=5, matched=True)


def make_task(*, bfloat16: bool = False) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LanguageModel(LanguageConfig(vocabulary=7, context=5, layers=2, heads=2, width=8))
        for p in model.parameters():
            p.data = p + 0.1 * torch.randn(p.shape)
        tokens = torch.randint(7, (8, 5))
    return Task(model, next_token_losses, tokens, bfloat16=bfloat16)


def ask(estimator: Any, task: Task | None = None, **options: Any) -> ComponentResponse:
    task = task or make_task()
    anchor = task.flatten(task.module).to(next(task.module.parameters()).dtype)
    kernel = SGLD(n_beta=30.0, localization=1000.0, step_size=2e-4)
    chains = options.pop("chains", CHAINS)
    return component_response(task, anchor, NAMES, kernel, chains, estimator=estimator, batches=2, **options)


@cache
def plain(estimator: str) -> ComponentResponse:
    """What every test compares with."""
    return ask(estimator)


def assert_same(found: ComponentResponse, truth: ComponentResponse, tolerance: float) -> None:
    """Equal χ, to `tolerance` of the size of a row."""
    for row, true in zip(found.chi(), truth.chi(), strict=True):
        assert np.abs(row - true).max() <= tolerance * np.abs(true).max()


@pytest.mark.parametrize("estimator", ["covariance", "pathwise"])
@pytest.mark.parametrize(
    "cells", [pytest.param(1, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.slow), 10**6]
)
def test_any_cut_of_probes_and_minibatches(estimator: str, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = plain(estimator)
    monkeypatch.setattr(restricted, "CELLS_AT_ONCE", {"cpu": cells, "other": cells})
    # 20: replicas take turns at probes, cut in 5 and 3 rows, and share minibatches, cut in single rows; 10^6: no cut
    monkeypatch.setattr(restricted, "ENOUGH_CELLS", cells)
    for module, name in ((short_chain, "ROWS"), (capability, "ROWS"), (capability, "ROWS_ON_THE_WAY")):
        monkeypatch.setattr(
            module, name, 4
        )  # what is tried before takes no share in χ, and would take most of the time
    # 1e-6 of a loss of 2 nats is 1e-5 of its deviations
    assert_same(ask(estimator), truth, 2e-5)


@pytest.mark.parametrize("estimator", ["covariance", "pathwise"])
def test_chains_batched_or_in_rounds(estimator: str) -> None:
    halves = ask(estimator, chains=replace(CHAINS, chains=2), rounds=2)
    assert_same(halves, plain(estimator), 2e-5)


@pytest.mark.long
def test_one_or_two_workers_are_the_same_bits(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.create()
    with Workers(run, 2) as pool:
        many = ask("pathwise", pool=pool)
    np.testing.assert_array_equal(many.chi(), plain("pathwise").chi())


@pytest.mark.parametrize("estimator", ["covariance", pytest.param("pathwise", marks=pytest.mark.long)])
def test_float64_and_bfloat16_matrix_products_stay_inside_the_error_bar(estimator: str) -> None:
    truth, exact = plain(estimator), make_task()
    exact.module.double()
    assert_same(ask(estimator, exact), truth, 1e-4)
    coarse = ask(estimator, make_task(bfloat16=True))
    differences = np.abs(coarse.chi() - truth.chi()) / truth.standard_error()
    assert 0 < np.median(differences) < 0.5  # 8 draws: here and there an error bar is small by chance
    assert coarse.fingerprint != truth.fingerprint
