"""Figures of the induction experiment, from the plain values in its `results.json`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from patterning.report.figures import ACCENT, INK, OTHER, QUIET, _layout

TITLES = {
    "prefix_matching": "prefix matching, best head",
    "repeated_gap": "repeated-random gap, nats",
    "previous_token": "previous token, best head",
    "icl": "in-context learning score, nats",
    "loss:induction": "loss on induction tokens, nats",
    "loss:not induction": "loss on other tokens, nats",
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def pilot_curves(pilot: Mapping[str, Any], structure: Mapping[str, float]) -> go.Figure:
    """Structure along the pilot run, with thresholds and the three readings."""
    names = ("previous_token", "prefix_matching", "repeated_gap", "loss:not induction")
    figure = make_subplots(rows=1, cols=4, subplot_titles=[TITLES[name] for name in names], horizontal_spacing=0.06)
    begin = _begin(pilot["steps"])
    steps = pilot["steps"][begin:]
    for i, name in enumerate(names, 1):
        place: dict[str, Any] = {"row": 1, "col": i}
        figure.add_scatter(
            x=steps, y=pilot["curves"][name][begin:], mode="lines+markers", line={"color": INK, "width": 1.5},
            marker={"size": 4}, row=1, col=i,
        )  # fmt: skip
        if name in structure:
            figure.add_hline(y=structure[name], line={"color": QUIET, "dash": "dot"}, **place)
        for step in pilot["at"].values():
            figure.add_vline(x=max(steps[0], step), line={"color": ACCENT, "width": 1}, **place)
    _layout(figure, height=300)
    # a line across a logarithmic axis would stretch it: the range is stated
    figure.update_xaxes(
        type="log", dtick="D2", title="step", range=[math.log10(steps[0]) - 0.05, math.log10(steps[-1]) + 0.05]
    )
    figure.update_annotations(font_size=12)
    figure.update_layout(margin={"t": 40})
    return figure


def _begin(steps: Sequence[int]) -> int:
    """Place of the first step that a logarithmic axis can show."""
    return next((i for i, step in enumerate(steps) if step > 0), 0)


def arm_curves(arms: Sequence[Mapping[str, Any]], steps: Sequence[int], title: str) -> go.Figure:
    """Mean (thick) and every seed (thin) of some arms along training, for four measures; unweighted is grey."""
    names = ("prefix_matching", "repeated_gap", "loss:induction", "loss:not induction")
    figure = make_subplots(rows=1, cols=4, subplot_titles=[TITLES[name] for name in names], horizontal_spacing=0.06)
    begin = _begin(steps)
    x = steps[begin:]
    seen = {"less": 0, "more": 0, "": 0}
    others = ("#2e8b57", "#8250df", "#9a6700", "#0a7ea4", "#bf3989", "#57606a")
    for arm in arms:
        place = seen[arm["toward"]]
        colour = {"less": OTHER, "more": ACCENT}.get(arm["toward"]) or others[place % len(others)]
        dash = DASHES[place % len(DASHES)] if arm["toward"] else "solid"
        if arm["name"] == "unweighted":
            colour, dash = "#8c959f", "solid"
        else:
            seen[arm["toward"]] += 1
        for i, name in enumerate(names, 1):
            curves = [curve[name][begin:] for curve in arm["curves"]]
            for curve in curves:
                figure.add_scatter(
                    x=x, y=curve, mode="lines", line={"color": colour, "width": 0.7, "dash": dash}, opacity=0.35,
                    hoverinfo="skip", showlegend=False, row=1, col=i,
                )  # fmt: skip
            figure.add_scatter(
                x=x, y=np.mean(curves, axis=0).tolist(), mode="lines", name=arm["label"], legendgroup=arm["name"],
                line={"color": colour, "width": 2.4, "dash": dash}, showlegend=i == 1, row=1, col=i,
                hovertemplate=f"{arm['label']}<br>step %{{x}}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
    _layout(figure, height=380, title=title)
    figure.update_xaxes(type="log", dtick="D2", title="step")
    figure.update_annotations(font_size=12)
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.28}, margin={"t": 70})
    return figure


def forest(arms: Sequence[Mapping[str, Any]], measure: str, title: str) -> go.Figure:
    """Paired differences to the unweighted arm with their intervals, one row an arm; hollow: no interval."""
    figure = go.Figure()
    shown = [arm for arm in reversed(arms) if arm["effect"] and arm["effect"].get(measure)]
    for i, arm in enumerate(shown):
        effect = arm["effect"][measure]
        colour = {"less": OTHER, "more": ACCENT}.get(arm["toward"], "#6e7781")
        bars = None
        if effect["low"] is not None:
            bars = {
                "type": "data", "symmetric": False, "array": [effect["high"] - effect["difference"]],
                "arrayminus": [effect["difference"] - effect["low"]], "color": colour,
            }  # fmt: skip
        symbol = "circle" if bars else "circle-open"
        figure.add_scatter(
            x=[effect["difference"]], y=[i], mode="markers", error_x=bars,
            marker={"color": colour, "size": 9, "symbol": symbol},
            hovertemplate=f"{arm['label']}<br>%{{x:+.3f}}<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    return _layout(
        figure, height=90 + 26 * len(shown), xaxis={"title": title},
        yaxis={"tickvals": list(range(len(shown))), "ticktext": [arm["label"] for arm in shown], "automargin": True},
    )  # fmt: skip


def loadings(readings: Sequence[Mapping[str, Any]], modes: int = 4) -> go.Figure:
    """Loadings of the first modes at each reading, columns are components; the induction mode is marked."""
    titles = [f"{reading['stage']} (step {reading['step']})" for reading in readings]
    figure = make_subplots(rows=1, cols=len(readings), subplot_titles=titles, horizontal_spacing=0.06)
    for i, reading in enumerate(readings, 1):
        table = np.array(reading["loadings"]).T[:modes].copy()
        chosen = reading["choice"]["index"]
        if chosen < len(table):
            table[chosen] *= reading["choice"]["sign"]
        labels = [
            f"{'▶ ' if a == chosen else ''}{a + 1}: {100 * reading['shares'][a]:.0f} %" for a in range(len(table))
        ]
        figure.add_heatmap(
            z=table, x=reading["components"], y=labels, zmin=-1, zmax=1, zmid=0, showscale=False, row=1, col=i,
            colorscale=[[0, OTHER], [0.5, "#f6f7f8"], [1, ACCENT]],
            hovertemplate="%{x}, mode %{y}: %{z:.2f}<extra></extra>",
        )  # fmt: skip
    _layout(figure, height=270)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_annotations(font_size=12)
    figure.update_layout(margin={"t": 40})
    return figure


def group_means(readings: Sequence[Mapping[str, Any]], groups: str, value: str, title: str) -> go.Figure:
    """Mean of `value` ("mode" or "chi") by token class or domain at each reading, ± 2 standard errors."""
    figure = go.Figure()
    colours = {"before": "#afb8c1", "between": "#6e7781", "after": INK}
    for reading in readings:
        found = {name: one for name, one in reading[groups][value].items() if one["count"] > 1}
        figure.add_bar(
            x=list(found), y=[one["mean"] for one in found.values()], name=reading["stage"],
            error_y={"type": "data", "array": [2 * (one["standard_error"] or 0) for one in found.values()],
                     "thickness": 1, "width": 2},
            marker={"color": colours[reading["stage"]]},
        )  # fmt: skip
    _layout(figure, height=300, title=title)
    figure.update_layout(showlegend=True, barmode="group", legend={"orientation": "h", "y": 1.12, "x": 0.6})
    return figure


def sweep_figure(sweep: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Separation of "more" and "less" against α, one line a direction, stage and policy; chosen ones are filled."""
    figure = go.Figure()
    lines: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in sweep:
        lines.setdefault((row["direction"], row["stage"], row["policy"]), []).append(row)
    for i, ((direction, stage, policy), rows) in enumerate(lines.items()):
        figure.add_scatter(
            x=[row["alpha"] for row in rows], y=[row["separation"] for row in rows], mode="lines+markers",
            name=f"{direction}, {stage}, {policy}", line={"dash": DASHES[i % 5], "color": INK, "width": 1.2},
            marker={"symbol": ["circle" if row["chosen"] else "circle-open" for row in rows], "size": 9},
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": QUIET, "width": 1})
    _layout(figure, height=300, xaxis={"title": "α"}, yaxis={"title": "mean gap, more - less, nats"})
    figure.update_layout(showlegend=True)
    return figure
