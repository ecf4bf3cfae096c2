"""What is done on the pretended device, in a process of its own: prints the answer of each check as JSON.

`python checks.py` computes every one; `test_pretend.py` runs it and judges the answers.
"""

import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import patterning as pt
from device import pretend
from patterning.core.anchors import given_module
from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.models.probe import Probe
from patterning.models.restricted import Restricted
from patterning.posterior import chains
from patterning.posterior.chains import ChainConfig, run_chains
from patterning.posterior.preconditioned import RMSPropSGLD
from patterning.posterior.sgld import SGLD
from patterning.response.pathwise import pathwise_chains
from patterning.response.sample import OfLosses, sample_draws
from patterning.response.way_back import DATA
from patterning.tasks.parentheses import make_parentheses
from patterning.training.language import LanguageTraining, train_language
from patterning.training.weighted import TrainConfig, advance, init_state

KERNEL = SGLD(30.0, 300.0, 1e-3)
CONFIG = LanguageConfig(vocabulary=11, context=8, layers=2, heads=2, width=8, unembed_bias=True)
Answer = dict[str, Any]


def language() -> Task:
    """A small language model on 40 rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokens = torch.randint(11, (40, 8))
        return Task(LanguageModel(CONFIG), next_token_losses, tokens)


def classifier() -> Task:
    """A small classifier whose rows differ in weight; every third is masked."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        x, y, weights = torch.randn(30, 6), torch.randint(3, (30,)), torch.rand(30)
    real = torch.arange(30) % 3 > 0
    return Task(net, masked_loss, (x, y, real), weights)


def masked_loss(module: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy, and which rows count."""
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none"), batch[2]


def by_the_same_numbers(measure: Callable[[str | None], Any]) -> Answer:
    """χ there, and χ here of chains that draw the same numbers: the largest difference, in standard errors of χ."""
    there = measure(pretend.NAME)
    chains.NUMPY_KINDS = ()  # the CPU draws as other devices do
    try:
        here = measure(None)
    finally:
        chains.NUMPY_KINDS = ("cpu",)
    scale = np.median(here.standard_error)
    return {
        "difference": float(np.abs(there.chi - here.chi).max() / np.abs(here.chi).max()),
        "in errors": float(np.abs(there.chi - here.chi).max() / scale) if scale else 0.0,
        "chi": float(np.abs(here.chi).max()),
        "estimators": [*there.estimator.values()],
    }


def measured(task: Task, estimator: str, **settings: Any) -> Answer:
    """`by_the_same_numbers` of `pt.measure`."""
    common = {"sampler": KERNEL, "chains": 2, "draws": 6, "burn_in": 6, "batch_size": 8, "budget": 1, "progress": False}
    return by_the_same_numbers(
        lambda device: pt.measure(task, estimator=estimator, device=device, **(common | settings))  # type: ignore[arg-type]
    )


def pathwise() -> Answer:
    """χ of a head, an MLP and the embedding, φ of all data."""
    return measured(language(), "pathwise", components=["l1h0"], draws=4, probes=range(6))


def covariance() -> Answer:
    """χ of a head."""
    return measured(language(), "covariance", components=["l1h0"], probes=range(8))


def first_look() -> Answer:
    """χ of a head, without chains."""
    return measured(language(), "first-order", components=["l1h0"], probes=range(8))


def observables() -> Answer:
    """χ of a function of the module, with a mask and base weights."""
    return measured(classifier(), "auto", observables={"size": lambda module: module[0].weight.square().sum()})


def calibrated() -> Answer:
    """γ and ε found there."""
    return measured(classifier(), "auto", sampler="calibrate", batch_size=16)


def by_workers() -> Answer:
    """A task comes back from there whole: its key is the same, and so are its rows."""
    task = classifier()
    there = task.to(pretend.NAME)
    back = there.to("cpu")
    net = nn.Linear(2, 1)  # it must outlive its task: whether it was trained since is asked of any copy
    own = Task(net, lambda module, batch: module(batch[0])[:, 0].square(), (torch.ones(4, 2),))
    return {
        "given": given_module(own.to(pretend.NAME)) is net,
        "key": task.fingerprint == there.fingerprint == back.fingerprint,
        "place": str(there.device),
        "rows": torch.equal(there.base_weights, task.base_weights),
        "weights": torch.equal(back.own_row(), task.own_row()),
    }


def waits_of_chains() -> Answer:
    """What a GPU would wait for in chains of 8, 40 (100 and 150) steps, which are looked at every 50, by kernel."""
    task = classifier().to(pretend.NAME)
    anchor, answer = task.own_row(), {}
    many = (KERNEL, True, (8, 40, 100, 150))
    for kernel, matched, steps in (many, (KERNEL, False, (8, 40)), (RMSPropSGLD(30.0, 100.0, 1e-3), True, (8, 40))):
        configs = [ChainConfig(2, 4, count - 8, 2, 4, matched=matched) for count in steps]
        answer[f"{type(kernel).__name__}, matched {matched}"] = waits(
            configs, lambda c, kernel=kernel: run_chains(task, anchor, kernel, c, lambda *_: None)
        )
    return answer


def waits_of_draws() -> Answer:
    """The same where every step is a draw that is read and summed: 8 and 24 steps."""
    task = language().to(pretend.NAME)
    free = Restricted(task, task.own_row(), "l1h0")
    phis: dict[str, Any] = {"loss": OfLosses(lambda losses: losses.mean(1)), "size": lambda flat: flat.square().sum(1)}
    configs = [ChainConfig(2, draws, 0, 1, 4) for draws in (8, 24)]
    return {"draws": waits(configs, lambda c: sample_draws(free, free.anchor, phis, KERNEL, c))}


def waits_of_pathwise() -> Answer:
    """The same of chains and the way back, by φ: 6 and 12 steps."""
    task = language().to(pretend.NAME)
    free = Restricted(task, task.own_row(), "l1h0")
    probe = Probe(free, torch.arange(6), 4)
    configs = [ChainConfig(2, draws, 0, 3, 4, matched=True, antithetic=True) for draws in (2, 4)]
    return {
        name: waits(configs, lambda c, own=own: pathwise_chains(free, probe, probe.samples.weight, KERNEL, c, own))
        for name, own in (("probes", None), ("data", {"loss": DATA}))
    }


def waits_of_training() -> Answer:
    """The same of training, in one epoch: 4 and 12 steps."""
    task, steps = language().to(pretend.NAME), (4, 12)

    def adam(own: Any, until: int) -> None:
        rho = torch.ones(len(own.base_weights))
        advance(own, TrainConfig(20, 2), init_state(own, [0, 1]), [0, 1], rho, until)

    def adamw(until: int) -> None:
        train_language(
            CONFIG, task.data.cpu(), None, LanguageTraining(until, 2, 1e-3, 2), seed=0, checkpoints=[],
            measure=lambda _: {}, device=pretend.NAME,
        )  # fmt: skip

    brackets = parentheses().to(pretend.NAME)
    return {
        "rows": waits(steps, lambda until: adam(task, until)),
        "brackets": waits(steps, lambda until: adam(brackets, until)),
        "language": waits(steps, adamw),
    }


def parentheses() -> Any:
    """Brackets, small."""
    return make_parentheses(max_length=10, draws=200, layers=2, heads=2, width=8, test_strings=40)


def brackets() -> Answer:
    """Losses of three runs of brackets there and here: the largest relative difference over 30 steps; answers agree."""
    here, runs = parentheses(), {}
    for task in (here, here.to(pretend.NAME)):
        seen: list[torch.Tensor] = []
        rho = torch.rand(3, len(here.base_weights), generator=torch.Generator().manual_seed(0))
        state = advance(task, TrainConfig(30, 8), init_state(task, [0, 1, 2]), [0, 1, 2], rho, 30,
                        lambda _step, loss, seen=seen: seen.append(loss.cpu()))  # fmt: skip
        runs[str(task.device)] = torch.stack(seen), task.measure(state.flat), state.flat.cpu()
    (a, measures, flat), (b, others, _) = runs.values()
    again = torch.tensor([[0, 5, 9], [1, 2, 3], [7, 7, 8]])
    width, cells = here.reaches(again[None])[0]
    plain, wider = here.losses(flat, again), here.losses_within(flat, again, (width + 1, cells + 3))
    return {
        "losses": float(((a - b) / a).abs().max()),
        "measures": max(float(np.abs(measures[name] - others[name]).max()) for name in measures),
        "wider": float((plain - wider).abs().max()),
    }


def languages() -> Answer:
    """Trained there and here: the largest difference of a parameter, and its size; from a killed run as well."""
    rows = language().data
    weights = torch.rand(40, 7, generator=torch.Generator().manual_seed(1))
    runs = [
        train_language(CONFIG, rows, weights, LanguageTraining(25, 6, 3e-3, 2), seed=3, checkpoints=[0, 25],
                       measure=lambda model: {"sum": model.embed.weight.detach().double().sum().cpu().numpy()},
                       device=place) for place in ("cpu", pretend.NAME)
    ]  # fmt: skip
    a, b = (run.final for run in runs)
    return {"difference": float((a - b).abs().max()), "size": float(a.abs().max()), "place": str(b.device)}


def fitted() -> Answer:
    """`pt.fit` there and here, with weights."""
    task = classifier()
    a, b = (pt.fit(task, None, 1, steps=30, batch_size=8, device=place) for place in (None, pretend.NAME))
    pairs = list(zip(a.parameters(), b.parameters(), strict=True))
    return {
        "difference": max(float((x - y).detach().abs().max()) for x, y in pairs),
        "place": str(next(b.parameters()).device),
    }


def a_loss_of_its_own() -> Answer:
    """A loss that holds a tensor elsewhere is refused, with the remedy."""
    weights = torch.ones(3)
    task = Task(
        classifier().module, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none") * weights[b[1]].clone(),
        (torch.randn(20, 6), torch.randint(3, (20,))),
    )  # fmt: skip
    try:
        task.to(pretend.NAME)
    except PatterningError as error:
        return {"refused": str(error)}
    return {"refused": ""}


def waits(settings: Sequence[Any], call: Callable[[Any], object]) -> list[int]:
    """How often a GPU would have waited in a call with each of the settings, after one that is not counted."""
    call(settings[0])
    found = []
    for one in settings:
        pretend.WAITS.clear()
        call(one)
        found.append(sum(pretend.WAITS.values()))
    return found


CHECKS = (
    pathwise, covariance, first_look, observables, calibrated, by_workers, waits_of_chains, waits_of_draws,
    waits_of_pathwise, waits_of_training, brackets, languages, fitted, a_loss_of_its_own,
)  # fmt: skip


def main() -> None:
    """Every check (or those named): its answer, or its error."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers: dict[str, Any] = {}
    for check in CHECKS:
        if len(sys.argv) < 2 or check.__name__ in sys.argv[1:]:
            begun = time.process_time()
            try:
                answers[check.__name__] = check()
            except Exception:
                answers[check.__name__] = {"error": traceback.format_exc()}
            print(f"{check.__name__}: {time.process_time() - begun:.1f} CPU s", file=sys.stderr, flush=True)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
