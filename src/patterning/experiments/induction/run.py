"""The induction experiment, top to bottom like the method section of a paper.

Read which training tokens an induction circuit answers to, weight them, and prove by retraining what that does.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from patterning.core.store import RunFolder
from patterning.core.workers import Progress, Workers
from patterning.experiments.induction.arms import compressed_size, leading, retrain
from patterning.experiments.induction.config import InductionConfig, read_config
from patterning.experiments.induction.direction import LABELS, Direction
from patterning.experiments.induction.directions import find_directions
from patterning.experiments.induction.outcome import by_domain, judge, tabulate
from patterning.experiments.induction.pilot import Pilot, curves_of, train_pilots, training_of
from patterning.experiments.induction.present import read_results, write_page
from patterning.experiments.induction.reading import choose_probes, domain_means, read_stages
from patterning.experiments.induction.structure import read_structure
from patterning.experiments.induction.sweep import sweep
from patterning.experiments.induction.text import Text, load_text, make_source
from patterning.response.susceptibility import rank_correlation
from patterning.study.conduct import conduct, keeping_results
from patterning.tasks.text.classes import induction_labels
from patterning.training.language import init_language


def run_induction(
    config: InductionConfig, folder: Path, *, workers: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Run everything, or what a killed run left; write `results.json` and `report.html`; return the results.

    Raises `PatterningError` when the folder holds another configuration, the text is too small, chains diverge, or no
    direction can be trusted (and `force` is off).
    """
    run, results = conduct(config, folder, read_config, _stages, workers, progress)
    results = read_results(run)  # the page is made from what the file holds, as `patterning report` makes it
    with keeping_results(run.path, run.path / "results.json"):
        write_page(run, results)
    return results


def _stages(config: InductionConfig, run: RunFolder, workers: int, progress: Progress | None) -> dict[str, Any]:
    source = make_source(config, run.path)
    text = load_text(source)
    probes = choose_probes(config, text)
    with Workers(run, workers, progress) as pool:
        pilots = train_pilots(config, source, pool)
        pilot = pilots[0]
        readings = read_stages(config, text, probes, pilot, pool)
        wanted = "structure" in config.directions
        structures = read_structure(config, source, text, probes.data, pilots, pool) if wanted else {}
        found = find_directions(config, source, probes, pilot, readings, structures, pool)
        swept, strengths = sweep(config, source, found, pool)
        arms = retrain(config, source, text, found, strengths, pool)
    table = tabulate(arms, config.structure, config.first_seed)
    return {
        "experiment": "induction",
        "config": config.model_dump(mode="json"),
        "text": _describe(config, text),
        "pilot": _pilot(pilots),
        "readings": [reading.summary for reading in readings],
        "directions": [one.summary for (_, name), one in found.items() if name in LABELS],
        "likeness": _likeness(found, text),
        "sweep": swept,
        "lead": leading(config, strengths),
        "strengths": {name: {toward: asdict(one) for toward, one in ways.items()} for name, ways in strengths.items()},
        "arms": table,
        "goals": judge(table),
        "domains": by_domain(table, domain_means(text, readings, structures)),
    }


def _describe(config: InductionConfig, text: Text) -> dict[str, Any]:
    names, counts = np.unique(text.train.domains, return_counts=True)
    tokens = config.train.steps * config.train.batch_size * config.model.context
    return {
        "corpus": text.corpus.fingerprint,
        "domains": {text.corpus.domains[i]: int(count) for i, count in zip(names, counts, strict=True)},
        "rows": len(text.train.tokens),
        "tokens_read": tokens,
        "bfloat16": training_of(config).bfloat16,
        "epochs": config.train.steps * config.train.batch_size / len(text.train.tokens),
        "parameters": sum(p.numel() for p in init_language(config.language, 0).parameters()),
        "classes": {name: float(label.mean()) for name, label in text.test_classes.items()},
    }


def _pilot(pilots: Sequence[Pilot]) -> dict[str, Any]:
    pilot = pilots[0]
    missing = [str(one.seed) for one in pilots if not one.formed]
    notes = [f"induction did not form at seeds {', '.join(missing)}: χ was not read there"] if missing else []
    return {
        "steps": pilot.run["steps"],
        "curves": {name: np.round(values, 5) for name, values in curves_of(pilot.run).items()},
        "prefix_matching": pilot.run["prefix_matching"],
        "previous_token": pilot.run["previous_token"],
        "at": pilot.at,
        "induction_heads": list(pilot.induction_heads),
        "notes": [*pilot.notes, *notes],
    }


def _likeness(found: dict[Any, Direction], text: Text) -> list[dict[str, Any]]:
    """Rank correlation of each direction, over rows, with the plain heuristics and with the other directions."""
    label = induction_labels(text.train.tokens).mean(axis=1)
    other = {"share of induction tokens": label, "compressibility (gzip)": -compressed_size(text)}
    means = {key: direction.s.mean(axis=1) for key, direction in found.items()
             if direction.s is not None and key[1] in LABELS}  # fmt: skip
    return [
        {"stage": stage, "name": name}
        | {what: rank_correlation(values, scale) for what, scale in other.items()}
        | {f"with {rival}": rank_correlation(values, means[stage, rival])
           for (place, rival) in means if place == stage and rival != name}
        for (stage, name), values in means.items()
    ]  # fmt: skip
