"""χ by component as a table of numbers, as a terminal's rows and as one self-contained page.

All of it is made from the stored arrays (`response.store.open_response`), so that it can be made again at any time.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from scipy.special import stdtrit

from patterning.posterior.diagnostics import diagnose
from patterning.report.page import Row, Section, Table, render_page
from patterning.response.components import COMPONENT_LOSS
from patterning.response.store import component_warnings, excluded_chains, refused_components
from patterning.response.susceptibility import rank_correlation

if TYPE_CHECKING:
    import xarray

Floats = NDArray[np.float64]
HEAD = (
    "component", "free coordinates", "estimator", "E[L] - L(w*), nats", "LLC ± se", "R-hat", "ESS", "reliability",
    "median |χ| / se", "χ ≠ 0 at 95 %", "why it stopped",
)  # fmt: skip
LLC = "LLC ± se"
CHECK_HEAD = ("component", "λ̂ ± se", "nβ", "γ", "ε", "steps", "rise, nats", "R-hat", "ESS")
PLAIN = {"margin": {"l": 60, "r": 20, "t": 16, "b": 50}, "plot_bgcolor": "white"}
WEAK = 0.5
"""Reliability under which a row of χ is mostly noise."""


def component_table(tree: "xarray.DataTree") -> list[dict[str, Any]]:
    """Numbers by component, in the units of their names; NaN where one is undefined (R-hat of what does not move).

    `llc` is nβ E[φ] of the component loss φ, with its Monte Carlo error; `rise` E[L] - L(w*) in nats;
    `median_chi_over_error` the median over samples of |χ| / standard error; `share_not_zero` the share of samples whose
    95 % interval of χ leaves out 0; `spread` whether χ differs between samples at all.
    """
    data = tree["susceptibility"].to_dataset().load()
    chi, error = _rows(data, "chi"), _rows(data, "standard_error")
    width = stdtrit(data["degrees_of_freedom"].values, 0.975)[:, None] * error
    n_beta, own = float(data.attrs["n_beta"]), data.sel(observable=COMPONENT_LOSS)
    spread = rows_with_spread(tree)
    table = []
    for i, (name, trace) in enumerate(traces(tree).items()):
        phi = diagnose(trace)
        table.append(
            {
                "component": name,
                "free_coordinates": int(data["free_coordinates"][i]),
                "estimator": str(data["estimator"].values[i]),
                "rise": float(data["rise"][i]),
                "llc": n_beta * phi.mean,
                "llc_standard_error": n_beta * phi.standard_error,
                "r_hat": float(own["r_hat"][i]),
                "ess": float(own["ess"][i]),
                "reliability": float(own["reliability"][i]),
                "median_chi_over_error": float(np.median(np.abs(chi[i]) / np.maximum(error[i], 1e-300))),
                "share_not_zero": float((np.abs(chi[i]) > width[i]).mean()),
                "spread": bool(spread[i]),
                "note": str(data["note"].values[i]),
            }
        )
    return table


def headings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """`HEAD`, with what λ̂ depends on beside it: nβ, γ and ε."""
    at = ", ".join(
        f"{sign} {float(settings[name]):g}"
        for sign, name in (("nβ", "n_beta"), ("γ", "localization"), ("ε", "step_size"))
        if name in settings
    )
    return tuple(f"{name} (at {at})" if name == LLC and at else name for name in HEAD)


def component_rows(table: list[dict[str, Any]]) -> list[Row]:
    """`component_table` as cells under `HEAD`."""
    return [
        Row(
            [
                row["component"],
                f"{row['free_coordinates']:,}",
                row["estimator"],
                _number(row["rise"], ".4g"),
                f"{_number(row['llc'], '.3g')} ± {_number(row['llc_standard_error'], '.2g')}",
                _number(row["r_hat"], ".3f"),
                _number(row["ess"], ".0f"),
                _number(row["reliability"], ".2f"),
                _number(row["median_chi_over_error"], ".1f"),
                _number(row["share_not_zero"], ".0%"),
                row["note"],
            ]
        )
        for row in table
    ]


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "n/a"


def _rows(data: "xarray.Dataset", field: str) -> Floats:
    """A field of the component loss (components, samples)."""
    return data[field].sel(observable=COMPONENT_LOSS).values


def names_of(tree: "xarray.DataTree") -> list[str]:
    """The components in the order of the rows of χ."""
    return [str(name) for name in tree["susceptibility"].to_dataset()["component"].values]


def traces(tree: "xarray.DataTree") -> dict[str, Floats]:
    """The component loss at each draw (draws, kept chains) by component."""
    phi = tree["posterior"]["phi"].sel(observable=COMPONENT_LOSS).transpose("component", "draw", "chain").values
    return {
        name: values[:, ~np.isnan(values).all(0)]  # chains that were excluded or not run hold nothing
        for name, values in zip(names_of(tree), phi, strict=True)
    }


def rows_with_spread(tree: "xarray.DataTree") -> NDArray[np.bool_]:
    """Which rows of χ are finite and differ between samples (components,): only those have a direction."""
    chi = _rows(tree["susceptibility"].to_dataset(), "chi")
    return np.isfinite(chi).all(1) & (chi != chi[:, :1]).any(1)


def spectrum(tree: "xarray.DataTree") -> tuple[Floats, Floats]:
    """Singular values of χ with standardised rows, and of its Monte Carlo error in the same units.

    Rows without spread are left out: they cannot be standardised. The error is half the difference of the two halves.
    """
    keep, data = rows_with_spread(tree), tree["susceptibility"].to_dataset()
    chi = _rows(data, "chi")[keep]
    halves = data["halves"].sel(observable=COMPONENT_LOSS).transpose("half", "component", "sample").values[:, keep]
    noise = (halves[0] - halves[1]) / 2
    if not len(chi):
        return np.zeros(0), np.zeros(0)
    scale = chi.std(1, keepdims=True)
    values, floor = ((rows - rows.mean(1, keepdims=True)) / scale for rows in (chi, noise))
    return _singular_values(values), _singular_values(floor)


def _singular_values(rows: Floats) -> Floats:
    return np.linalg.svd(rows, compute_uv=False).astype(np.float64)


def check_rows(check: Mapping[str, Any]) -> list[Row]:
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


def response_page(tree: "xarray.DataTree", title: str, check: Mapping[str, Any] | None = None) -> str:
    """The page: reliability, correlation of rows, spectrum over its noise floor, traces, settings; checks of λ̂."""
    settings, table = tree["susceptibility"].attrs, component_table(tree)
    antithetic = bool(settings["chains_antithetic"])
    several = sum(row["spread"] for row in table) > 1
    rows = component_rows(table)
    return render_page(
        title=title,
        subtitle=f"{len(table)} components × {tree['susceptibility'].sizes['sample']:,} samples"
        f" · estimator {settings['estimator']}"
        f" · φ: loss of the {'probed samples' if settings['phi_of'] == 'probes' else 'whole data'}"
        f"{' · antithetic chains' if antithetic else ''}",
        headline=[],
        warnings=warnings_of(tree, table),
        sections=[
            Section(
                "Components",
                "Reliability: rank correlation of χ between halves of the chains, stepped up to all of them. R-hat and "
                "ESS are of the component loss. The LLC is that of the probed samples. χ ≠ 0: the share of samples "
                "whose 95 % interval leaves out 0 (5 % would by chance).",
                (),
                [
                    Table(
                        headings({str(key): value for key, value in settings.items()})[:-1],
                        [Row(row.cells[:-1]) for row in rows],
                    ),
                    Table((HEAD[0], HEAD[-1]), [Row([row.cells[0], row.cells[-1]]) for row in rows]),
                ],
            ),
            *(
                [
                    Section(
                        "Does λ̂ hold?",
                        "λ̂ depends on nβ, γ and ε. The first row of a component is the run above; then the same at "
                        "half the step, and at other γ. " + " ".join(check["verdicts"]),
                        tables=[Table(CHECK_HEAD, check_rows(check))],
                    )
                ]
                if check
                else []
            ),
            Section(
                "How alike are the rows?",
                "Rank correlation of χ between components. Rows that are all alike carry one vector.",
                [_correlations(tree)] if several else [],
            ),
            Section(
                "Spectrum and its noise floor",
                "Singular values of χ with standardised rows; dashed: those of the difference of its two halves. What "
                "lies under the dashed line is noise.",
                [_spectrum(tree)] if several else [],
            ),
            Section(
                "Chains",
                "Component loss at each draw, one line a chain."
                + (" Their mirror images are not drawn." if antithetic else ""),
                [_traces(tree)],
            ),
        ],
        provenance=f"task {settings['task']}",
        config="\n".join(f"{key}: {value}" for key, value in settings.items()),
    )


def warnings_of(tree: "xarray.DataTree", table: list[dict[str, Any]]) -> list[str]:
    """Chains that were left out, rows of χ without spread and rows that are mostly noise, by name."""
    lines = [f"{name} has no result: {why}" for name, why in refused_components(tree).items()]
    lines += [f"{name}: {why}" for name, reasons in component_warnings(tree).items() for why in reasons]
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
            why = "nothing that the component does reaches the loss, or the loss is not finite"
        lines.append(f"χ without spread, left out of correlations and spectrum: {', '.join(flat)} ({why})")
    weak = [row["component"] for row in table if row["reliability"] < WEAK]
    if weak:
        lines.append(f"reliability under {WEAK:g}, mostly noise: {', '.join(weak)}")
    return lines


def _correlations(tree: "xarray.DataTree") -> go.Figure:
    keep = rows_with_spread(tree)
    chi = _rows(tree["susceptibility"].to_dataset(), "chi")[keep]
    names = [name for name, kept in zip(names_of(tree), keep, strict=True) if kept]
    matrix = [[rank_correlation(a, b) for b in chi] for a in chi]
    figure = go.Figure(go.Heatmap(z=matrix, x=names, y=names, zmin=-1, zmax=1, colorscale="RdBu", reversescale=True))
    figure.update_layout(**PLAIN, height=max(280, 34 * len(names) + 120), yaxis={"autorange": "reversed"})
    return figure


def _spectrum(tree: "xarray.DataTree") -> go.Figure:
    values, floor = spectrum(tree)
    figure = go.Figure()
    figure.add_scatter(y=values, mode="lines+markers", name="χ")
    figure.add_scatter(y=floor, mode="lines", line={"dash": "dash"}, name="noise")
    figure.update_layout(**PLAIN, height=320, xaxis_title="mode", yaxis_title="singular value", yaxis_type="log")
    return figure


def _traces(tree: "xarray.DataTree") -> go.Figure:
    figure, by_component = go.Figure(), traces(tree)
    for i, (name, values) in enumerate(by_component.items()):
        color = f"hsl({360 * i / len(by_component):.0f},55%,45%)"
        for c, trace in enumerate(values.T):
            figure.add_scatter(
                y=trace, mode="lines", line={"width": 1, "color": color}, name=name, legendgroup=name, showlegend=c == 0
            )
    figure.update_layout(**PLAIN, height=420, xaxis_title="draw", yaxis_title="component loss, nats")
    return figure
