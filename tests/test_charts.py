"""Charts from numbers: places of points and errors, what cannot be drawn, the span of an axis, a page of its own."""

import math
import re

from sfumato.charts import HEIGHT, WIDTH, Line, chart, page


def test_errors_reach_from_end_to_end_and_stay_inside():
    drawn = chart([Line("a", [(0, 1), (1, 3), (2, 2)], "c1", True, [0.5, math.nan, 9.0])], "x", "y", zero=True)
    points = [tuple(map(float, p.split(","))) for p in re.search(r'polyline[^>]*points="([^"]+)"', drawn)[1].split()]
    bars = [tuple(map(float, b)) for b in re.findall(r'd="M([\d.]+),([\d.]+)V([\d.]+)"', drawn)]
    assert len(points) == 3 and len(bars) == 2  # an error that is not known is not drawn
    scale = (points[0][1] - points[1][1]) / 2  # pixels of one unit
    assert bars[0][0] == points[0][0] and abs(bars[0][1] - (points[0][1] + scale / 2)) < 0.11
    assert abs(bars[0][2] - (points[0][1] - scale / 2)) < 0.11
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for bar in bars for x, y in (bar[:2], (bar[0], bar[2])))


def test_what_cannot_be_drawn_is_left_out():
    drawn = chart([Line("a", [(0, 1.0), (1, math.nan), (2, -1.0), (3, 2.0)], "c2", True)], "x", "y", log_y=True)
    assert drawn.count("<circle") == 2 and "nan" not in drawn
    assert "Nothing was measured yet" in chart([Line("a", [(0, math.nan)], "c1")], "x", "y")


def test_the_span_of_an_axis():
    """A single point keeps its place on an axis that others share."""
    drawn = chart([Line("a", [(0, 5.0)], "c1")], "x", "y", span=(-2.0, 2.0))
    left, right = 64.0, float(re.search(r'x2="([\d.]+)"', drawn)[1])
    assert abs(float(re.search(r'cx="([\d.]+)"', drawn)[1]) - (left + right) / 2) < 0.1


def test_a_page_needs_nothing_from_elsewhere():
    whole = page("<b>", ["<p>text</p>"])
    assert "<title>&lt;b&gt;</title>" in whole and "<p>text</p>" in whole
    assert not re.search(r"https?:|@import|url\(|src=", whole)
