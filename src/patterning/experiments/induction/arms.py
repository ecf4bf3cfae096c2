"""Every arm and control over the claim seeds: each direction at its own strength, and what it is held to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.store import Unit
from patterning.core.workers import Workers
from patterning.experiments.induction.config import TOWARD, InductionConfig
from patterning.experiments.induction.direction import LABELS, SMOOTH, Direction
from patterning.experiments.induction.outcome import Arm
from patterning.experiments.induction.sweep import Found, Strength, Strengths, run_unit, weigh
from patterning.experiments.induction.text import Source, Text
from patterning.experiments.induction.units import Weights
from patterning.intervention.permute import permuted_within
from patterning.intervention.weights import summarise
from patterning.tasks.text.classes import induction_labels
from patterning.tasks.text.tokenizer import token_bytes
from patterning.verification.controls import compressibility, frequency_bands, labelled_like, random_direction_like

Floats = NDArray[np.float64]
Planned = Iterator[tuple[Arm, Sequence[Weights | None]]]


def retrain(
    config: InductionConfig, source: Source, text: Text, found: Found, strengths: Strengths, pool: Workers
) -> list[Arm]:
    """Train every arm over the claim seeds: the same seeds in every arm, which makes them pairs."""
    plan: list[Arm] = []
    work: list[Unit] = []
    counts: list[int] = []
    for arm, weights in _plan(config, text, found, strengths):
        plan.append(arm)
        counts.append(len(weights))
        for i, rho in enumerate(weights):
            work.append(run_unit(config, source, arm.name, config.first_seed + i, rho))
        if weights[0] is not None:
            flat = weights[0].astype(np.float64).ravel()
            arm.notes |= asdict(summarise(flat, np.full(flat.size, 1 / flat.size)))
    runs = iter(pool.compute(work, "retraining every arm"))
    for arm, count in zip(plan, counts, strict=True):
        arm.runs = [next(runs) for _ in range(count)]
    return plan


def leading(config: InductionConfig, strengths: Strengths) -> str:
    """The first of the configured directions that stands: controls take its weights."""
    return next(name for name in config.directions if name in strengths)


def _plan(config: InductionConfig, text: Text, found: Found, strengths: Strengths) -> Planned:
    """Every arm with its weights, one a seed."""
    yield Arm("unweighted", "unweighted", "base"), [None] * config.seeds
    lead = leading(config, strengths)
    weights: dict[str, Weights] = {}
    for name, toward in product((name for name in config.directions if name in strengths), TOWARD):
        strength = strengths[name][toward]
        rho = weigh(config, found[strength.stage, name], strength, toward)
        control = None
        if name == lead:
            weights[toward] = rho
            control = f"permuted-{toward}" if "permuted" in config.controls else None
        arm = Arm(f"{name}-{toward}", f"{LABELS[name]}, {toward}", "steered", toward, control, _settings(strength))
        yield arm, [rho] * (config.seeds if name == lead else config.side_seeds)
    yield from _nulls(config, text, found, strengths[lead], weights, lead)
    yield from _heuristics(config, text, found, strengths, weights)
    if "domains" in config.controls:
        for i, domain in enumerate(text.corpus.domains):
            per_row = weights["more"].shape[1]
            here = np.repeat(text.train.domains == i, per_row).reshape(-1, per_row)
            if not here.any() or here.all():
                continue
            for name in config.domain_changes:
                rho = np.where(here, {"remove": 0.0, "double": 2.0}[name], 1.0).astype(np.float32)
                yield Arm(f"{name}-{domain}", f"{name} {domain}", "domain"), [rho] * config.domain_seeds


def _settings(strength: Strength) -> dict[str, Any]:
    return {"stage": strength.stage, "policy": strength.policy, "alpha": strength.alpha}


def _nulls(
    config: InductionConfig,
    text: Text,
    found: Found,
    strengths: Mapping[str, Strength],
    weights: Mapping[str, Weights],
    lead: str,
) -> Planned:
    """Weights of the leading direction's histogram that mean nothing: permuted, random, a random smooth function."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    if "permuted" in config.controls:
        strata = frequency_bands(text.train.tokens[:, 1:].ravel(), config.corpus.vocabulary, config.bands)
        for toward, rho in weights.items():
            dealt = [permuted_within(rho.astype(np.float64).ravel(), strata, seed) for seed in seeds]
            arm = Arm(
                f"permuted-{toward}", f"permuted within frequency bands, {toward}", "null", toward,
                notes=_settings(strengths[toward]),
            )  # fmt: skip
            yield arm, [row.reshape(rho.shape).astype(np.float32) for row in dealt]
    strength, seeds = replace(strengths["more"], sign=1.0), seeds[: config.side_seeds]
    if "random" in config.controls:
        s = found[strength.stage, lead].along("more")
        drawn = [random_direction_like(s.astype(np.float64).ravel(), seed).reshape(s.shape) for seed in seeds]
        drawn = [Direction("random", strength.stage, one.astype(np.float32), {}) for one in drawn]
        arm = Arm("random", "random direction", "null", notes=_settings(strength))
        yield arm, [weigh(config, one, strength, "more") for one in drawn]
    if "random-smooth" in config.controls:
        smooth = {name: direction for (_, name), direction in found.items() if name.startswith(SMOOTH)}
        drawn = [smooth[f"{SMOOTH}{seed}"] for seed in seeds]
        arm = Arm("random-smooth", "random function of activations", "null", notes=_settings(strength))
        yield arm, [weigh(config, one, strength, "more") for one in drawn]


def _heuristics(
    config: InductionConfig, text: Text, found: Found, strengths: Strengths, weights: Mapping[str, Weights]
) -> Planned:
    """What needs no χ, or another part of it: the first mode, the induction label itself, and gzip."""
    lead = leading(config, strengths)
    lead_more = strengths[lead]["more"]
    if "one-run" in config.controls and (lead_more.stage, "one-run") in found:
        rho = weigh(config, found[lead_more.stage, "one-run"], lead_more, "more")
        yield (
            Arm("one-run", LABELS["one-run"], "control", "more", notes=_settings(lead_more)),
            [rho] * config.side_seeds,
        )
    first = _first_mode(config, found, strengths, lead)
    if "first-mode" in config.controls and first is not None:
        rho = weigh(config, found[first.stage, "first-mode"], first, "more")
        arm = Arm("first-mode", LABELS["first-mode"], "control", notes=_settings(first))
        yield arm, [rho] * config.side_seeds
    if "heuristic" in config.controls:
        label = induction_labels(text.train.tokens)
        for toward, rho in weights.items():
            flat = labelled_like(rho.astype(np.float64).ravel(), label.ravel(), "more" if toward == "more" else "less")
            arm = Arm(f"heuristic-{toward}", f"induction label, {toward}", "heuristic", toward)
            yield arm, [flat.reshape(rho.shape).astype(np.float32)] * config.side_seeds
    if "gzip" in config.controls:
        rho = deal_to_rows(weights["more"], -compressed_size(text))
        arm = Arm("gzip", "compressible rows (gzip)", "heuristic", "more", notes=_settings(lead_more))
        yield arm, [rho] * config.side_seeds


def _first_mode(config: InductionConfig, found: Found, strengths: Strengths, lead: str) -> Strength | None:
    """The first mode's: the induction mode's where that stands, else as strong as the lead, where it was read last."""
    strength = strengths.get("mode", strengths[lead])["more"]
    stages = (strength.stage,) if "mode" in strengths else config.sweep.stages("first-mode")[::-1]
    standing = [stage for stage in stages if (one := found.get((stage, "first-mode"))) and one.s is not None]
    return replace(strength, stage=standing[0], sign=1.0) if standing else None


def compressed_size(text: Text) -> Floats:
    """Compressed bytes / bytes (rows,) of each training row: low for a repetitive one."""
    table = token_bytes(text.corpus.tokenizer)
    return compressibility([b"".join(table[token] for token in row) or b" " for row in text.train.tokens])


def deal_to_rows(rho: Weights, worth: Floats) -> Weights:
    """The same weights (rows, t - 1) sorted, the largest to the rows of the highest `worth` (rows,): one histogram."""
    result = np.empty_like(rho)
    result[np.argsort(worth, kind="stable")] = np.sort(rho, axis=None).reshape(rho.shape)
    return result
