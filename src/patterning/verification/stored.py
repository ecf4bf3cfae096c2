"""Evidence as `results.json` of a folder: written by `verify(out=...)`, read back for the table and the page."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.store import strict_json, write_json, write_whole
from patterning.report.page import refuse_other_page
from patterning.verification.arms import Arm
from patterning.verification.effects import Effect
from patterning.verification.evidence import Evidence
from patterning.verification.page import evidence_page
from patterning.verification.wording import cells_of, print_evidence

if TYPE_CHECKING:
    from rich.console import Console

RESULTS, PAGE = "results.json", "report.html"


def results_of(evidence: Evidence) -> Document:
    """Evidence as plain values."""
    return {
        "findings": evidence.findings(),
        "cautions": evidence.cautions(),
        "level": evidence.level(),
        "seeds": list(evidence.seeds),
        "units": dict(evidence.units),
        "rows": evidence.rows(),
        "cells": evidence.cells(),
        "weights": {arm.name: dict(arm.facts) for arm in evidence.arms},
    }


def store_claim(evidence: Evidence, folder: Path) -> None:
    """Write `results.json`, with a digest of what it holds."""
    results = cast("Document", strict_json(results_of(evidence)))
    write_json(folder / RESULTS, {**results, "sha256": _digest(results)})


def _digest(results: Document) -> str:
    """SHA-256 of what a proof found, hex, whatever the file's layout is."""
    own = {key: value for key, value in results.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StoredClaim:
    """What `results.json` of a proof holds, as its page shows it. Those of version 0.2.0 have no cautions or units."""

    results: Document

    @property
    def measures(self) -> list[str]:
        """In the order of the table."""
        return list(dict.fromkeys(row["measure"] for row in self.results["rows"]))

    @property
    def seeds(self) -> list[int]:
        """The paired seeds."""
        return self.results["seeds"]

    @property
    def units(self) -> Mapping[str, str]:
        """Of measures, where one is known."""
        return self.results.get("units", {})

    @property
    def arms(self) -> list[Arm]:
        """In the order of the table."""
        arms = dict[str, Arm]()
        for row in self.results["rows"]:
            arm = arms.setdefault(
                row["arm"], Arm(row["arm"], row["kind"], {}, {}, {}, self.results["weights"][row["arm"]])
            )
            cast("Document", arm.values)[row["measure"]] = np.array(row["values"])
            for kept, key in ((arm.effects, "against_unweighted"), (arm.beyond, "against_permuted")):
                if row[key]:
                    cast("Document", kept)[row["measure"]] = Effect(**row[key])
        return list(arms.values())

    def cautions(self) -> list[str]:
        """What to keep in mind."""
        return self.results.get("cautions", [])

    def findings(self) -> list[str]:
        """What was found."""
        return self.results["findings"]

    def level(self) -> str:
        """How many directions were tried, and the level of the intervals that findings use."""
        return self.results.get("level", "")

    def cells(self) -> list[list[str]]:
        """The table."""
        return cells_of(self.results["rows"], self.units)


def is_claim(folder: Path) -> bool:
    """Whether a folder is one of `verify`, finished."""
    return not (folder / "config.yaml").exists() and (folder / RESULTS).exists() and "cells" in read_claim(folder)


def refuse_other_kind(folder: Path) -> None:
    """Raise `PatterningError` where the results of something else lie in `folder`: a proof would be written over."""
    if (folder / "config.yaml").exists():
        raise PatterningError(f"{folder} holds a run of `patterning run`: name another folder for the proof")
    if (folder / "chi.zarr").exists() and (folder / RESULTS).exists():
        raise PatterningError(f"{folder} holds what `patterning measure` wrote: name another folder for the proof")
    if (folder / RESULTS).exists() and not (folder / "units").exists():
        raise PatterningError(
            f"{folder} has a {RESULTS} that no proof wrote, and it would be lost: name another folder"
        )
    refuse_other_page(folder / PAGE)


def read_claim(folder: Path) -> Document:
    """What `results.json` holds; raises `PatterningError` where it is damaged."""
    try:
        return json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise PatterningError(f"{folder / RESULTS} is damaged ({error}): verify again, it resumes") from None


def publish_claim(folder: Path) -> Document:
    """`report.html` from `results.json`, which is returned."""
    results = read_claim(folder)
    if results.get("sha256") != _digest(results):
        raise PatterningError(
            f"{folder / RESULTS} is damaged: it is not what was written (or an earlier version wrote it); "
            "delete it and give the same command again, finished runs are found"
        )
    write_whole(folder / PAGE, evidence_page(StoredClaim(results), "What the weights did").encode())
    return results


def print_claim(results: Document, console: "Console") -> None:
    """The table and what was found."""
    claim = StoredClaim(results)
    sentences = [*claim.cautions(), *claim.findings(), *([claim.level()] if claim.level() else [])]
    print_evidence(console, claim.cells(), len(claim.seeds), sentences)
