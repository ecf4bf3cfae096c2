"""χ at three checkpoints of the pilot run: reliability, modes, which one is induction, and what it says of the text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.experiments.induction.config import InductionConfig, Stage
from patterning.experiments.induction.direction import Direction
from patterning.experiments.induction.pilot import Pilot
from patterning.experiments.induction.text import Text, pieces, stratified
from patterning.models.components import list_components
from patterning.models.language import next_token_losses
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.response.components import COMPONENT_LOSS, ComponentResponse, component_response
from patterning.response.modes import ModeChoice, Modes, find_modes, induction_mode
from patterning.tasks.text.classes import token_classes
from patterning.training.language import load_language

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Probes:
    """The probed training rows: numbers (r,), domains (r,), and labels (n,) of their n = r (t - 1) predictions.

    `data` (d,) are the rows that the chains' gradients are taken on; `places` (r,) says where the probes lie in them.
    """

    rows: NDArray[np.int64]
    data: NDArray[np.int64]
    places: NDArray[np.int64]
    tokens: NDArray[np.int64]
    domains: NDArray[np.uint8]
    labels: dict[str, Bools]

    @property
    def row_of(self) -> NDArray[np.int64]:
        """Number of the probe row of each prediction, (n,)."""
        return np.repeat(np.arange(len(self.rows)), self.tokens.shape[1] - 1)


@dataclass(frozen=True)
class Reading:
    """χ (k, n) of one checkpoint with its halves (2, k, n), its modes, and the choice of the induction mode."""

    stage: Stage
    step: int
    anchor: torch.Tensor
    components: tuple[str, ...]
    chi: Floats
    halves: Floats
    modes: Modes
    choice: ModeChoice
    summary: dict[str, Any]

    @property
    def mode(self) -> Floats:
        """Score (n,) of the induction mode, turned towards "more"."""
        return self.choice.direction(self.modes)


def choose_probes(config: InductionConfig, text: Text) -> Probes:
    """Training rows for χ, stratified by domain."""
    data = stratified(text.train.domains, config.reading.rows)
    inside = stratified(text.train.domains[data], config.reading.probe_rows)
    rows = data[inside]
    tokens = text.train.tokens[rows]
    labels = token_classes(tokens, text.corpus.tokenizer)
    return Probes(
        rows, data, inside, tokens, text.train.domains[rows], {name: label.ravel() for name, label in labels.items()}
    )


def read_stages(config: InductionConfig, text: Text, probes: Probes, pilot: Pilot, pool: Workers) -> list[Reading]:
    """χ, modes and their meaning at every reading checkpoint."""
    return [_read(config, text, probes, pilot, stage, pool) for stage in pilot.at]


def _read(config: InductionConfig, text: Text, probes: Probes, pilot: Pilot, stage: Stage, pool: Workers) -> Reading:
    own, anchor = config.reading, pilot.anchor(pilot.at[stage])
    model = load_language(config.language, anchor)
    task = Task(model, next_token_losses, text.tokens[torch.from_numpy(probes.data)])
    found = component_response(
        task, anchor, list_components(task.module), SGLD(own.n_beta, own.localization, own.step_size),
        ChainConfig(
            own.chains, own.draws, own.burn_in, own.steps_between_draws, own.batch_size, config.pilot_seed, matched=True
        ),
        probes=torch.from_numpy(probes.places), estimator=own.estimator, phi=own.phi, reliability=own.reliability,
        rounds=own.rounds, pool=pool,
    )  # fmt: skip
    names = tuple(found.by_component)
    halves = np.stack([part.susceptibility.halves[:, 0] for part in found.by_component.values()], axis=1)
    modes = find_modes(found.chi(), halves, names, transform=own.modes)
    choice = induction_mode(modes, _scored(pilot, names), probes.labels["induction"], probes.row_of)
    reading = Reading(stage, pilot.at[stage], anchor, names, found.chi(), halves, modes, choice, {})
    reading.summary.update(_summary(reading, found, probes, pilot, text))
    return reading


def _scored(pilot: Pilot, names: tuple[str, ...]) -> dict[str, float]:
    return {name: value for name, value in pilot.prefix_matching.items() if name in names}


def _summary(reading: Reading, found: ComponentResponse, probes: Probes, pilot: Pilot, text: Text) -> dict[str, Any]:
    """Everything the page shows of a reading, as plain values."""
    modes, choice = reading.modes, reading.choice
    values = {"mode": reading.mode, "chi": head_chi(reading, pilot)}
    return {
        "stage": reading.stage,
        "step": reading.step,
        "components": list(reading.components),
        "reliability": found.reliability(),
        "estimator": {name: part.estimator for name, part in found.by_component.items()},
        "rise": {name: part.rise for name, part in found.by_component.items()},
        "r_hat": {name: part.diagnostics[COMPONENT_LOSS].r_hat for name, part in found.by_component.items()},
        "note": {name: part.note for name, part in found.by_component.items()},
        "excluded": [
            f"{name}, {reading.stage}: {why}"
            for name, part in found.by_component.items()
            for why in part.excluded.values()
        ],
        "singular_values": modes.singular_values,
        "shares": modes.shares,
        "noise_floor": modes.noise_floor,
        "stability_loadings": modes.stability_loadings,
        "stability_scores": modes.stability_scores,
        "loadings": modes.loadings,
        "choice": {key: value for key, value in asdict(choice).items() if key != "candidates"}
        | {"expressed": choice.expressed},
        "candidates": [asdict(candidate) for candidate in choice.candidates],
        "by_class": {
            key: {name: clustered_mean(value, label, probes.row_of) for name, label in _classes(probes).items()}
            for key, value in values.items()
        },
        "by_domain": {
            key: {name: clustered_mean(value, label, probes.row_of) for name, label in _domains(probes, text).items()}
            for key, value in values.items()
        },
        "tokens": token_page(reading.mode, probes, text),
    }


def head_chi(reading: Reading, pilot: Pilot) -> Floats:
    """Mean χ (n,) of the induction heads, each in units of its own standard deviation over samples."""
    rows = [reading.components.index(name) for name in pilot.induction_heads]
    return (reading.chi[rows] / reading.chi[rows].std(axis=1, keepdims=True)).mean(axis=0)


def _classes(probes: Probes) -> dict[str, Bools]:
    return {**probes.labels, "not induction": ~probes.labels["induction"]}


def _domains(probes: Probes, text: Text) -> dict[str, Bools]:
    each = np.repeat(probes.domains, probes.tokens.shape[1] - 1)
    return {name: each == i for i, name in enumerate(text.corpus.domains) if (each == i).any()}


def clustered_mean(values: Floats, label: Bools, rows: NDArray[np.int64]) -> dict[str, float]:
    """Mean of `values` (n,) where `label`, and its standard error with the samples of a row as one unit; their count.

    The ratio estimator's linearised error (Cochran 1977, §6): rows hold different numbers of labelled samples.
    """
    count = int(label.sum())
    if not count:
        return {"mean": float("nan"), "standard_error": float("nan"), "count": 0}
    mean = float(values[label].mean())
    influence = np.bincount(rows, np.where(label, values - mean, 0.0) / count)
    units = int((np.bincount(rows, label) > 0).sum())
    error = float(np.sqrt((influence**2).sum() * units / (units - 1))) if units > 1 else float("nan")
    return {"mean": mean, "standard_error": error, "count": count}


def domain_means(
    text: Text, readings: Sequence[Reading], structures: Mapping[tuple[Stage, str], Direction]
) -> list[dict[str, Any]]:
    """What each reading foretells of each domain: mean and standard error by domain, rows as units.

    `sign` is that of a mean by which more of the domain grows induction: + for the directions, - for χ of the heads'
    loss. χ of a group is the mean of its members'.
    """
    found = []
    for (stage, name), structure in structures.items():
        if name != "structure":
            continue
        s = structure.along("more")
        per_row = s.astype(np.float64).mean(axis=1)
        unit = s.std(dtype=np.float64)
        means = {
            name: clustered_mean(per_row / unit, text.train.domains == i, np.arange(len(per_row)))
            for i, name in enumerate(text.corpus.domains)
            if (text.train.domains == i).any()
        }
        found.append({"what": "structure measure", "stage": stage, "sign": 1.0, "domains": means})
    for key, what, sign in (("mode", "induction mode", 1.0), ("chi", "χ of the induction heads", -1.0)):
        found += [
            {"what": what, "stage": one.stage, "sign": sign, "domains": one.summary["by_domain"][key]}
            for one in readings
        ]
    return found


def token_page(
    score: Floats, probes: Probes, text: Text, *, shown: int = 2, extremes: int = 12, context: int = 24
) -> Mapping[str, Any]:
    """Rows coloured by score (`shown` of each domain), and the contexts of the highest and lowest scores."""
    words = pieces(text)
    table = score.reshape(len(probes.rows), -1)

    def row(i: int) -> dict[str, Any]:
        return {
            "domain": text.corpus.domains[probes.domains[i]],
            "tokens": [words[token] for token in probes.tokens[i]],
            "scores": [0.0, *np.round(table[i], 2).tolist()],
        }

    def place(j: int) -> dict[str, Any]:
        i, t = divmod(j, table.shape[1])
        start = max(0, t + 1 - context)
        return {
            "before": "".join(words[token] for token in probes.tokens[i, start : t + 1]),
            "token": words[probes.tokens[i, t + 1]],
            "score": float(score[j]),
            "domain": text.corpus.domains[probes.domains[i]],
        }

    order = np.argsort(score, kind="stable")
    some = [i for domain in np.unique(probes.domains) for i in np.flatnonzero(probes.domains == domain)[:shown]]
    return {
        "rows": [row(int(i)) for i in some],
        "top": [place(int(j)) for j in order[::-1][:extremes]],
        "bottom": [place(int(j)) for j in order[:extremes]],
    }
