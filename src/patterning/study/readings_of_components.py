r"""Directions from χ of a model's components: along the mode that is the structure, and by the full χ†.

χ of every component is sampled for the tokens of some rows (`response.components`), around a checkpoint of the first
pilot run. Its modes, and which of them is the structure, are found by `response.modes`; what is known on the sampled
tokens enters a predictor from the frozen model's activations (`response.predictor`) as Gaussian rank scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from patterning.core.arrays import Bools, Floats
from patterning.core.errors import PatterningError
from patterning.core.plain import Facts
from patterning.core.settings import Frozen
from patterning.core.task import Task
from patterning.intervention.solve import solve
from patterning.intervention.weights import gaussian_scores
from patterning.models.components import list_components
from patterning.models.language import next_token_losses
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.components import ComponentResponse, component_response
from patterning.response.modes import ModeChoice, Modes, Transform, find_modes, induction_mode
from patterning.response.one_component import Estimator, PhiOf
from patterning.study.bench import Bench, Found
from patterning.study.readings_of_tokens import Pilot, pilots_of, token_subject
from patterning.study.subject import Ints, Parameters
from patterning.study.token_jobs import OnAllTokens, predict_all


class ComponentSampling(Frozen):
    """χ at a checkpoint: `probe_rows` training rows that stand for all, gradients from `rows` of them.

    `phi`: whose loss the components' φ is, the probed rows' or that of all `rows` (`component_response`). `modes`:
    "rank" turns each row of χ into Gaussian scores before its modes are found (χ is heavy-tailed).
    """

    rows: int = Field(ge=8)
    probe_rows: int = Field(ge=4)
    n_beta: float = Field(gt=0)
    localization: float = Field(gt=0)
    step_size: float = Field(gt=0)
    chains: int = Field(ge=2)
    draws: int = Field(ge=8)
    burn_in: int = Field(ge=0)
    steps_between_draws: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    rounds: int = Field(default=1, ge=1)
    reliability: float = Field(default=0.9, gt=0, lt=1)
    estimator: Estimator = "pathwise"
    phi: PhiOf = "data"
    modes: Transform = "rank"


@dataclass(frozen=True)
class Probes:
    """The probed training rows, `rows` (r,), and labels (n,) of their n = r (t - 1) predictions.

    `data` (d,) are the rows that the chains' gradients are taken on; `places` (r,) says where the probes lie in them.
    """

    rows: Ints
    data: Ints
    places: Ints
    row_of: Ints
    groups: Mapping[str, Bools]
    domains: Mapping[str, Bools]


@dataclass(frozen=True)
class Components:
    """χ (k, n) of the components at a checkpoint, with its halves (2, k, n), modes, and the mode of the structure."""

    pilot: Pilot
    step: int
    probes: Probes
    names: tuple[str, ...]
    response: ComponentResponse
    chi: Floats
    halves: Floats
    modes: Modes
    choice: ModeChoice
    heads: tuple[str, ...]

    @property
    def anchor(self) -> Parameters:
        """w* (P,)."""
        return self.pilot.anchor(self.step)

    @property
    def mode(self) -> Floats:
        """Score (n,) of the structure's mode, turned to be higher on the tokens that the structure serves."""
        return self.choice.direction(self.modes)

    @property
    def head_chi(self) -> Floats:
        """Mean χ (n,) of the structure's heads, each in units of its own standard deviation over samples."""
        rows = [self.names.index(name) for name in self.heads]
        return (self.chi[rows] / self.chi[rows].std(axis=1, keepdims=True)).mean(axis=0)


def choose_probes(bench: Bench, sampling: ComponentSampling) -> Probes:
    """Training rows for χ."""
    subject = token_subject(bench)
    data = subject.stand_for_all(sampling.rows)
    places = subject.stand_for_all(sampling.probe_rows, data)
    rows = data[places]
    per_row = subject.tokens.shape[1] - 1
    groups, domains = (
        {name: label[rows].ravel() for name, label in every.items()} for every in (subject.groups, subject.domains())
    )
    return Probes(rows, data, places, np.repeat(np.arange(len(rows)), per_row), groups, domains)


def read_components(bench: Bench, sampling: ComponentSampling, stage: str) -> Components:
    """χ of every component at a stage of the first pilot, its modes and which is the structure's; read once."""
    return bench.once(("components", sampling, stage), lambda: _read(bench, sampling, stage))


def _read(bench: Bench, sampling: ComponentSampling, stage: str) -> Components:
    subject, pilot, probes = token_subject(bench), pilots_of(bench)[0], choose_probes(bench, sampling)
    step = pilot.stages.at[stage]
    task = Task(subject.network(pilot.anchor(step)), next_token_losses, subject.tokens[torch.from_numpy(probes.data)])
    task = task.to(subject.device)
    anchor = torch.from_numpy(pilot.anchor(step)).to(task.device)
    chains = ChainConfig(
        sampling.chains, sampling.draws, sampling.burn_in, sampling.steps_between_draws, sampling.batch_size,
        pilot.seed,
    )  # fmt: skip
    response = component_response(
        task, anchor, list_components(task.module), SGLD(sampling.n_beta, sampling.localization, sampling.step_size),
        chains, probes=torch.from_numpy(probes.places), estimator=sampling.estimator, phi=sampling.phi,
        reliability=sampling.reliability, rounds=sampling.rounds, pool=bench.pool,
    )  # fmt: skip
    names = tuple(response.by_component)
    chi = response.chi()
    halves = np.stack([part.susceptibility.halves[:, 0] for part in response.by_component.values()], axis=1)
    modes = find_modes(chi, halves, names, transform=sampling.modes)
    scored = {name: value for name, value in subject.head_scores(pilot.curves).items() if name in names}
    choice = induction_mode(modes, scored, probes.groups[subject.served], probes.row_of)
    heads = tuple(name for name in subject.heads(pilot.curves) if name in names)
    if not heads:
        raise PatterningError(f"χ of none of the heads {', '.join(subject.heads(pilot.curves))} could be sampled")
    return Components(pilot, step, probes, names, response, chi, halves, modes, choice, heads)


@dataclass(frozen=True)
class _Target:
    """A direction on the probed tokens, (n,): what it is, and why it should not be used."""

    s: Floats
    what: str
    problem: str = ""
    facts: Facts = field(default_factory=dict)


def _mode(read: Components) -> _Target:
    problem = ""
    if not read.choice.agrees:
        problem = "loadings and scores do not pick one and the same mode as the structure's"
    elif not read.choice.above_noise:
        problem = "no mode of χ is above its noise"
    return _Target(read.mode, f"score of mode {read.choice.index + 1}", problem)


def _other_mode(read: Components) -> _Target:
    index = 1 if read.choice.index == 0 else 0
    s = np.sign(read.choice.candidates[index].enrichment or 1.0) * read.modes.scores[index]
    return _Target(s, f"score of mode {index + 1}, turned to be higher on the tokens that the structure serves")


def _full(read: Components) -> _Target:
    """χ† dμ for dμ = -1 standard deviation of its row on each head of the structure, 0 elsewhere: a lower ⟨φ⟩ is more.

    Raises `PatterningError` where nothing is above the noise.
    """
    n = read.chi.shape[1]
    heads = [read.names.index(name) for name in read.heads]
    target = np.zeros(len(read.names))
    target[heads] = -read.chi[heads].std(axis=1)
    noise = (read.halves[0] - read.halves[1]) / 2
    solution = solve(read.chi, np.full(n, 1 / n), target, 1.0, noise=noise)
    facts = {"rank": solution.rank, "condition": solution.condition}
    return _Target(solution.s, f"lower ⟨φ⟩ of {', '.join(read.heads)}, all else held", "", facts)


TARGETS = {"mode": _mode, "full": _full, "other-mode": _other_mode}


@dataclass(frozen=True)
class OfComponents:
    """A direction from χ of the components at `stage`, predicted on every token.

    `what`: "mode" is the score of the structure's mode, "full" the full χ† for its heads, "other-mode" the largest
    other mode. Refused where `mode` is not one mode by its two signs, where nothing of χ is above its noise, or where
    the predictor's R² on rows held out is under `min_r2`. `random`: seeds of random functions of the same activations
    (`random_functions`).
    """

    what: str
    stage: str
    sampling: ComponentSampling
    min_r2: float = 0.2
    random: tuple[int, ...] = ()
    wanted: Mapping[str, float] | None = field(default=None, hash=False)

    def read(self, name: str, bench: Bench) -> Found:
        """Raises `PatterningError` where there is no direction."""
        targets, on_all = self._predicted(bench)
        target = targets[self.what]
        if isinstance(target, PatterningError):
            raise target
        place = [key for key, one in targets.items() if isinstance(one, _Target)].index(self.what)
        r2 = float(on_all.r2[place])
        problem = target.problem
        if not problem and not r2 >= self.min_r2:
            problem = f"the predictor's held-out R² is {r2:.2f}, under min_r2 {self.min_r2:g}"
        notes = [f"predicted on all tokens, held-out R² {r2:.2f}", *([f"forced: {problem}"] if problem else [])]
        notes += pilots_of(bench)[0].stages.notes
        direction = bench.direction(
            name, f"{target.what}, read {self.stage}", on_all.predicted[place].astype(np.float64),
            refused=problem or None, wanted=self.wanted, r2=r2, stage=self.stage, notes=notes, **target.facts,
        )  # fmt: skip
        return Found(direction)

    def random_functions(self, bench: Bench) -> NDArray[np.float32]:
        """Random functions (seeds, n, t - 1) of the activations: directions as smooth as a predicted one."""
        return self._predicted(bench)[1].random

    def _predicted(self, bench: Bench) -> tuple[dict[str, _Target | PatterningError], OnAllTokens]:
        """All targets of the stage: one pass over the text serves them all."""
        return bench.once(("predicted", self.sampling, self.stage, self.random), lambda: self._predict(bench))

    def _predict(self, bench: Bench) -> tuple[dict[str, _Target | PatterningError], OnAllTokens]:
        read = read_components(bench, self.sampling, self.stage)
        targets: dict[str, _Target | PatterningError] = {}
        for key, make in TARGETS.items():
            try:
                targets[key] = make(read)
            except PatterningError as error:
                targets[key] = error
        scores = np.stack([_gaussian(one.s) for one in targets.values() if isinstance(one, _Target)], axis=1)
        subject = token_subject(bench)
        return targets, predict_all(subject, bench.pool, read.anchor, read.probes.rows, scores, self.random, self.stage)


def _gaussian(s: Floats) -> Floats:
    return gaussian_scores(s, np.full(len(s), 1 / len(s)), np.ones(len(s), dtype=bool))
