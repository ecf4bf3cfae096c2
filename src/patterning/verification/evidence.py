"""What retraining showed: the outcomes of every arm by seed, paired effects, and verdicts; as a table and as a page."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.store import write_json, write_whole
from patterning.verification.arms import HEAD, Arm
from patterning.verification.effects import Effect
from patterning.verification.page import evidence_page
from patterning.verification.proportions import share_interval
from patterning.verification.rule import ENOUGH_PAIRS, Verdict


@dataclass(frozen=True)
class Evidence:
    """`arms` in the order of the table, the unweighted one first; `verdicts` by (arm, measure).

    `yes_or_no`: which measures are shares of seeds. `notes`: what else a reader should know, a sentence each.
    """

    measures: tuple[str, ...]
    yes_or_no: Mapping[str, bool]
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    verdicts: Mapping[tuple[str, str], Verdict]
    notes: tuple[str, ...] = ()

    def steers(self, arm: str, measure: str | None = None) -> bool:
        """Whether an arm steers a measure (the first, unless named), by the rule of `verification.rule`."""
        name = self._measure(measure)
        if self._arm(arm).kind != "arm":
            verified = ", ".join(own.name for own in self.arms if own.kind == "arm")
            raise PatterningError(f"{arm!r} is compared only, and has no verdict: verified are {verified}")
        return self.verdicts[arm, name].steers

    def effect(self, arm: str, measure: str | None = None) -> Effect:
        """The paired difference of an arm to unweighted, with its 95 % interval."""
        name, own = self._measure(measure), self._arm(arm)
        if name not in own.effects:
            raise PatterningError(f"{arm!r} is the arm that others are compared with: it has no effect")
        return own.effects[name]

    def sentences(self) -> list[str]:
        """What was found, one sentence for each arm and measure; first, whether there are enough pairs."""
        few = len(self.seeds) < ENOUGH_PAIRS
        lines = (
            [f"{len(self.seeds)} paired seeds are a look, not evidence: use at least {ENOUGH_PAIRS}."] if few else []
        )
        lines += [f"{note}." for note in self.notes]
        return lines + [f"{arm}, {measure}: {verdict}." for (arm, measure), verdict in self.verdicts.items()]

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
        """Print the table and what was found."""
        from rich.console import Console
        from rich.table import Table

        console = Console()
        table = Table(title=f"{len(self.seeds)} paired seeds")
        for i, head in enumerate(HEAD):
            table.add_column(head, justify="left" if i < 2 else "right", overflow="fold")
        for cells in self.cells():
            table.add_row(*cells)
        console.print(table)
        for line in self.sentences():
            console.print(line, highlight=False)

    def cells(self) -> list[list[str]]:
        """The table as text, as `HEAD` names its columns."""
        return [
            [
                row["arm"],
                row["measure"],
                mean_of(row, 4),
                _interval(row["against_unweighted"]),
                _interval(row["against_permuted"]),
                row["finding"] or "",
            ]
            for row in self.rows()
        ]

    def to_json(self, path: str | Path) -> None:
        """Write the numbers."""
        facts = {arm.name: dict(arm.facts) for arm in self.arms}
        known = {"seeds": list(self.seeds), "notes": list(self.notes), "rows": self.rows(), "weights": facts}
        write_json(Path(path), known)

    def page(self, path: str | Path, title: str = "What the weights did") -> None:
        """Write one self-contained HTML page: the answer, a figure, the table."""
        write_whole(Path(path), evidence_page(self, title).encode())

    def _arm(self, name: str) -> Arm:
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise PatterningError(f"there is no arm {name!r}: there are {', '.join(arm.name for arm in self.arms)}")

    def _measure(self, name: str | None) -> str:
        if name is not None and name not in self.measures:
            raise PatterningError(f"there is no measure {name!r}: there are {', '.join(self.measures)}")
        return self.measures[0] if name is None else name


def mean_of(row: Document, digits: int = 3) -> str:
    """The mean of a row of the table with its error, as text; of a single run, the mean alone."""
    if "low" in row:
        return f"{row['mean']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
    error = row["standard_error"]
    return f"{row['mean']:.{digits}g}" + ("" if error is None else f" ± {error:.2g}")


def _interval(effect: Document | None) -> str:
    return "" if effect is None else f"{effect['difference']:+.3g} [{effect['low']:+.3g}, {effect['high']:+.3g}]"
