"""A scatter of points with intervals on axes of any range, as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from patterning.report.charts import Axis
from patterning.report.shapes import BLUE, line, number, svg, text


@dataclass(frozen=True)
class Point:
    """A value against another, with the interval (low, high) of each where it is known."""

    label: str
    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    colour: str = BLUE


def scatter_points(points: Sequence[Point], x_title: str, y_title: str) -> Markup:
    """Points, whiskers for their intervals, and axes that hold them all; the label is shown on hovering."""
    left, top, width, height = 64, 10, 460, 300
    across = Axis.over([v for p in points for v in (p.x, *(p.x_interval or ()))], include=(0.0,))
    along = Axis.over([v for p in points for v in (p.y, *(p.y_interval or ()))])

    def x(value: float) -> float:
        return left + width * across.place(value)

    def y(value: float) -> float:
        return top + height * (1 - along.place(value))

    body = line(x(0.0), top, x(0.0), top + height, "currentColor", 0.8, opacity=0.5)
    for tick in across.ticks:
        body += line(x(tick), top + height, x(tick), top + height + 4, "currentColor", 0.8)
        body += text(x(tick), top + height + 16, f"{tick:.4g}", 11, "middle")
    for tick in along.ticks:
        body += line(left, y(tick), left + width, y(tick), "currentColor", 0.6, opacity=0.18)
        body += text(left - 6, y(tick) + 4, f"{tick:.4g}", 11, "end")
    body += text(left + width / 2, top + height + 34, x_title, 12, "middle")
    body += Markup('<g transform="translate(12 {}) rotate(-90)">{}</g>').format(
        number(top + height / 2), text(0, 0, y_title, 12, "middle")
    )
    for p in points:
        whiskers = Markup()
        if p.x_interval:
            whiskers += line(x(p.x_interval[0]), y(p.y), x(p.x_interval[1]), y(p.y), p.colour, 1, opacity=0.6)
        if p.y_interval:
            whiskers += line(x(p.x), y(p.y_interval[0]), x(p.x), y(p.y_interval[1]), p.colour, 1, opacity=0.6)
        body += Markup('<g><title>{}</title>{}<circle cx="{}" cy="{}" r="4" fill="{}"/></g>').format(
            f"{p.label}: {p.x:.3g}, {p.y:.3g}", whiskers, number(x(p.x)), number(y(p.y)), p.colour
        )
    return svg(body, left + width + 16, top + height + 44, f"{y_title} against {x_title}", "max-width: 620px")
