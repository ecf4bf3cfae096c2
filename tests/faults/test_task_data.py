"""Data and arguments of a task, of every kind: taken as they are meant, or refused in one sentence."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.supervised import ModuleTask
from patterning.core.task import Task
from patterning.models.components import find_component, list_components
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.components import component_response
from tests.faults.common import (
    CE,
    CHAINS,
    KERNEL,
    PAIRED,
    X,
    Y,
    chi,
    classify,
    linear_task,
    seeded,
)


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ((X.numpy(), Y.numpy()), 128),
        ((X.double().numpy(), Y.numpy().astype(np.int32)), 128),
        ((X.tolist(), Y.tolist()), 128),
        ((X.double(), Y), 128),
        ((X, Y, None), 128),
    ],
)
def test_data_of_any_kind_of_number(data, rows: int) -> None:
    task = Task(seeded(nn.Linear(6, 3)), lambda model, b: CE(model(b[0]), b[1].long()), data)
    assert len(task.base_weights) == rows
    np.testing.assert_allclose(chi(task).chi(), chi(linear_task()).chi(), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Task(nn.Linear(6, 3), classify, (["a"] * 128, Y)), "must be tensors, arrays or lists of numbers"),
        (lambda: Task(nn.Linear(6, 3), classify, None), "data must be tensors"),
        (lambda: Task(nn.Linear(6, 3), classify, [[1.0, 2.0], [3.0]]), "pad rows of unequal length"),
        (lambda: chi(linear_task(), probes=[0.5]), "probes must be row numbers"),
        (lambda: chi(linear_task(), probes=[3, 128]), "from 0 to 127"),
        (lambda: chi(linear_task(), probes=[3, 3]), "some rows twice"),
        (
            lambda: component_response(linear_task(), torch.zeros(5), ["full"], KERNEL, CHAINS),
            "must be a row of 21 floating point numbers",
        ),
        (
            lambda: component_response(linear_task(), nn.Linear(6, 3), ["full"], KERNEL, CHAINS),  # type: ignore[arg-type]
            "must be a row of 21 floating point numbers",
        ),
        (
            lambda: component_response(linear_task(), torch.full((21,), torch.nan), ["full"], KERNEL, CHAINS),
            "holds 21 NaN",
        ),
        (lambda: chi(linear_task(), ["weights"]), "use full, a parameter name"),
        (lambda: chi(linear_task(), observables={"component loss": lambda f: f[:, 0]}), "rename yours"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(call, message: str) -> None:
    with pytest.raises(PatterningError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_row_numbers_in_a_list_one_name_as_a_string_and_names_in_capitals() -> None:
    response = chi(linear_task(), "full", probes=[3, 5])
    assert response.rows.tolist() == [3, 5]
    from patterning.models.language import LanguageConfig, LanguageModel

    model = LanguageModel(LanguageConfig(layers=1, heads=2, width=8, context=8, vocabulary=9))
    assert find_component(model, "L0H1").name == "l0h1"
    with pytest.raises(PatterningError, match=", ".join(list_components(model)[:2])):
        find_component(model, "head 1")


def test_supervised_tasks_take_arrays_and_recurrent_modules_run_one_by_one() -> None:
    task = ModuleTask(nn.Linear(6, 3), CE, X.numpy(), Y.numpy())
    assert task.losses_on(X.numpy()[:4], Y[:4])(task.own_row()[None], torch.arange(4)[None]).shape == (1, 4)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.cell(x[:, None])[0][:, -1])

    recurrent = ModuleTask(seeded(Recurrent()), CE, X, Y)
    assert "one after the other" in " ".join(recurrent.notes)
    found = chi(recurrent, chains=PAIRED, estimator="auto").by_component["full"]
    assert np.isfinite(found.susceptibility.chi).all()


@pytest.mark.parametrize("estimator", ["covariance", "pathwise"])
def test_phi_of_held_out_rows(estimator: str) -> None:
    """Rows of base weight 0 are not trained or sampled on, and φ can be their loss."""
    weights = torch.ones(128)
    weights[96:] = 0
    task = Task(seeded(nn.Linear(6, 3)), classify, (X, Y), weights)
    kernel, long = SGLD(30, 100, 2e-3), ChainConfig(8, 60, 20, 4, 96, matched=True)

    def held_out(flat: Tensor) -> Tensor:
        return task.losses(flat, torch.arange(96, 128).expand(len(flat), -1)).mean(1)

    probes = torch.arange(96)
    own = chi(task, kernel=kernel, chains=long, probes=probes, phi=torch.arange(96, 128), estimator=estimator)
    by_hand = chi(task, kernel=kernel, chains=long, probes=probes, observables={"held": held_out}, estimator=estimator)
    np.testing.assert_allclose(own.chi(), by_hand.chi("held"), rtol=1e-3, atol=1e-8)
    assert abs(np.corrcoef(own.chi()[0], by_hand.chi()[0])[0, 1]) < 0.9  # φ of the probes is another one
