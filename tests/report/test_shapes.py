"""Drawings: well-formed, with everything in its place, and nothing that a label could break."""

from xml.etree import ElementTree

import pytest

from patterning.report.page import Section, render_page
from patterning.report.shapes import (
    BLUE,
    Bar,
    Dot,
    Polygon,
    gallery,
    heat_map,
    percent,
    poster,
    scatter,
    share_bars,
    side_by_side,
    tiles,
)

NASTY = "<script>\"&'"
SVG = "{http://www.w3.org/2000/svg}"


def square(live: list[bool]) -> Polygon:
    return Polygon([(1.0, 1.0), (-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0)], live, BLUE, NASTY)


def test_a_polygon_joins_its_live_points_in_order() -> None:
    drawing = ElementTree.fromstring(poster([("one", [square([True] * 4)])], "label", radius=2.0))
    outline = next(drawing.iter(f"{SVG}polygon")).attrib["points"]
    assert outline == "10,10 30,10 30,30 10,30"  # by angle, y pointing down: never through the middle
    assert len(list(drawing.iter(f"{SVG}circle"))) == 4


def test_points_that_are_not_live_are_hollow_and_not_joined() -> None:
    drawing = ElementTree.fromstring(str(gallery([square([True, True, True, False])], radius=2.0)).replace(
        'xmlns="http://www.w3.org/2000/svg" ', ""))  # fmt: skip
    assert len(next(drawing.iter("polygon")).attrib["points"].split()) == 3
    assert [circle.attrib["fill"] == "none" for circle in drawing.iter("circle")] == [False, False, False, True]


def test_every_drawing_is_well_formed_and_escapes_its_labels() -> None:
    bar = Bar(NASTY, 0.5, 0.4, 0.6, BLUE, mark=0.7, reference=0.2)
    dot = Dot(0.2, 0.3, (0.1, 0.4), (0.2, 0.5), BLUE, NASTY, square=True, hollow=True)
    drawings = [
        poster([(NASTY, [square([True] * 4)])], NASTY),
        share_bars([bar], NASTY),
        scatter([dot], NASTY, NASTY, NASTY),
        heat_map([[0.5, 1.5]], [NASTY], [NASTY, "b"], NASTY, middle=1, reach=0.5),
    ]
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).tag == f"{SVG}svg"
        assert "<script" not in drawing
    page = side_by_side([(NASTY, drawings[0], drawings[1])]) + tiles([(NASTY, drawings[2])])
    assert "<script" not in page


def test_bars_and_dots_stand_at_their_values() -> None:
    bars = ElementTree.fromstring(share_bars([Bar("a", 0.25, 0.1, 0.5, BLUE)], "bars"))
    filled = [box for box in bars.iter(f"{SVG}rect") if box.attrib["fill"] == BLUE]
    assert float(filled[0].attrib["width"]) == pytest.approx(0.25 * 244, abs=0.1)
    whisker = next(bars.iter(f"{SVG}line"))
    assert float(whisker.attrib["x2"]) - float(whisker.attrib["x1"]) == pytest.approx(0.4 * 244, abs=0.2)


@pytest.mark.parametrize(("share", "words"), [(0.945, "94.5 %"), (1.0, "100 %"), (0.0, "0 %"), (1 / 3, "33.3 %")])
def test_percent(share: float, words: str) -> None:
    assert percent(share) == words


def test_a_page_without_plotly_figures_is_small_and_dark_where_wished() -> None:
    page = render_page(
        title="t", subtitle="s", headline=["h"], warnings=[], sections=[Section("a")], provenance="p", config="c"
    )
    assert len(page) < 20_000
    assert "plotly" not in page
    assert 'class="plain"' in page
