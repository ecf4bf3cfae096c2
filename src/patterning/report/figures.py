"""Figures of a run, from the plain values in its `results.json`. Plotly is imported here and nowhere else."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

INK, QUIET, ACCENT, OTHER = "#1b1f24", "#b6bcc4", "#1f6feb", "#d1543a"
TOWARD = {"nested": ACCENT, "equal_count": OTHER, "": "#6e7781"}
NAMES = {"nested": "Nested", "equal_count": "Equal-Count", "": ""}


def _layout(figure: go.Figure, *, height: int, title: str = "", **axes: Any) -> go.Figure:
    figure.update_layout(
        height=height,
        title={"text": title, "font": {"size": 15}},
        margin={"l": 60, "r": 20, "t": 40 if title else 16, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        plot_bgcolor="white",
        paper_bgcolor="white",
        showlegend=False,
        **axes,
    )
    figure.update_xaxes(showgrid=False, linecolor=QUIET, ticks="outside", tickcolor=QUIET)
    figure.update_yaxes(gridcolor="#eceff2", zeroline=False)
    return figure


def outcome_strips(arms: Sequence[Mapping[str, Any]], measure: str, title: str) -> go.Figure:
    """One strip an arm: each seed's unweighted outcome (left, grey) joined to its outcome in the arm (right)."""
    base = next(arm for arm in arms if arm["name"] == "unweighted")
    figure = go.Figure()
    for i, arm in enumerate(arms):
        colour = TOWARD[arm["toward"]]
        values, pairs = arm["measures"][measure], base["measures"][measure]
        if arm is not base:
            xs = [x for _ in values for x in (i - 0.22, i + 0.12, None)]
            ys = [y for before, after in zip(pairs, values, strict=True) for y in (before, after, None)]
            figure.add_scatter(
                x=xs, y=ys, mode="lines", line={"color": colour, "width": 0.8}, opacity=0.35, hoverinfo="skip"
            )
            figure.add_scatter(
                x=[i - 0.22] * len(pairs), y=pairs, mode="markers", marker={"color": QUIET, "size": 4}, hoverinfo="skip"
            )
        figure.add_scatter(
            x=[i + 0.12] * len(values),
            y=values,
            mode="markers",
            marker={"color": colour, "size": 6, "opacity": 0.8},
            customdata=list(zip(arm["seeds"], arm["measures"]["id_accuracy"], strict=True)),
            hovertemplate="seed %{customdata[0]}<br>%{y:.3f}<br>ID accuracy %{customdata[1]:.3f}<extra></extra>",
        )
        mean = sum(values) / len(values)
        figure.add_scatter(
            x=[i + 0.02, i + 0.32], y=[mean, mean], mode="lines", line={"color": INK, "width": 2.5}, hoverinfo="skip"
        )
    labels = [arm["label"].replace(" → ", "<br>→ ") for arm in arms]
    return _layout(
        figure,
        height=460,
        xaxis={"tickvals": list(range(len(arms))), "ticktext": labels, "tickangle": -35},
        yaxis={"title": title, "range": [-0.03, 1.03]},
    )


def effect_forest(arms: Sequence[Mapping[str, Any]], title: str) -> go.Figure:
    """Paired differences against the unweighted arm with their intervals, one row an arm."""
    figure = go.Figure()
    shown = [arm for arm in reversed(arms) if arm.get("effect")]
    for i, arm in enumerate(shown):
        effect = arm["effect"]["ood_accuracy"]
        figure.add_scatter(
            x=[effect["difference"]],
            y=[i],
            mode="markers",
            marker={"color": TOWARD[arm["toward"]], "size": 9},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [effect["high"] - effect["difference"]],
                "arrayminus": [effect["difference"] - effect["low"]],
                "color": TOWARD[arm["toward"]],
                "thickness": 2,
            },
            hovertemplate=f"{arm['label']}<br>{effect['difference']:+.3f} [{effect['low']:+.3f}, "
            f"{effect['high']:+.3f}]<extra></extra>",
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    return _layout(
        figure,
        height=80 + 30 * len(shown),
        xaxis={"title": title},
        yaxis={"tickvals": list(range(len(shown))), "ticktext": [arm["label"] for arm in shown], "automargin": True},
    )


def weights_by_class(arms: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Mean relative weight of each class of samples, a heat map with a row for each weighted arm."""
    shown = [arm for arm in reversed(arms) if arm.get("weight_by_class")]
    classes = list(shown[0]["weight_by_class"])
    values = [[arm["weight_by_class"][name] for name in classes] for arm in shown]
    figure = go.Figure(
        go.Heatmap(
            z=[[min(value, 2.0) for value in row] for row in values],
            x=classes,
            y=[arm["label"] for arm in shown],
            zmin=0,
            zmid=1,
            zmax=2,
            colorscale=[[0, OTHER], [0.5, "#f6f7f8"], [1, ACCENT]],
            text=[[f"{value:.2f}" for value in row] for row in values],
            texttemplate="%{text}",
            hovertemplate="%{y}<br>%{x}<br>mean ρ %{text}<extra></extra>",
            showscale=False,
        )
    )
    figure.update_yaxes(automargin=True)
    figure.update_xaxes(automargin=True, tickangle=-25)
    return _layout(figure, height=150 + 26 * len(shown))


def loss_traces(chains: Mapping[str, Any]) -> go.Figure:
    """Mean loss at each draw of every chain, with L(w*) as a line."""
    figure = go.Figure()
    for name, trace in enumerate(chains["trace"]):
        figure.add_scatter(y=trace, mode="lines", line={"width": 1}, name=f"chain {name}")
    figure.add_hline(y=chains["loss_at_anchor"], line={"color": INK, "dash": "dot", "width": 1})
    return _layout(figure, height=230, title=chains["title"], xaxis={"title": "draw"}, yaxis={"title": "L, nats"})


def alpha_sweep(sweep: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Mean outcome on the sweep's own seeds against α, one line a direction, target and policy."""
    figure = go.Figure()
    lines: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in sweep:
        lines.setdefault((row["direction"], row["toward"], row["policy"]), []).append(row)
    for (direction, toward, policy), rows in lines.items():
        dash = {"clip": "solid", "tilt": "dash", "rank": "dot", "rank-tilt": "dashdot"}[policy]
        figure.add_scatter(
            x=[row["alpha"] for row in rows],
            y=[row["difference"] for row in rows],
            error_y={"type": "data", "array": [row["standard_error"] or 0 for row in rows], "thickness": 1, "width": 2},
            mode="lines+markers",
            line={"color": TOWARD[toward], "dash": dash, "width": 1.2},
            marker={"symbol": [("circle" if row["chosen"] else "circle-open") for row in rows], "size": 9},
            hovertemplate=f"{direction} → {toward}, {policy}, α %{{x}}<br>%{{y:+.3f}}<extra></extra>",
        )
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    return _layout(figure, height=360, xaxis={"title": "α"}, yaxis={"title": "change of OOD accuracy"})
