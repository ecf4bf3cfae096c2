"""What retraining showed: the outcomes of every arm by seed, paired effects, and verdicts; as a table and as a page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.store import write_json
from patterning.core.terminal import make_console
from patterning.report.page import write_page
from patterning.verification.arms import Arm
from patterning.verification.effects import Effect
from patterning.verification.page import evidence_page
from patterning.verification.proportions import share_interval
from patterning.verification.rule import Verdict
from patterning.verification.wording import cautions, cells_of, level_line, print_evidence, verdict_lines

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Evidence:
    """`arms` in the order of the table, the unweighted one first; `verdicts` by (arm, measure).

    `yes_or_no`: which measures are shares of seeds. `notes`: what else a reader should know, a sentence each. `units`:
    of the measures where one is known.
    """

    measures: tuple[str, ...]
    yes_or_no: Mapping[str, bool]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    verdicts: Mapping[tuple[str, str], Verdict]
    notes: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)

    def steers(self, arm: str, measure: str | None = None) -> bool:
        """Whether an arm steers a measure (the first, unless named), by the rule of `verification.rule`.

        Raises `PatterningError` where nothing was asked of the measure: there is no yes or no to that.
        """
        name = self._measure(measure)
        if self._arm(arm).kind != "arm":
            verified = ", ".join(own.name for own in self.arms if own.kind == "arm")
            raise PatterningError(f"{arm!r} is compared only, and has no verdict: verified are {verified}")
        verdict = self.verdicts[arm, name]
        if not verdict.wanted and verdict.finding != "a look":
            raise PatterningError(
                f"nothing was asked of {name!r} by {arm!r}, so that it cannot be steered (found: {verdict.finding}): "
                f"say what was asked with verify(..., wanted={{{arm!r}: {{{name!r}: +1}}}}), or -1"
            )
        return verdict.steers

    def effect(self, arm: str, measure: str | None = None) -> Effect:
        """The paired difference of an arm to unweighted, with its 95 % interval."""
        name, own = self._measure(measure), self._arm(arm)
        if name not in own.effects:
            raise PatterningError(f"{arm!r} is the arm that others are compared with: it has no effect")
        return own.effects[name]

    def cautions(self) -> list[str]:
        """What to keep in mind: too few seeds, nothing that was asked for, and notes."""
        return cautions(self.verdicts, self.seeds, self.notes)

    def findings(self) -> list[str]:
        """What was found: a sentence for each measure that was asked for, then one for the others of each arm."""
        return verdict_lines(self.verdicts)

    def level(self) -> str:
        """How many directions were tried, and the level of the intervals that findings use."""
        return level_line(self.verdicts)

    def sentences(self) -> list[str]:
        """What to keep in mind, what was found, and at which level."""
        return [*self.cautions(), *self.findings(), *([self.level()] if self.verdicts else [])]

    def rows(self) -> list[Document]:
        """The table as plain numbers, a row for each arm and measure."""
        rows = []
        for arm in self.arms:
            for name in self.measures:
                values = arm.values[name]
                row: Document = {"arm": arm.name, "kind": arm.kind, "measure": name, "mean": float(values.mean())}
                if self.yes_or_no[name]:
                    row["low"], row["high"] = share_interval(int(values.sum()), len(values))
                else:
                    spread = values.std(ddof=1) if len(values) > 1 else None
                    row["standard_error"] = None if spread is None else float(spread / np.sqrt(len(values)))
                row["values"] = values.tolist()
                for key, effects in (("against_unweighted", arm.effects), ("against_permuted", arm.beyond)):
                    row[key] = asdict(effects[name]) if name in effects else None
                verdict = self.verdicts.get((arm.name, name))
                rows.append(row | {"finding": verdict.finding if verdict else None})
        return rows

    def show(self) -> None:
        """Print the table and what was found; on a narrow terminal, one line a number."""
        self.print_to(make_console())

    def print_to(self, console: "Console") -> None:
        """What `show` prints, on a console of rich's."""
        print_evidence(console, self.cells(), len(self.seeds), self.sentences())

    def __str__(self) -> str:
        """The table and what was found, as `show` prints them."""
        text = StringIO()
        self.print_to(make_console(file=text))
        return text.getvalue().rstrip()

    __repr__ = __str__

    def cells(self) -> list[list[str]]:
        """The table as text, as `wording.HEAD` names its columns."""
        return cells_of(self.rows(), self.units)

    def to_json(self, path: str | Path) -> None:
        """Write the numbers."""
        facts = {arm.name: dict(arm.facts) for arm in self.arms}
        known = {"seeds": list(self.seeds), "notes": list(self.notes), "findings": self.sentences(),
                 "rows": self.rows(), "units": dict(self.units), "weights": facts}  # fmt: skip
        write_json(Path(path), known)

    def page(self, path: str | Path, title: str = "What the weights did") -> None:
        """Write one self-contained HTML page: the answer, a figure, the table."""
        write_page(path, lambda: evidence_page(self, title))

    def _arm(self, name: str) -> Arm:
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise PatterningError(f"there is no arm {name!r}: there are {', '.join(arm.name for arm in self.arms)}")

    def _measure(self, name: str | None) -> str:
        if name is not None and name not in self.measures:
            raise PatterningError(f"there is no measure {name!r}: there are {', '.join(self.measures)}")
        return self.measures[0] if name is None else name
