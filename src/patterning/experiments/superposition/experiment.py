"""Superposition: which shape does a small network learn? Chosen by data, and foretold by a table of free energies.

Noisy training of the toy model of superposition ends as a hexagon or as one of six pentagons. The free-energy gap,
sampled around these seven solutions, gives weights for the 24 groups of data that favour one of them
(docs/results/superposition.md).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from patterning.core.arrays import Floats
from patterning.core.plain import Document
from patterning.core.settings import Frozen
from patterning.experiments.superposition.page import LEGEND, drawings, figure, sections
from patterning.experiments.superposition.subject import SuperpositionSubject
from patterning.intervention.direction import Direction
from patterning.study.arms import Rival
from patterning.study.bench import Bench
from patterning.study.free_energies import ChainSettings, ShareGap, free_energies
from patterning.study.run import Study
from patterning.study.seeds import Seeds
from patterning.study.settings import StudySettings
from patterning.study.subject import Runs
from patterning.tasks import superposition as toy

DRAWN = 24
"""Runs of each arm whose weights are kept in `results.json`, for the page to draw."""


class Training(Frozen):
    """Noisy training, as `SuperpositionSubject` has it."""

    learning_rate: float = Field(default=0.3, gt=0, lt=1)
    steps: int = Field(default=4000, ge=1)
    quiet_steps: int = Field(default=200, ge=1)
    init_scale: float = Field(default=0.1, gt=0)


class SuperpositionConfig(StudySettings):
    """The directions are the shapes that are asked for: "hexagon", or "pentagon-3" for the one without its third."""

    experiment: Literal["superposition"] = "superposition"
    n_beta: float = Field(default=300.0, gt=0)
    train: Training = Training()
    sampling: ChainSettings

    @property
    def seed_ranges(self) -> Seeds:
        """The chains' seed is apart from those of training, which draw noise from the same stream."""
        return replace(super().seed_ranges, chains=range(self.sampling.seed, self.sampling.seed + 1))


CONFIG = SuperpositionConfig


def study(config: SuperpositionConfig) -> Study:
    """What `run_study` runs."""
    return Study(
        SuperpositionSubject(targets=config.directions, n_beta=config.n_beta, **config.train.model_dump()),
        {name: ShareGap(name, config.sampling) for name in toy.SOLUTIONS},
        rivals=lambda _, directions: rivals(config, directions),
        more=lambda bench, runs: more(config, bench, runs),
        sections=sections,
        drawings=drawings,
        legend=LEGEND,
        figure=figure,
    )


def rivals(config: SuperpositionConfig, directions: Mapping[str, Direction]) -> dict[str, Rival]:
    """A plain heuristic for each ask, and what of the gap is left when the heuristic's part is taken out of it."""
    result = dict[str, Rival]()
    for name, direction in directions.items():
        alpha, s = config.candidates(name)[0].alpha, direction.s
        if name == "hexagon":
            ramp = np.tile(np.linspace(-1, 1, toy.QUARTERS), toy.FEATURES)
            rest = _scaled(s - (s @ ramp) / (ramp @ ramp) * ramp)
            result["heuristic: ramp towards large μ"] = Rival(1 + alpha * ramp, facts={"ask": name})
            result["hexagon, orthogonal to the ramp"] = Rival(1 + alpha * rest, kind="partial")
            result["hexagon, orthogonal, reversed"] = Rival(1 - alpha * rest, kind="partial")
        else:
            half = np.ones((toy.FEATURES, toy.QUARTERS))
            half[toy.SOLUTIONS.index(name) - 1] = 0.5
            within = s.reshape(half.shape) - s.reshape(half.shape).mean(axis=1, keepdims=True)
            rho = half.ravel() / half.mean()
            result[f"heuristic: half of feature {name[-1]}"] = Rival(rho, facts={"ask": name})
            result[f"{name}, frequencies held"] = Rival(1 + alpha * _scaled(within.ravel()), kind="partial")
    return result


def _scaled(s: Floats) -> Floats:
    return s / np.abs(s).max()


def more(config: SuperpositionConfig, bench: Bench, runs: Mapping[str, Runs]) -> Document:
    """The pilots' end states, the chains around the solutions, and columns of W of the first runs of each arm."""
    columns = {name: np.round(part.curves["w"][:DRAWN, -1, : 2 * toy.FEATURES], 3) for name, part in runs.items()}
    return free_energies(bench, config.sampling).facts() | {"columns": columns}


_DEMO: Document = {
    "pilots": 400,
    "pilot_seed": 0,
    "seeds": 200,
    "first_seed": 1000,
    "sampling": {
        "localization": 30.0, "step_size": 5e-4, "chains": 32, "steps": 4000, "burn_in": 800, "steps_between_draws": 10,
        "seed": 2000,
    },
    "directions": ("hexagon", "pentagon-3"),
    "ways": ("up",),
    "strengths": ({"policy": "linear", "alpha": 0.6},),
    "strengths_of": {"pentagon-3": ({"policy": "linear", "alpha": 0.8},)},
    "permuted_draws": 3,
}  # fmt: skip

PRESETS: dict[str, Document] = {
    "demo": _DEMO,
    "long": _DEMO | {"train": {"steps": 16_000}},
    "fine": _DEMO | {"train": {"steps": 12_000, "learning_rate": 0.1}},
}
"""`long` trains four times as long as `demo`; `fine` as long (learning rate × steps) in steps a third as large."""
DEFAULT = "demo"
