"""Whole steps on tensors that hold no numbers: nothing can be read off, and no tensor of another device may come in."""

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from patterning.core.modules import copy_module
from patterning.core.task import Task
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior import chains
from patterning.posterior.chains import ChainConfig, StepNumbers, run_chains
from patterning.posterior.preconditioned import RMSPropSGLD
from patterning.posterior.sgld import SGLD
from patterning.response import adjoint
from patterning.response.moments import Tally
from patterning.response.pathwise import ProbeLoss, _WayBack
from patterning.response.way_back import DATA
from patterning.tasks.parentheses import make_parentheses
from patterning.training import language
from patterning.training.weighted import TrainConfig, TrainState, advance

META = torch.device("meta")
KERNEL = SGLD(30.0, 300.0, 1e-3)
CONFIG = LanguageConfig(vocabulary=11, context=8, layers=2, heads=2, width=8)
TOKENS = torch.randint(11, (24, 8), generator=torch.Generator().manual_seed(0))
TASK = Task(LanguageModel(CONFIG), next_token_losses, TOKENS)
ON_THE_HOST = ("base_weights", "draws", "_frequency")
COPIES = ("_to_copy", "copy_")


class Apart(TorchDispatchMode):
    """Refuses operations that mix devices, which the meta device alone would let pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = func._schema.name.removeprefix("aten::")
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor) and x.ndim]
        if name not in COPIES and len({x.device.type for x in given}) > 1:
            raise RuntimeError(f"{name} mixes devices")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def apart() -> Iterator[None]:
    with Apart():
        yield


def moved(what: Any) -> Any:
    """The same without numbers: tensors, modules, and what holds them; but for what the host knows of the data."""
    if isinstance(what, Tensor):
        return what.to(META)
    if isinstance(what, nn.Module):
        return copy_module(what, convert=False).to(META)
    if isinstance(what, Mapping):
        return {key: moved(part) for key, part in what.items()}
    if isinstance(what, list | tuple):
        return type(what)(moved(part) for part in what)
    if isinstance(what, Task | Restricted | Probe):
        other = copy(what)
        vars(other).update({key: moved(part) for key, part in vars(what).items() if key not in ON_THE_HOST})
        return other
    return what


def restricted(name: str) -> tuple[Restricted, Probe]:
    """A component and a probe of 5 rows."""
    free = Restricted(TASK, TASK.own_row(), name)
    _ = free.out_of_reach, free._bytes_per_sample  # both are found before any chain
    probe = moved(Probe(free, torch.arange(5), 4))
    return probe.restricted, probe


def test_the_checks_check(apart: None) -> None:
    x = torch.ones(3, device=META)
    for bad in (lambda: x + torch.ones(3), lambda: x[torch.tensor([0])], lambda: torch.ones(3, 3) @ x):
        with pytest.raises(RuntimeError):
            bad()
    for bad in (x.sum().item, x.tolist, x.cpu, lambda: bool(x.any())):
        with pytest.raises((RuntimeError, NotImplementedError)):
            bad()


@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("kernel", [KERNEL, RMSPropSGLD(30.0, 100.0, 1e-3)], ids=["sgld", "rmsprop"])
@pytest.mark.parametrize("name", ["l1h0", "full"])
def test_steps_of_chains_and_sums_of_draws(name: str, kernel, matched: bool, monkeypatch, apart: None) -> None:
    free, probe = restricted(name)
    monkeypatch.setattr(chains, "exclude", lambda *_: None)  # the look every 50 steps
    config = ChainConfig(chains=2, draws=4, burn_in=3, steps_between_draws=2, batch_size=4, matched=matched)
    first, one = torch.zeros(1, dtype=torch.int64, device=META), torch.ones(1, dtype=torch.float64, device=META)
    tally = Tally(2, 4, 2, probe.at_anchor.double(), one, first)
    seen = []

    def read(draw: int, flat: Tensor) -> None:
        with torch.no_grad():
            losses = probe(flat).double()
        tally.add(draw, losses.mean(1, keepdim=True), losses)
        seen.append(flat)

    trace = run_chains(free, free.anchor, kernel, config, read)
    assert [part.device for part in (trace.losses, *seen)] == [META] * 5
    with pytest.raises(NotImplementedError):
        tally.moments()  # here, and no sooner, something is read off


@pytest.mark.parametrize("phi", ["probes", "other rows", "data"])
def test_the_way_back(phi: str, monkeypatch: pytest.MonkeyPatch, apart: None) -> None:
    free, probe = restricted("l1h0")
    monkeypatch.setattr(adjoint, "left_band", lambda *_: {})
    config = ChainConfig(2, 3, 4, 3, 4, matched=phi == "data", antithetic=True)
    numbers = StepNumbers(free.base_weights, config, 0, free.anchor)
    positions, _ = adjoint.positions_of(free, KERNEL, config, numbers, 1.0, 0)
    q = torch.from_numpy(probe.samples.weight).to(META)
    reading = DATA if phi == "data" else ProbeLoss(probe, q, same=phi == "probes")
    found = _WayBack(free, probe, q, KERNEL, config, numbers).gather(positions, reading, 0)
    assert [part.device for part in found] == [META] * 4
    assert found[0].shape == (4, len(probe))


def test_a_derivative_of_the_probes_and_the_gradient_of_the_data(apart: None) -> None:
    free, probe = restricted("l0 mlp")
    assert adjoint.mean_gradient(free).device == META
    assert probe.along(free.anchor[None], free.anchor[None])[1].shape == (1, len(probe))


def test_steps_of_training(apart: None) -> None:
    task, seen = moved(TASK), []
    state = TrainState(0, *(torch.zeros(3, TASK.num_parameters, device=META) for _ in range(3)))
    end = advance(task, TrainConfig(9, 8), state, [0, 1, 2], torch.rand(24), 9, lambda _, loss: seen.append(loss))
    assert [end.flat.device, *(loss.device for loss in seen)] == [META] * 10  # three epochs of three


def test_steps_of_brackets_whose_rows_differ_in_length(apart: None) -> None:
    task = make_parentheses(max_length=10, draws=200, layers=2, heads=2, width=8, test_strings=40)
    there = copy(task)
    vars(there).update(train=copy(task.train))
    object.__setattr__(there.train, "device", META)
    for name in ("tokens", "last", "targets"):
        vars(there.train).pop(name, None)  # made anew, there
    state = TrainState(0, *(torch.zeros(2, task.num_parameters, device=META) for _ in range(3)))
    assert advance(there, TrainConfig(4, 8), state, [0, 1], torch.rand(len(task.base_weights)), 4).flat.device == META


def test_steps_of_a_language_model(apart: None) -> None:
    training = language.LanguageTraining(3, 4, 1e-3, 1)
    run = language._start(CONFIG, training, 0, META)
    for _ in range(3):
        language._advance(run, training, TOKENS[:4].to(META), torch.ones(4, 7, device=META))
    assert run.step == 3
