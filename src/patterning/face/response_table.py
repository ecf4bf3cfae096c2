"""χ as tables: numbers by row, as a terminal's rows and a page's cells; what a reader must know of them, ranked.

All of it is made from the stored arrays (`response.store.open_response`), so that it can be made again at any time.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from patterning.core.arrays import Floats
from patterning.core.plain import Document
from patterning.face.rows import shown_rows
from patterning.posterior.diagnostics import diagnose
from patterning.report.page import Row
from patterning.response.sample import COMPONENT_LOSS
from patterning.response.store import component_warnings, excluded_chains, refused_components

if TYPE_CHECKING:
    import xarray

HEAD = (
    "component", "free coordinates", "estimator", "E[L] - L(w*), nats", "LLC ± se", "R-hat", "ESS", "reliability of χ",
    "median |χ| / se", "χ ≠ 0 at 95 %", "why it stopped",
)  # fmt: skip
LLC = "LLC ± se"
UNKNOWN = "n/a"
CHECK_HEAD = ("component", "λ̂ ± se", "nβ", "γ", "ε", "steps", "rise, nats", "R-hat", "ESS")
WEAK = 0.5
"""Reliability under which a row of χ is mostly noise."""
FIRST_LOOK = "first-order"


def component_table(tree: "xarray.DataTree") -> list[Document]:
    """Numbers of each row of χ, in the units of their names; NaN where one is undefined (R-hat of what does not move).

    `component` is the row's name (`face.rows`). `llc` is nβ E[φ] of a component loss φ, with its Monte Carlo error;
    `rise` E[L] - L(w*) in nats; `median_chi_over_error` the median over samples of |χ| / standard error;
    `share_not_zero` the share of samples whose 95 % interval of χ leaves out 0; `spread` whether χ differs between
    samples at all.
    """
    data = tree["susceptibility"].to_dataset().load()
    n_beta, table = float(data.attrs["n_beta"]), []
    for row, spread in zip(shown_rows(data), rows_with_spread(tree), strict=True):
        chi, error, trace = row.of(data, "chi"), row.of(data, "standard_error"), row.trace(tree)
        width = float(stdtrit(data["degrees_of_freedom"].values[row.c], 0.975)) * error
        known = bool(error.any() and np.isfinite(error).all())  # a first look has none
        is_loss = row.observable == COMPONENT_LOSS and trace.size > 0
        mean, mean_error = (diagnose(trace).mean, diagnose(trace).standard_error) if is_loss else (np.nan, np.nan)
        table.append(
            {
                "component": row.name,
                "free_coordinates": int(data["free_coordinates"][row.c]),
                "estimator": str(data["estimator"].values[row.c]),
                "rise": float(data["rise"][row.c]) if trace.size else np.nan,
                "llc": n_beta * mean,
                "llc_standard_error": n_beta * mean_error,
                "r_hat": float(row.of(data, "r_hat")),
                "ess": float(row.of(data, "ess")),
                "reliability": float(row.of(data, "reliability")),
                "median_chi_over_error": float(np.median(np.abs(chi) / np.maximum(error, 1e-300))) if known else np.nan,
                "share_not_zero": float((np.abs(chi) > width).mean()) if known else np.nan,
                "spread": bool(spread),
                "note": str(data["note"].values[row.c]),
            }
        )
    return table


def component_cells(table: list[Document], settings: Document) -> tuple[list[str], list[list[str]]]:
    """`component_table` as headings and cells, without columns that hold nothing in any row.

    A first look has run no chains: it has neither R-hat nor an LLC. What an LLC depends on stands in its heading.
    """
    at = ", ".join(
        f"{sign} {float(settings[name]):g}"
        for sign, name in (("nβ", "n_beta"), ("γ", "localization"), ("ε", "step_size"))
        if name in settings
    )
    head = [f"{name} (at {at})" if name == LLC and at else name for name in HEAD]
    rows = [_cells(row) for row in table]
    known = [i for i in range(len(head)) if any(row[i] != UNKNOWN for row in rows)]
    return [head[i] for i in known], [[row[i] for i in known] for row in rows]


def _cells(row: Document) -> list[str]:
    return [
        row["component"],
        f"{row['free_coordinates']:,}" if row["free_coordinates"] else UNKNOWN,
        row["estimator"],
        _number(row["rise"], ".4g"),
        f"{row['llc']:.3g} ± {row['llc_standard_error']:.2g}" if np.isfinite(row["llc"]) else UNKNOWN,
        _number(row["r_hat"], ".3f"),
        _number(row["ess"], ".0f"),
        _number(row["reliability"], ".2f"),
        _number(row["median_chi_over_error"], ".1f"),
        _number(row["share_not_zero"], ".0%"),
        row["note"],
    ]


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else UNKNOWN


def rows_with_spread(tree: "xarray.DataTree") -> NDArray[np.bool_]:
    """Which rows of χ are finite and differ between samples (k,): only those have a direction."""
    chi = chi_of(tree)
    return np.isfinite(chi).all(1) & (chi != chi[:, :1]).any(1)


def chi_of(tree: "xarray.DataTree") -> Floats:
    """χ (k, n), rows as `face.rows` names them."""
    data = tree["susceptibility"].to_dataset()
    return np.stack([row.of(data, "chi") for row in shown_rows(data)])


def spectrum(tree: "xarray.DataTree") -> tuple[Floats, Floats]:
    """Singular values of χ with standardised rows, and of its Monte Carlo error in the same units.

    Rows without spread are left out: they cannot be standardised. The error is half the difference of the two halves,
    or NaN where it is not known.
    """
    keep, data = rows_with_spread(tree), tree["susceptibility"].to_dataset()
    if not keep.any():
        return np.zeros(0), np.zeros(0)
    chi = chi_of(tree)[keep]
    halves = np.stack([row.halves(data) for row in shown_rows(data)], axis=1)[:, keep]
    noise = (halves[0] - halves[1]) / 2
    scale = chi.std(1, keepdims=True)
    values, floor = ((rows - rows.mean(1, keepdims=True)) / scale for rows in (chi, noise))
    known = bool(np.isfinite(floor).all())
    return _singular_values(values), _singular_values(floor) if known else np.full(len(keep[keep]), np.nan)


def _singular_values(rows: Floats) -> Floats:
    return np.linalg.svd(rows, compute_uv=False).astype(np.float64)


def check_rows(check: Document) -> list[Row]:
    """λ̂ at every setting that was tried (`posterior.llc_check`), as cells under `CHECK_HEAD`."""
    return [
        Row(
            [
                row["component"],
                f"{_number(row['coefficient'], '.3g')} ± {_number(row['standard_error'], '.2g')}",
                f"{row['n_beta']:g}",
                f"{row['localization']:g}",
                f"{row['step_size']:.3g}",
                f"{row['steps']:,}",
                _number(row["rise"], ".2g"),
                _number(row["r_hat"], ".3f"),
                _number(row["ess"], ".0f"),
            ]
        )
        for row in check["rows"]
    ]


def warnings_of(tree: "xarray.DataTree", table: list[Document]) -> list[str]:
    """Chains that were left out, rows of χ without spread and rows that are mostly noise, by name."""
    lines = [f"{name} has no result: {why}" for name, why in refused_components(tree).items()]
    alone = tree["susceptibility"].sizes["component"] + len(refused_components(tree)) == 1  # its name tells nothing
    lines += [
        why if alone else f"{name}: {why}" for name, reasons in component_warnings(tree).items() for why in reasons
    ]
    lines += [
        f"left out, diverged: {name}, {why}" for name, reasons in excluded_chains(tree).items() for why in reasons
    ]
    below = [row for row in table if row["llc"] + 2 * row["llc_standard_error"] < 0]
    if below:
        numbers = ", ".join(f"{row['component']} {row['llc']:.3g} ± {row['llc_standard_error']:.2g}" for row in below)
        lines.append(
            f"w* is no minimum: its loss is above the mean of the chains ({numbers}), so nβ E[L - L(w*)] is no "
            "learning coefficient there; train further, or sample around a point where training has settled"
        )
    flat = [row["component"] for row in table if not row["spread"]]
    if flat:
        why = "a single sample is probed"
        if tree["susceptibility"].sizes["sample"] > 1:
            why = (
                "the component does not move what is measured, nothing that the component does reaches the loss, its "
                "χ is 0 by symmetry (as at the minimum of a quadratic), or the loss is not finite"
            )
        lines.append(f"χ without spread, left out of correlations and spectrum: {', '.join(flat)} ({why})")
    weak = [row["component"] for row in table if row["reliability"] < WEAK]
    if weak:
        lines.append(f"reliability of χ under {WEAK:g}, mostly noise: {', '.join(weak)}")
    looks = [row["component"] for row in table if row["estimator"] == FIRST_LOOK]
    if looks:
        lines.append(f"a first look, whose ± and reliability leave out what sampling would show: {', '.join(looks)}")
    settings = tree["susceptibility"].attrs
    if settings.get("untrained"):
        lines.append(str(settings["untrained"]))
    if settings.get("calibration") and settings.get("verdict") != "healthy":
        lines.append(str(settings["calibration"]))
    return lines


@dataclass(frozen=True)
class Caution:
    """Warnings of one kind: what they have in common, and each that differs by more than its numbers."""

    title: str
    lines: Sequence[str]


KINDS = (
    ("An untrained model", r"it seems untrained"),
    ("No result", r"has no result|diverged and"),
    ("χ may not describe w*", r"w\* is no minimum|far from w\*|kinks|calibrated:"),
    (
        "Chains that are not to be trusted yet",
        r"chains disagree|chains differ|chains (are|may be) short|do not contract|steps are (long|rounded)|"
        "minibatches are small",
    ),
    ("Fewer draws than were asked for", r"sampling ended at reliability"),
    ("Mostly noise", r"mostly noise"),
    ("A first look", r"a first look"),
    ("Left out", r"left out"),
)
"""Kinds of warnings, the worst first, with what they are told by."""


def cautions(lines: Sequence[str]) -> list[Caution]:
    """Warnings grouped by kind, the worst first; those that differ in names and numbers alone become one line."""
    groups: dict[str, list[str]] = {title: [] for title, _ in KINDS} | {"Other notes": []}
    for line in lines:
        title = next((title for title, words in KINDS if re.search(words, line)), "Other notes")
        groups[title].append(line)
    return [Caution(title, _merged(group)) for title, group in groups.items() if group]


def _merged(lines: Sequence[str]) -> list[str]:
    """Of "a: why 1.5" and "b: why 1.7": "a, b: why 1.5 (numbers of a; the others are alike)"."""
    alike: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        name, colon, why = line.partition(": ")
        same = re.sub(r"[-+]?\d[\d.e+-]*", "#", why) if colon and " " not in name else line
        alike.setdefault(same, []).append((name, line))
    merged = []
    for members in alike.values():
        first = members[0][1]
        if len(members) > 1:
            first = f"{', '.join(name for name, _ in members)}: {first.partition(': ')[2]}"
            first += f" (numbers of {members[0][0]}; the others are alike)" if re.search(r"\d", first) else ""
        merged.append(first)
    return merged
