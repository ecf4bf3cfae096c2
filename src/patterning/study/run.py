"""A study, top to bottom like the method section of a paper.

Unweighted pilots → readings → a strength for each direction, on seeds of its own → arms and controls on the claim's
seeds → evidence. What a killed run finished is found again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from patterning.core.devices import find_device
from patterning.core.errors import PatterningError
from patterning.core.executors import Executor, chosen
from patterning.core.plain import Document
from patterning.core.store import RunFolder
from patterning.core.workers import Progress, Workers
from patterning.intervention.direction import Direction
from patterning.report.page import Section
from patterning.study.arms import UNWEIGHTED, PlannedArm, Rival, plan_arms
from patterning.study.bench import Bench, Found, Reading
from patterning.study.conduct import conduct, keeping_results, read_json_results
from patterning.study.findings import share_findings
from patterning.study.given import save_directions, save_weights
from patterning.study.iterated import Pair, purer_pilots
from patterning.study.outcomes import evidence_of, foretold, table_of
from patterning.study.settings import StudySettings
from patterning.study.strength import choose_strengths
from patterning.study.subject import Runs, Subject
from patterning.study.training import Planned, train_all, unweighted


@dataclass(frozen=True)
class Study:
    """What an experiment puts into `run_study`.

    `readings` by name, the leading one first. `keep`: steps at which the pilots' parameters are kept; `settings`:
    other settings that pilots are trained with as well (name → subject). `pair`: the kinds of solutions that readings
    are between, which `config.rounds` make purer. `rivals`: arms to compare with, made once the
    arms' weights are known. `more`: further results ("notes" among them are shown with the table). `sections`: the
    experiment's own part of the page; `drawings`: what the runs of each arm look like, shown beside their shares,
    with their `legend`; `figure`: a picture that is written as `figure.svg`.
    """

    subject: Subject
    readings: Mapping[str, Reading]
    keep: Sequence[int] = ()
    settings: Mapping[str, Subject] = field(default_factory=dict)
    pair: Pair | None = None
    rivals: Callable[[Bench, Mapping[str, Direction]], Mapping[str, Rival]] | None = None
    more: Callable[[Bench, Mapping[str, Runs]], Document] | None = None
    sections: Callable[[Document], Sequence[Section]] | None = None
    drawings: Callable[[Document], Mapping[str, Markup]] | None = None
    legend: str = ""
    figure: Callable[[Document], Markup] | None = None


def run_study(
    config: StudySettings,
    build: Callable[[Any], Study],
    folder: str | Path,
    *,
    read: Callable[[Path], Any],
    workers: int = 1,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Document:
    """Run everything, or what a killed run left; write `results.json` and `report.html`; return the results.

    `workers`: processes of this machine; `executor`: where else jobs are computed, `pt.Ray(…)` say.
    Raises `PatterningError` when the folder holds another configuration, or when no reading gives a direction.
    """
    check_device(config, build(config).subject)  # before anything is written
    run, _ = conduct(
        config, folder, read, lambda own, place, where, told: stages(own, build(own), place, where, told),
        chosen(executor, workers), progress,
    )  # fmt: skip
    results = read_results(run, str(config.model_dump()["experiment"]))
    with keeping_results(run.path, run.path / "results.json"):
        write_page(run, results, build(config))
    return results


def stages(
    config: StudySettings, study: Study, run: RunFolder, where: Executor | int, progress: Progress | None
) -> Document:
    """Every stage, and what comes of it as plain values."""
    study = placed(study, run.path)
    subject, seeds = study.subject, config.seed_ranges
    if unknown := [name for name in config.directions if name not in study.readings]:
        raise PatterningError(f"unknown directions {', '.join(unknown)}: there are {', '.join(study.readings)}")
    with Workers(run, where, progress) as pool:
        pilots = train_pilots(study, pool, seeds.pilots)
        bench = Bench(subject, pool, seeds, pilots, config.min_reliability, config.force)
        rounds = iterated(config, study, bench)
        found, refused = read_all(config, study, bench)
        directions = {name: one.direction for name, one in found.items()}
        tried, chosen = choose_strengths(config, bench, directions)
        bench.chosen = chosen
        rivals = study.rivals(bench, directions) if study.rivals else {}
        arms = plan_arms(config, bench, directions, chosen, rivals)
        save_directions(run.path, directions, subject.data.fingerprint)
        save_weights(run.path, bench, arms)
        expected = foretold(bench, found, arms)  # before anything is trained
        runs = bench.train({arm.name: arm.planned for arm in arms}, "retraining every arm")
        more = study.more(bench, runs) if study.more else {}
    evidence = evidence_of(subject, arms, runs, seeds.claims)
    results = {
        "experiment": config.model_dump()["experiment"],
        "config": config.model_dump(mode="json"),
        "subject": describe(subject),
        "pilots": {
            name or "pilots": described_runs(subject, part, bench.seeds_of(name)[: len(part)])
            for name, part in bench.pilots.items()
        },
        "rounds": rounds,
        "directions": [told(one.direction) for one in found.values()] + refused,
        "strengths": [asdict(row) | {"strength": str(row.strength)} for row in tried],
        "rows": evidence.rows(),
        "arms": table_of(bench, arms, runs),
        "foretold": expected.results(arms, runs),
        **more,
    }
    return results | {"findings": share_findings(results) if subject.outcomes[0].yes_or_no else evidence.sentences()}


def check_device(config: StudySettings, subject: Subject) -> None:
    """Raise `PatterningError` where the configuration's device cannot be used, or not by this subject."""
    if find_device(config.device).type != "cpu" and subject.device != config.device:
        raise PatterningError(f"{subject.name} computes on the CPU alone, and device is {config.device}: leave it out")


def placed(study: Study, folder: Path) -> Study:
    """The study with what its subjects need laid out in the run folder."""
    settings = {name: subject.placed(folder) for name, subject in study.settings.items()}
    return replace(study, subject=study.subject.placed(folder), settings=settings)


def train_pilots(study: Study, pool: Workers, seeds: range) -> dict[str, Runs]:
    """Unweighted runs, under the subject's settings ("") and the study's others."""
    pilots = {}
    for name, subject in {"": study.subject, **study.settings}.items():
        plan = {f"pilot{'-' if name else ''}{name}": Planned.alike(unweighted(subject), seeds, study.keep)}
        pilots[name] = next(iter(train_all(subject, pool, plan, f"pilot runs {name}".strip()).values()))
    return pilots


def iterated(config: StudySettings, study: Study, bench: Bench) -> list[Document]:
    """Pilots under weights, where the configuration asks for rounds and a kind of solutions is impure."""
    if config.rounds is None:
        return []
    if study.pair is None:
        raise PatterningError(f"{bench.subject.name} has no pair of solutions to make purer: leave rounds out")
    subject = study.settings.get("", study.subject)
    return purer_pilots(bench, subject, study.pair, config.rounds, study.keep)


def read_all(config: StudySettings, study: Study, bench: Bench) -> tuple[dict[str, Found], list[Document]]:
    """Every reading that gives a direction, and why the others do not. Raises `PatterningError` where none does."""
    found, refused = dict[str, Found](), list[Document]()
    for name in config.directions:
        try:
            one = study.readings[name].read(name, bench)
        except PatterningError as error:
            refused.append({"name": name, "what": type(study.readings[name]).__name__, "refused": str(error)})
            continue
        if one.direction.refused:
            refused.append(told(one.direction))
        else:
            found[name] = one
    if not found:
        reasons = dict.fromkeys(row["refused"] for row in refused)  # readings that share samples fail alike
        names = {why: ", ".join(row["name"] for row in refused if row["refused"] == why) for why in reasons}
        why = "; ".join(f"{name}: {why}" for why, name in names.items())
        raise PatterningError(f"no reading gives a direction ({why}); --force uses unreliable ones all the same")
    return found, refused


def told(direction: Direction) -> Document:
    """A direction as plain values."""
    return {
        "name": direction.name, "what": direction.what, "wanted": dict(direction.wanted), "refused": direction.refused,
        **direction.facts,
    }  # fmt: skip


def describe(subject: Subject) -> Document:
    """What the page says of the subject."""
    q = subject.base_weights
    groups = {name: float(q.ravel()[mask.ravel()].sum()) for name, mask in subject.groups.items() if mask.any()}
    outcomes = [asdict(outcome) for outcome in subject.outcomes]
    return {"name": subject.name, "samples": int(q.size), "outcomes": outcomes, "guarded": subject.guarded,
            "group_shares": groups}  # fmt: skip


def described_runs(subject: Subject, runs: Runs, seeds: Sequence[int]) -> Document:
    """Final measures by seed, and curves of the outcomes and the guarded measure."""
    shown = [*(outcome.measure for outcome in subject.outcomes), *([subject.guarded] if subject.guarded else [])]
    return {
        "seeds": list(seeds),
        "steps": runs.steps.tolist(),
        "measures": {name: values.tolist() for name, values in runs.measures.items()},
        "curves": {name: np.round(runs.curves[name], 5).tolist() for name in shown if name in runs.curves},
    }


def read_results(run: RunFolder, experiment: str) -> Document:
    """The results of a finished run; raises `PatterningError` when it has none or they are damaged."""
    return read_json_results(run, experiment, lambda results: "foretold" in results)


def write_page(run: RunFolder, results: Document, study: Study) -> None:
    """`report.html`."""
    from patterning.core.store import write_whole
    from patterning.study.page import study_page

    own = study.sections(results) if study.sections else ()
    drawings = study.drawings(results) if study.drawings else {}
    write_whole(run.path / "report.html", study_page(results, own, drawings, study.legend).encode())
    if study.figure:
        write_whole(run.path / "figure.svg", study.figure(results).encode())


__all__ = ["UNWEIGHTED", "PlannedArm", "Study", "read_results", "run_study", "write_page"]
