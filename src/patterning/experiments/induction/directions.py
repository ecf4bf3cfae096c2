"""From χ on sampled tokens to directions on all training tokens: along the induction mode, and by the full χ†."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patterning.core.errors import PatterningError
from patterning.core.store import Unit
from patterning.core.workers import Workers
from patterning.experiments.induction.config import InductionConfig, Stage
from patterning.experiments.induction.direction import LABELS, SMOOTH, Direction
from patterning.experiments.induction.pilot import Pilot
from patterning.experiments.induction.reading import Probes, Reading
from patterning.experiments.induction.text import Source
from patterning.experiments.induction.units import joined, prediction_units
from patterning.intervention.solve import solve
from patterning.intervention.weights import gaussian_scores

Floats = NDArray[np.float64]


def find_directions(
    config: InductionConfig,
    source: Source,
    probes: Probes,
    pilot: Pilot,
    readings: Sequence[Reading],
    structures: Mapping[tuple[Stage, str], Direction],
    pool: Workers,
) -> dict[tuple[Stage, str], Direction]:
    """Every direction at every stage that the sweep looks at; `PatterningError` when there is none left.

    That of the structure measure is known on every token. Each of the others is predicted from the probed ones, and
    refused where the induction mode is not one mode by its two signs, nothing of χ is above its noise, or the
    predictor's held-out R² is under `min_r2`; `force` lets all but the second pass.
    """
    names = [name for name in config.directions if name != "structure"]
    names += ["first-mode"] if "first-mode" in config.controls else []
    read_at = {name: config.sweep.stages(name) for name in names}
    chosen = [reading for reading in readings if any(reading.stage in stages for stages in read_at.values())]
    seeds = range(config.first_seed, config.first_seed + config.side_seeds)
    smooth = list(seeds) if "random-smooth" in config.controls else []
    work: list[list[Unit]] = []
    sampled: list[tuple[dict[str, Any], list[str]]] = []
    for reading in chosen:
        targets = {name: _sampled(name, reading, pilot) for name in names if reading.stage in read_at[name]}
        usable = {name: target for name, (target, _) in targets.items() if target is not None}
        sampled.append((targets, list(usable)))
        if usable:
            arguments = {
                "source": source,
                "model": asdict(config.language),
                "anchor": reading.anchor.numpy(),
                "rows": probes.rows,
                "targets": np.stack(list(usable.values()), axis=1),
                "random_seeds": smooth,
            }
            work.append(prediction_units(f"predict-{reading.stage}", config.corpus.rows, arguments))
    done = iter(pool.compute([unit for units in work for unit in units], "predicting all training tokens"))
    found = iter([joined([next(done) for _ in units]) for units in work])
    result = dict(structures)
    for reading, (targets, usable) in zip(chosen, sampled, strict=True):
        predicted = next(found) if usable else {}
        for name, (_, summary) in targets.items():
            s = None
            if name in usable:
                i = usable.index(name)
                r2 = float(predicted["r2"][i])
                summary["r2"] = r2
                s = predicted["predicted"][i]
                refused = _refused(config, name, reading, r2)
                if refused and config.force:
                    summary["forced"] = refused
                elif refused:
                    summary["refused"], s = refused, None
            result[reading.stage, name] = Direction(name, reading.stage, s, summary)
        for seed, s in zip(smooth, predicted.get("random", ()), strict=False):
            name = f"{SMOOTH}{seed}"
            result[reading.stage, name] = Direction(name, reading.stage, s, {})
    wanted = [result[stage, name] for name in config.directions for stage in config.sweep.stages(name)]
    if all(direction.s is None for direction in wanted):
        reasons = "; ".join(f"{LABELS[d.name]}, {d.stage}: {d.summary['refused']}" for d in wanted)
        raise PatterningError(
            f"no direction can be used ({reasons}): sample longer, probe more rows, add the direction 'structure', or "
            "use --force"
        )
    return result


def _sampled(name: str, reading: Reading, pilot: Pilot) -> tuple[Floats | None, dict[str, Any]]:
    """Gaussian rank scores (n,) of the direction on the probed tokens, and what is known of it."""
    summary: dict[str, Any] = {"name": name, "stage": reading.stage, "step": reading.step}
    if name == "mode":
        s = reading.mode
        summary["what"] = f"score of mode {reading.choice.index + 1}"
    elif name == "first-mode":
        index = 1 if reading.choice.index == 0 else 0
        s = np.sign(reading.summary["candidates"][index]["enrichment"] or 1.0) * reading.modes.scores[index]
        summary["what"] = f"score of mode {index + 1}, turned to be higher on induction tokens"
    else:
        try:
            s = _full(reading, pilot, summary)
        except PatterningError as error:
            return None, summary | {"refused": str(error)}
    n = len(s)
    return gaussian_scores(s, np.full(n, 1 / n), np.ones(n, dtype=bool)), summary


def _full(reading: Reading, pilot: Pilot, summary: dict[str, Any]) -> Floats:
    """χ† dμ for dμ = -1 standard deviation of its row on every induction head, 0 elsewhere: a lower ⟨φ⟩ is "more"."""
    n = reading.chi.shape[1]
    heads = [reading.components.index(name) for name in pilot.induction_heads]
    target = np.zeros(len(reading.components))
    target[heads] = -reading.chi[heads].std(axis=1)
    noise = (reading.halves[0] - reading.halves[1]) / 2
    solution = solve(reading.chi, np.full(n, 1 / n), target, 1.0, noise=noise)
    summary |= {
        "what": f"lower ⟨φ⟩ of {', '.join(pilot.induction_heads)}, all else held",
        "rank": solution.rank,
        "condition": solution.condition,
        "noise_floor": solution.noise_floor,
        "wanted": solution.wanted,
        "predicted": solution.predicted,
    }
    return solution.s


def _refused(config: InductionConfig, name: str, reading: Reading, r2: float) -> str:
    if name == "mode" and not reading.choice.agrees:
        return "loadings and scores do not pick one and the same mode as the induction mode"
    if name == "mode" and not reading.choice.above_noise:
        return "no mode of χ is above its noise"
    if not r2 >= config.min_r2:
        return f"the predictor's held-out R² is {r2:.2f}, under min_r2 {config.min_r2:g}"
    return ""
