"""Charts as inline SVG: paired outcomes by arm, differences with intervals, curves, and matrices of numbers.

Text and axes take the colour of the page's text, so that a chart reads on light and on dark ground. Nothing here knows
which experiment it draws.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from patterning.report.shapes import BLUE, GREY, ORANGE, line, number, svg, text

COLOURS = (BLUE, ORANGE, "#3f9b5c", "#8e5ba6", "#e09f3e", "#2a9d8f", "#d1495b", "#4c6fc4")


@dataclass(frozen=True)
class Strip:
    """Outcomes of one arm by seed, with those of the same seeds unweighted; `titles` are shown on hovering."""

    label: str
    values: Sequence[float]
    base: Sequence[float] = ()
    colour: str = BLUE
    titles: Sequence[str] = ()


@dataclass(frozen=True)
class Difference:
    """A difference with its interval, one row of a forest."""

    label: str
    value: float
    low: float
    high: float
    colour: str = BLUE


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y), with a band (low, high) where there is one."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = BLUE
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False
    width: float = 1.4


@dataclass(frozen=True)
class Axis:
    """A range with its ticks: `place(value)` in 0..1."""

    low: float
    high: float
    logarithmic: bool = False
    ticks: Sequence[float] = field(default_factory=tuple)

    @classmethod
    def over(cls, values: Sequence[float], logarithmic: bool = False, include: Sequence[float] = ()) -> "Axis":
        """The range of the finite values, a little wider, with round ticks."""
        finite = [v for v in (*values, *include) if math.isfinite(v) and (v > 0 or not logarithmic)] or [1.0]
        low, high = min(finite), max(finite)
        if logarithmic:
            low, high = low / 1.1, high * 1.1
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            ticks = [m * 10.0**p for p in powers for m in ((1, 2, 5) if len(powers) < 4 else (1,))]
        else:
            room = 0.04 * (high - low) or 0.05 * max(abs(high), 1e-9)
            low, high = low - room, high + room
            step = _round_step((high - low) / 5)
            ticks = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return cls(low, high, logarithmic, [tick for tick in ticks if low <= tick <= high])

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the low end."""
        scale: Callable[[float], float] = math.log if self.logarithmic else float
        if self.logarithmic:
            value = max(value, self.low)
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


def strips(groups: Sequence[Strip], title: str, *, limits: tuple[float, float] | None = None) -> Markup:
    """Outcomes by arm, one row an arm: the same seeds unweighted (small, grey) joined to theirs, and the mean (bar)."""
    left, width, step, top = 260, 520, 30, 26
    every = [value for group in groups for value in (*group.values, *group.base)]
    axis = Axis.over(every, include=limits or ())
    height = top + step * len(groups)

    def x(value: float) -> float:
        return left + width * axis.place(value)

    body = _x_axis(axis, left, width, top - 4, height, title)
    for i, group in enumerate(groups):
        y = top + step * i + step / 2
        body += text(left - 8, y + 4, group.label, 12, "end")
        for k, value in enumerate(group.values):
            if k < len(group.base):
                body += line(x(group.base[k]), y - 7, x(value), y + 2, group.colour, 0.7, opacity=0.35)
                body += Markup('<circle cx="{}" cy="{}" r="1.7" fill="{}"/>').format(
                    number(x(group.base[k])), number(y - 7), GREY
                )
            note = group.titles[k] if k < len(group.titles) else f"{value:.4g}"
            body += Markup(
                '<circle cx="{}" cy="{}" r="3" fill="{}" fill-opacity=".75"><title>{}</title></circle>'
            ).format(number(x(value)), number(y + 2), group.colour, note)
        mean = sum(group.values) / len(group.values)
        body += line(x(mean), y - 4, x(mean), y + 9, "currentColor", 2.4)
    return _scrolling(svg(body, left + width + 16, height + 24, title), left + width + 16)


def forest(rows: Sequence[Difference], title: str) -> Markup:
    """Differences with their intervals, one row each, and a line at 0."""
    left, width, step, top = 290, 460, 24, 26
    axis = Axis.over([value for row in rows for value in (row.low, row.high)], include=(0.0,))
    height = top + step * len(rows)
    body = _x_axis(axis, left, width, top - 4, height, title)
    zero = left + width * axis.place(0.0)
    body += line(zero, top - 4, zero, height, "currentColor", 1)
    for i, row in enumerate(rows):
        y = top + step * i + step / 2
        body += text(left - 8, y + 4, row.label, 12, "end")
        low, high, at = (left + width * axis.place(value) for value in (row.low, row.high, row.value))
        body += line(low, y, high, y, row.colour, 2)
        body += _dot(at, y, 4, row.colour, f"{row.label}: {row.value:+.3g} [{row.low:+.3g}, {row.high:+.3g}]")
    return _scrolling(svg(body, left + width + 16, height + 24, title), left + width + 16)


def curves(
    lines: Sequence[Curve],
    x_title: str,
    y_title: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    marks: Mapping[str, float] | None = None,
    width: float = 640,
    height: float = 260,
) -> Markup:
    """Lines over a common axis; `marks`: label → x of a vertical line."""
    x_axis = Axis.over([v for curve in lines for v in curve.x], log_x)
    y_axis = Axis.over([v for curve in lines for v in (*curve.y, *curve.low, *curve.high)], log_y)
    longest = max((len(_tick(tick)) for tick in y_axis.ticks), default=0)
    left, top, bottom = max(56, 26 + 6 * longest), 14, 40  # the title stands beside the numbers of the axis
    inner_width, inner_height = width - left - 12, height - top - bottom

    def at(px: float, py: float) -> str:
        return f"{number(left + inner_width * x_axis.place(px))},{number(top + inner_height * (1 - y_axis.place(py)))}"

    body = _grid(x_axis, y_axis, left, top, inner_width, inner_height, x_title, y_title)
    for label, place in (marks or {}).items():
        x = left + inner_width * x_axis.place(place)
        body += line(x, top, x, top + inner_height, "currentColor", 1, dash="4 3", opacity=0.5)
        body += text(x + 3, top + 9, label, 10.5, "start")
    for curve in lines:
        points = [(px, py) for px, py in zip(curve.x, curve.y, strict=True) if math.isfinite(py)]
        if curve.low:
            edge = [at(px, py) for px, py in zip(curve.x, curve.low, strict=True)]
            edge += [at(px, py) for px, py in reversed(list(zip(curve.x, curve.high, strict=True)))]
            body += Markup('<polygon points="{}" fill="{}" fill-opacity=".15"/>').format(" ".join(edge), curve.colour)
        dash = Markup(' stroke-dasharray="5 3"') if curve.dashed else Markup("")
        body += Markup(
            '<polyline points="{}" fill="none" stroke="{}" stroke-width="{}"{}><title>{}</title></polyline>'
        ).format(" ".join(at(*point) for point in points), curve.colour, curve.width, dash, curve.label)
    named = list({curve.label: curve for curve in lines if curve.label}.values())
    return _scrolling(svg(body, width, height, f"{y_title} against {x_title}"), width) + legend(
        [(curve.label, curve.colour) for curve in named]
    )


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Names with their colours, in a line."""
    parts = [
        Markup(
            '<span style="white-space:nowrap;margin-right:1rem"><svg viewBox="0 0 10 10" width="10" height="10" '
            'aria-hidden="true"><rect width="10" height="10" fill="{}"/></svg> {}</span>'
        ).format(colour, name)
        for name, colour in entries
    ]
    return Markup('<p class="quiet">{}</p>').format(Markup(" ").join(parts)) if len(parts) > 1 else Markup("")


def matrix(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    middle: float = 0.0,
    reach: float | None = None,
    digits: int = 2,
) -> Markup:
    """A table of numbers with coloured ground: blue above `middle`, orange below, strongest at `reach` from it."""
    most = reach or max((abs(v - middle) for row in values for v in row if math.isfinite(v)), default=1.0) or 1.0
    head = Markup("").join(Markup("<th>{}</th>").format(name) for name in columns)
    lines = []
    for name, row in zip(rows, values, strict=True):
        cells = Markup("").join(
            Markup('<td style="background:{}">{}</td>').format(_shade((value - middle) / most), f"{value:.{digits}f}")
            for value in row
        )
        lines.append(Markup("<tr><td>{}</td>{}</tr>").format(name, cells))
    return Markup(
        '<div class="scroll" tabindex="0"><table><thead><tr><th></th>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, Markup("").join(lines))


def _shade(share: float) -> str:
    if not math.isfinite(share):
        return "none"
    colour = "47,127,214" if share > 0 else "217,98,43"
    return f"rgba({colour},{min(abs(share), 1) * 0.7:.2f})"


def _dot(x: float, y: float, radius: float, colour: str, title: str) -> Markup:
    dot = Markup('<circle cx="{}" cy="{}" r="{}" fill="{}" fill-opacity=".8"><title>{}</title></circle>')
    return dot.format(number(x), number(y), radius, colour, title)


def _scrolling(drawing: Markup, width: float) -> Markup:
    """In a box of its own: on a phone a wide chart scrolls, for its labels to stay readable."""
    return Markup('<div class="scroll" tabindex="0"><div style="min-width:{}px;max-width:{}px">{}</div></div>').format(
        number(min(width, 560)), number(width * 1.25), drawing
    )


def _x_axis(axis: Axis, left: float, width: float, top: float, bottom: float, title: str) -> Markup:
    body = text(left + width / 2, 12, title, 12, "middle")
    for tick in axis.ticks:
        x = left + width * axis.place(tick)
        body += line(x, top, x, bottom, "currentColor", 0.7, opacity=0.15)
        body += text(x, bottom + 14, _tick(tick), 11, "middle")
    return body


def _grid(
    x_axis: Axis, y_axis: Axis, left: float, top: float, width: float, height: float, x_title: str, y_title: str
) -> Markup:
    body = Markup("")
    for tick in x_axis.ticks:
        x = left + width * x_axis.place(tick)
        body += line(x, top, x, top + height, "currentColor", 0.7, opacity=0.12)
        body += text(x, top + height + 14, _tick(tick), 10.5, "middle")
    for tick in y_axis.ticks:
        y = top + height * (1 - y_axis.place(tick))
        body += line(left, y, left + width, y, "currentColor", 0.7, opacity=0.12)
        body += text(left - 6, y + 4, _tick(tick), 10.5, "end")
    body += text(left + width / 2, top + height + 32, x_title, 11.5, "middle")
    return body + Markup(
        '<text x="{}" y="{}" font-size="11.5" fill="currentColor" transform="rotate(-90 12 {})">{}</text>'
    ).format(12, number(top + height / 2 + 30), number(top + height / 2 + 30), y_title)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step)) if step > 0 else 1.0
    return next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step), 10 * power)


def _tick(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.1e}"


def standalone(chart: Markup) -> Markup:
    """The drawing of a chart alone, dark on white ground: a file that other pages show as an image."""
    whole = str(chart)
    drawing = whole[whole.index("<svg") : whole.rindex("</svg>") + len("</svg>")]
    return Markup(drawing.replace("<svg", '<svg style="background:#fff;color:#222;font-family:sans-serif"', 1))
