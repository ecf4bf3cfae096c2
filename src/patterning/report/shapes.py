"""Small drawings as inline SVG: polygons, shares with intervals, a scatter of predictions, heat maps.

Text and axes take the colour of the page's text (`currentColor`), so a drawing is readable on light and on dark ground.
Everything that is not a number is escaped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Pairs = Sequence[Sequence[float]]

BLUE, ORANGE, GREY = "#2f7fd6", "#d9622b", "#8b949e"
POINTS = ("#d1495b", "#e09f3e", "#3f9b5c", "#2a9d8f", "#4c6fc4", "#8e5ba6")
"""A colour for each point of a polygon, in the order of its number."""

_CELL = 40
"""Side of the square that one polygon is drawn in."""


@dataclass(frozen=True)
class Polygon:
    """Points in the plane (k, 2), of which the `live` ones are joined in the order of their angles."""

    points: Pairs
    live: Sequence[bool]
    colour: str
    title: str


@dataclass(frozen=True)
class Bar:
    """A share with its interval; `mark` is a second share to compare with, `reference` a dotted line."""

    label: str
    share: float
    low: float
    high: float
    colour: str
    mark: float | None = None
    reference: float | None = None


@dataclass(frozen=True)
class Dot:
    """A point of a scatter with its intervals (low, high) in both directions; `hollow` ones are drawn as rings."""

    x: float
    y: float
    x_interval: tuple[float, float]
    y_interval: tuple[float, float]
    colour: str
    title: str
    square: bool = False
    hollow: bool = False


def svg(body: Markup, width: float, height: float, label: str, css: str = "") -> Markup:
    """A whole drawing that fills its place; `label` is what a screen reader says."""
    style = Markup(' style="{}"').format(css) if css else Markup("")
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}"{}>{}</svg>'
    ).format(number(width), number(height), label, style, body)


def polygon(shape: Polygon, radius: float) -> Markup:
    """One polygon in a square of side 40, whose edge is at `radius` of the plane; points not live are hollow."""
    scale = _CELL / 2 / radius
    places = [(_CELL / 2 + scale * x, _CELL / 2 - scale * y) for x, y in shape.points]
    live = [place for place, alive in zip(places, shape.live, strict=True) if alive]
    live.sort(key=lambda place: math.atan2(place[1] - _CELL / 2, place[0] - _CELL / 2))
    outline = " ".join(f"{number(x)},{number(y)}" for x, y in live)
    body = Markup('<polygon points="{}" fill="{}" fill-opacity=".14" stroke="{}" stroke-width="1.3"/>').format(
        outline, shape.colour, shape.colour
    )
    for i, ((x, y), alive) in enumerate(zip(places, shape.live, strict=True)):
        colour = POINTS[i % len(POINTS)]
        paint = f'fill="{colour}"' if alive else f'fill="none" stroke="{colour}" stroke-width="1.2"'
        body += Markup(f'<circle cx="{number(x)}" cy="{number(y)}" r="2.5" {paint}/>')
    return Markup("<title>{}</title>").format(shape.title) + body


def gallery(shapes: Sequence[Polygon], *, radius: float = 1.6) -> Markup:
    """Many polygons: twelve in a row, six on a phone."""
    drawings = [svg(polygon(shape, radius), _CELL, _CELL, shape.title) for shape in shapes]
    return Markup('<div class="gallery">{}</div>').format(Markup("").join(drawings))


def share_bars(bars: Sequence[Bar], label: str) -> Markup:
    """Horizontal bars from 0 to 100 %: share, whiskers for its interval, a diamond for `mark`, dots for `reference`."""
    width, left, step = 260, 8, 34
    scale = width - 2 * left
    body = Markup("")
    for i, bar in enumerate(bars):
        y = 16 + step * i
        middle = y + 9.5
        body += text(
            left, y, f"{bar.label}: {percent(bar.share)} [{percent(bar.low)}, {percent(bar.high)}]", 11.5, "start"
        )
        body += rectangle(left, y + 5, scale, 9, "currentColor", 0.08)
        body += rectangle(left, y + 5, scale * bar.share, 9, bar.colour, 0.8)
        body += line(left + scale * bar.low, middle, left + scale * bar.high, middle, "currentColor", 1.6)
        if bar.reference is not None:
            place = left + scale * bar.reference
            body += line(place, y + 2, place, y + 17, "currentColor", 1.2, dash="2 2")
        if bar.mark is not None:
            body += _diamond(left + scale * bar.mark, middle)
    return svg(body, width, step * len(bars) + 2, label, "max-width: 360px")


def scatter(dots: Sequence[Dot], x_title: str, y_title: str, label: str) -> Markup:
    """Shares against shares, both axes from 0 to 100 %, with the diagonal of agreement."""
    side, left, top = 320, 46, 10
    body = line(left, top + side, left + side, top, "currentColor", 1, dash="3 3", opacity=0.5)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = left + side * tick, top + side * (1 - tick)
        body += line(x, top, x, top + side, "currentColor", 0.7, opacity=0.15)
        body += line(left, y, left + side, y, "currentColor", 0.7, opacity=0.15)
        body += text(x, top + side + 16, percent(tick), 11, "middle") + text(left - 6, y + 4, percent(tick), 11, "end")
    body += text(left + side / 2, top + side + 36, x_title, 12, "middle")
    body += Markup('<g transform="translate(11 {}) rotate(-90)">{}</g>').format(
        top + side / 2, text(0, 0, y_title, 12, "middle")
    )
    for dot in dots:
        x, y = left + side * dot.x, top + side * (1 - dot.y)
        across = [left + side * value for value in dot.x_interval]
        along = [top + side * (1 - value) for value in dot.y_interval]
        whiskers = line(across[0], y, across[1], y, dot.colour, 1.1, opacity=0.7)
        whiskers += line(x, along[0], x, along[1], dot.colour, 1.1, opacity=0.7)
        body += Markup("<g><title>{}</title>{}{}</g>").format(dot.title, whiskers, _marker(dot, x, y))
    return svg(body, left + side + 22, top + side + 44, label, "max-width: 520px")


def heat_map(
    values: Pairs, rows: Sequence[str], columns: Sequence[str], label: str, *, middle: float, reach: float
) -> Markup:
    """Numbers in a grid: blue above `middle`, orange below, full colour at a distance of `reach`."""
    wide, high, left, top = 34, 19, 58, 16
    body = Markup("")
    for j, name in enumerate(columns):
        body += text(left + wide * (j + 0.5), top - 5, name, 9.5, "middle")
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        body += text(left - 5, top + high * (i + 0.68), name, 10, "end")
        for j, value in enumerate(row):
            colour = BLUE if value > middle else ORANGE
            strength = min(abs(value - middle) / reach, 1) * 0.85 if reach > 0 else 0
            body += rectangle(left + wide * j, top + high * i, wide - 1, high - 1, colour, 0.04 + strength)
            body += text(left + wide * (j + 0.5), top + high * (i + 0.68), f"{value:.2f}", 10, "middle")
    return svg(body, left + wide * len(columns), top + high * len(rows), label)


def poster(strips: Sequence[tuple[str, Sequence[Polygon]]], label: str, *, radius: float = 1.6) -> Markup:
    """Rows of polygons, each under its caption, as one drawing on white that stands alone in a file."""
    body, y, width = Markup(""), 6.0, 0.0
    for caption, shown in strips:
        body += text(4, y + 12, caption, 11.5, "start")
        for i, shape in enumerate(shown):
            body += Markup('<g transform="translate({} {})">{}</g>').format(_CELL * i, y + 16, polygon(shape, radius))
        y, width = y + _CELL + 26, max(width, _CELL * len(shown))
    ground = Markup('<rect width="{}" height="{}" fill="white"/>').format(number(width), number(y))
    return svg(ground + body, width, y, label, "color: #1b1f24; font-family: system-ui, sans-serif")


def side_by_side(rows: Sequence[tuple[str, Markup, Markup]]) -> Markup:
    """Captioned pairs of drawings: side by side on a desktop, one under the other on a phone."""
    row = Markup('<section class="pair"><h3>{}</h3><div>{}</div><div>{}</div></section>')
    return Markup("").join(row.format(*parts) for parts in rows)


def tiles(drawings: Sequence[tuple[str, Markup]]) -> Markup:
    """Captioned drawings in as many columns as fit."""
    tile = Markup("<figure><figcaption>{}</figcaption>{}</figure>")
    return Markup('<div class="tiles">{}</div>').format(Markup("").join(tile.format(*parts) for parts in drawings))


def percent(share: float) -> str:
    """A share in words, e.g. "94.5 %"; whole numbers without a decimal."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _marker(dot: Dot, x: float, y: float) -> Markup:
    paint = f'fill="none" stroke="{dot.colour}" stroke-width="1.6"' if dot.hollow else f'fill="{dot.colour}"'
    if dot.square:
        return Markup(f'<rect x="{number(x - 4)}" y="{number(y - 4)}" width="8" height="8" {paint}/>')
    return Markup(f'<circle cx="{number(x)}" cy="{number(y)}" r="4.5" {paint}/>')


def _diamond(x: float, y: float) -> Markup:
    corners = " ".join(f"{number(x + dx)},{number(y + dy)}" for dx, dy in ((-4, 0), (0, -4), (4, 0), (0, 4)))
    return Markup(f'<polygon points="{corners}" fill="none" stroke="currentColor" stroke-width="1.3"/>')


def rectangle(x: float, y: float, width: float, height: float, colour: str, opacity: float) -> Markup:
    """A filled rectangle."""
    return Markup(
        f'<rect x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}" '
        f'fill="{colour}" fill-opacity="{opacity:.2f}"/>'
    )


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float, *, dash: str = "", opacity: float = 1
) -> Markup:
    """A straight line."""
    extra = (f' stroke-dasharray="{dash}"' if dash else "") + (f' stroke-opacity="{opacity}"' if opacity < 1 else "")
    return Markup(
        f'<line x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}" stroke="{colour}" '
        f'stroke-width="{width}"{extra}/>'
    )


def text(x: float, y: float, words: str, size: float, anchor: str) -> Markup:
    """Words at a place; `anchor` is start, middle or end."""
    return Markup(
        f'<text x="{number(x)}" y="{number(y)}" font-size="{size}" text-anchor="{anchor}" fill="currentColor">'
        f"{escape(words)}</text>"
    )


def number(value: float) -> str:
    """A coordinate with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")
