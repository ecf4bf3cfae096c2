"""What `patterning llc --check` does: λ̂ of every component at half the step and over a sweep of γ, with verdicts."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from patterning.core.answers import reason_of
from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.store import Arrays, Unit, strict_json
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.models.components import find_component
from patterning.posterior.band import find_band
from patterning.posterior.chains import ChainConfig
from patterning.posterior.llc_check import check_llc
from patterning.posterior.sgld import SGLD
from patterning.response.one_component import Settings, Work


def check_unit(*, work: Work, localizations: Sequence[float] | None, scratch: Path) -> Arrays:
    """`check_llc` of one component, as JSON in an array: a unit of work. One that cannot be made says why."""
    del scratch
    name = work.component.name
    try:
        band = find_band(work.task, work.anchor, work.chains.batch_size, work.kernel.n_beta)
        check = check_llc(
            work.task, work.anchor, work.kernel, work.chains, components=[work.component], localizations=localizations,
            loss_band=band.loss, probes=work.settings.rows,
        )  # fmt: skip
    except (PatterningError, RuntimeError, NotImplementedError) as error:
        why = f"{name}: λ̂ could not be checked: {reason_of(error)}"
        facts = {"rows": [], "verdicts": [f"{why}."], "warnings": [why]}
    else:
        facts = {
            "rows": [asdict(row) | {"steps": row.chains.steps} for row in check.rows],
            "verdicts": [f"{verdict.component}: {verdict.text}." for verdict in check.verdicts],
            "warnings": [*([f"{name}: {band.note}"] if band.note else []), *check.warnings],
        }
    return {"facts": np.frombuffer(json.dumps(strict_json(facts)).encode(), dtype=np.uint8)}


def check_components(
    task: Task, names: Sequence[str], kernel: SGLD, chains: ChainConfig, probes: torch.Tensor, pool: Workers
) -> Document:
    """λ̂ of every component at half the step and over a sweep of γ, with verdicts."""
    settings = Settings(probes, {}, "covariance", "probes", None, 1, 4, None)
    anchor, key = task.own_row(), task.fingerprint
    units = [
        Unit(
            f"check-{name}",
            check_unit,
            {
                "work": Work(task, anchor, find_component(task.module, name), kernel, chains, settings, key),
                "localizations": None,
            },
        )
        for name in names
    ]
    parts = [json.loads(arrays["facts"].tobytes()) for arrays in pool.compute(units, "checking λ̂: γ and half the step")]
    return {key: [item for part in parts for item in part[key]] for key in ("rows", "verdicts", "warnings")}
