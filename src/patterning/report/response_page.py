"""χ by component as one self-contained page and as a terminal table, from a `ComponentResponse`."""

import numpy as np
import plotly.graph_objects as go

from patterning.report.page import Row, Section, Table, render_page
from patterning.response.components import COMPONENT_LOSS, ComponentResponse
from patterning.response.store import attributes
from patterning.response.susceptibility import rank_correlation

HEAD = (
    "component", "free coordinates", "estimator", "E[L] - L(w*), nats", "LLC ± se", "R-hat", "ESS", "reliability",
    "median |χ| / se", "χ ≠ 0 at 95 %", "why it stopped",
)  # fmt: skip
PLAIN = {"margin": {"l": 60, "r": 20, "t": 16, "b": 50}, "plot_bgcolor": "white"}


def component_rows(response: ComponentResponse) -> list[Row]:
    """One row a component. The LLC of a component is nβ E[φ_C], with its Monte Carlo error."""
    rows = []
    for name, found in response.by_component.items():
        own, chi = found.diagnostics[COMPONENT_LOSS], found.susceptibility
        n_beta = chi.n_beta
        z = float(np.median(np.abs(chi.chi[0]) / np.maximum(chi.standard_error[0], 1e-300)))
        rows.append(
            Row(
                [
                    name,
                    f"{response.n_free[name]:,}",
                    found.estimator,
                    f"{found.rise:.4g}",
                    f"{n_beta * own.mean:.3g} ± {n_beta * own.standard_error:.2g}",
                    f"{own.r_hat:.3f}",
                    f"{own.ess:.0f}",
                    f"{chi.reliability()[COMPONENT_LOSS]:.2f}",
                    f"{z:.1f}",
                    f"{(np.abs(chi.chi[0]) > chi.half_width()[0]).mean():.0%}",
                    found.note,
                ]
            )
        )
    return rows


def spectrum(response: ComponentResponse) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of χ with standardised rows, and of its Monte Carlo error in the same units."""
    chi = response.chi()
    scale = chi.std(1, keepdims=True)
    noise = np.stack([found.susceptibility.half_difference()[0] for found in response.by_component.values()])
    values = np.linalg.svd((chi - chi.mean(1, keepdims=True)) / scale, compute_uv=False)
    return values, np.linalg.svd((noise - noise.mean(1, keepdims=True)) / scale, compute_uv=False)


def response_page(response: ComponentResponse, title: str) -> str:
    """The page: reliability, correlation of rows, spectrum over its noise floor, traces, settings."""
    names = list(response.by_component)
    warnings = [
        f"left out, diverged: {name}, {why}"
        for name, found in response.by_component.items()
        for why in found.excluded.values()
    ]
    weak = [
        name
        for name, found in response.by_component.items()
        if found.susceptibility.reliability()[COMPONENT_LOSS] < 0.5
    ]
    if weak:
        warnings.append(f"reliability under 0.5, mostly noise: {', '.join(weak)}")
    return render_page(
        title=title,
        subtitle=f"{len(names)} components × {len(response.rows):,} samples · estimator {response.estimator}"
        f" · φ: loss of the {'probed samples' if response.phi == 'probes' else 'whole data'}"
        f"{' · antithetic chains' if response.chains.antithetic else ''}",
        headline=[],
        warnings=warnings,
        sections=[
            Section(
                "Components",
                "Reliability: rank correlation of χ between halves of the chains, stepped up to all of them. R-hat and "
                "ESS are of the component loss. The LLC is that of the probed samples. χ ≠ 0: the share of samples "
                "whose 95 % interval leaves out 0 (5 % would by chance).",
                (),
                [
                    Table(HEAD[:-1], [Row(row.cells[:-1]) for row in component_rows(response)]),
                    Table(
                        (HEAD[0], HEAD[-1]), [Row([row.cells[0], row.cells[-1]]) for row in component_rows(response)]
                    ),
                ],
            ),
            Section(
                "How alike are the rows?",
                "Rank correlation of χ between components. Rows that are all alike carry one vector.",
                [_correlations(response)] if len(names) > 1 else [],
            ),
            Section(
                "Spectrum and its noise floor",
                "Singular values of χ with standardised rows; dashed: those of the difference of its two halves. What "
                "lies under the dashed line is noise.",
                [_spectrum(response)] if len(names) > 1 else [],
            ),
            Section(
                "Chains",
                "Component loss at each draw, one line a chain."
                + (" Their mirror images are not drawn." if response.chains.antithetic else ""),
                [_traces(response)],
            ),
        ],
        provenance=f"task {response.fingerprint}",
        config="\n".join(f"{key}: {value}" for key, value in attributes(response).items()),
    )


def _correlations(response: ComponentResponse) -> go.Figure:
    chi, names = response.chi(), list(response.by_component)
    matrix = [[rank_correlation(a, b) for b in chi] for a in chi]
    figure = go.Figure(go.Heatmap(z=matrix, x=names, y=names, zmin=-1, zmax=1, colorscale="RdBu", reversescale=True))
    figure.update_layout(**PLAIN, height=max(280, 34 * len(names) + 120), yaxis={"autorange": "reversed"})
    return figure


def _spectrum(response: ComponentResponse) -> go.Figure:
    values, floor = spectrum(response)
    figure = go.Figure()
    figure.add_scatter(y=values, mode="lines+markers", name="χ")
    figure.add_scatter(y=floor, mode="lines", line={"dash": "dash"}, name="noise")
    figure.update_layout(**PLAIN, height=320, xaxis_title="mode", yaxis_title="singular value", yaxis_type="log")
    return figure


def _traces(response: ComponentResponse) -> go.Figure:
    figure = go.Figure()
    for i, (name, found) in enumerate(response.by_component.items()):
        color = f"hsl({360 * i / len(response.by_component):.0f},55%,45%)"
        for c, trace in enumerate(found.traces[COMPONENT_LOSS].T):
            figure.add_scatter(
                y=trace, mode="lines", line={"width": 1, "color": color}, name=name, legendgroup=name, showlegend=c == 0
            )
    figure.update_layout(**PLAIN, height=420, xaxis_title="draw", yaxis_title="component loss, nats")
    return figure
