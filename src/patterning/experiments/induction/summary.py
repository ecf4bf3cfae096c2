"""What the induction page shows besides the evidence: percentages, χ of the components, χ by domain, the text."""

from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from patterning.core.arrays import Floats
from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.experiments.induction.settings import InductionConfig
from patterning.experiments.induction.subject import InductionSubject
from patterning.response.groups import clustered_mean
from patterning.study.arms import UNWEIGHTED, permuted_name
from patterning.study.bench import Bench
from patterning.study.component_summary import describe_components
from patterning.study.likeness import likeness, row_means
from patterning.study.readings_of_components import OfComponents, read_components
from patterning.study.relative import by_more_of, in_percent
from patterning.study.subject import Runs
from patterning.training.language import init_language
from patterning.verification.controls import compressibility


def summarise(config: InductionConfig, readings: Document, bench: Bench, runs: Mapping[str, Runs]) -> Document:
    """Further results of a finished study."""
    subject = bench.subject
    assert isinstance(subject, InductionSubject)
    used = {name: readings[name] for name in config.directions}
    baselines = {arm: UNWEIGHTED for arm in runs if arm != UNWEIGHTED}
    beyond = {arm: permuted_name(arm) for arm in runs if permuted_name(arm) in runs}
    directions = row_means(used, bench)
    heuristics = {
        "share of induction tokens": subject.text_data.classes["induction"].mean(axis=1),
        "compressibility (gzip)": -compressibility(subject.text_data.row_bytes),
    }
    shown = _components(config, used, bench)
    return {
        "percent": [*in_percent(runs, ("onset", subject.guarded), baselines),
                    *in_percent(runs, ("onset", subject.guarded), beyond)],
        "components": shown,
        "likeness": likeness(directions, heuristics),
        "domains": by_more_of(runs, tuple(subject.domains()), "gap_area", UNWEIGHTED),
        "foretold_by_domain": _by_domain(directions, shown, subject),
        "text": _text(config, subject),
    }  # fmt: skip


def _components(config: InductionConfig, used: Document, bench: Bench) -> list[Document]:
    """χ of the components at the stages to show and those used; none where nothing was made from it."""
    stages = {one.stage for one in used.values() if isinstance(one, OfComponents)}
    if not stages and not {"other-mode", "random-smooth"} & set(config.controls):
        return []
    order = [stage for stage in ("before", "between", "after") if stage in stages | set(config.show)]
    found = []
    for stage in order:
        with suppress(PatterningError):  # its chains gave nothing: directions made from it say so
            found.append(describe_components(bench, read_components(bench, config.reading, stage), stage))
    return found


def _by_domain(directions: Mapping[str, Floats], shown: list[Document], subject: InductionSubject) -> list[Document]:
    """What each reading says of each domain, ± with rows as units.

    `sign`: of a mean by which more of the domain grows induction, + for directions and the mode, - for χ of the heads'
    loss. χ of a group is the mean of its members'.
    """
    domains = {name: label[:, 0] for name, label in subject.domains().items()}
    rows = []
    for name, s in directions.items():
        means = {key: clustered_mean(s / s.std(), label, np.arange(len(s))) for key, label in domains.items()}
        rows.append({"what": name, "sign": 1.0, "domains": means})
    for one in shown:
        for key, what, sign in (("mode", "induction mode", 1.0), ("heads", "χ of the induction heads", -1.0)):
            rows.append({"what": f"{what}, {one['stage']}", "sign": sign, "domains": one["by_domain"][key]})
    return rows


def _text(config: InductionConfig, subject: InductionSubject) -> Document:
    text, read = subject.text_data, config.train.steps * config.train.batch_size
    return {
        "corpus": text.corpus.fingerprint,
        "rows": {name: int(label[:, 0].sum()) for name, label in text.domains.items()},
        "tokens read": read * config.model.context,
        "passes": read / len(text.train.tokens),
        "parameters": sum(p.numel() for p in init_language(subject.language, 0).parameters()),
        "bfloat16": subject.training.bfloat16,
    }
