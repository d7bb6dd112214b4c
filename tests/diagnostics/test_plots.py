"""Charts: where points, error bars and ticks stand, what cannot be drawn, and that nothing outside them matters."""

import math
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from sfumato.diagnostics.plots import BLUE, ORANGE, Line, Panel, chart, charts

NS = "{http://www.w3.org/2000/svg}"
QUIET = "#5f6b77"  # of the labels of ticks


class Drawn:
    """A chart read back in the units of its axes, by the labels of its ticks."""

    def __init__(self, svg: str, log: bool = False) -> None:
        self.root = ElementTree.fromstring(svg)
        self.ticks = {"x": {}, "y": {}}
        for group in self.root.iter(NS + "g"):
            marks, texts = group.findall(f"{NS}g/{NS}g/{NS}use"), group.findall(f"{NS}g/{NS}text")
            if len(marks) == len(texts) == 1 and f"fill: {QUIET}" in texts[0].get("style"):
                axis = "y" if "text-anchor: end" in texts[0].get("style") else "x"
                value = float(texts[0].text.replace(",", "").replace("\N{MINUS SIGN}", "-"))
                self.ticks[axis][value] = float(marks[0].get(axis))
        self.maps = {}
        for axis, ticks in self.ticks.items():
            values = np.log(list(ticks)) if log and axis == "y" else list(ticks)
            self.maps[axis] = np.polyfit(list(ticks.values()), values, 1)
        self.log = log

    def paths(self, colour: str, width: float) -> list[np.ndarray]:
        """The paths (n, 2) of a colour and width within the frame."""
        found = []
        for path in self.root.iter(NS + "path"):
            style = path.get("style") or ""
            if (
                path.get("d")
                and path.get("clip-path")
                and f"stroke: {colour}" in style
                and f"stroke-width: {width}" in style
            ):
                pixels = np.array([float(w) for w in path.get("d").split() if w not in "ML"]).reshape(-1, 2)
                x, y = (np.polyval(self.maps[axis], pixels[:, i]) for i, axis in enumerate("xy"))
                found.append(np.stack([x, np.exp(y) if self.log else y], 1))
        return found

    @property
    def frame(self) -> tuple[float, float]:
        """The lowest and the highest y inside."""
        box = self.root.find(f"{NS}defs/{NS}clipPath/{NS}rect")
        top, height = float(box.get("y")), float(box.get("height"))
        ends = np.polyval(self.maps["y"], [top + height, top])
        return tuple(np.exp(ends) if self.log else ends)

    def words(self) -> str:
        return " ".join(text.text for text in self.root.iter(NS + "text"))


def test_points_and_errors_stand_where_they_are():
    line = Line("a", [0, 1, 2], [1, 3, 2], BLUE, True, [0.5, None, 9.0])
    drawn = Drawn(chart([line], "across", "up"))
    (curve,) = drawn.paths(BLUE, 1.5)
    assert np.allclose(curve, [(0, 1), (1, 3), (2, 2)], atol=0.01)
    first, last = drawn.paths(BLUE, 1.2)  # an error that is not known is not drawn
    assert np.allclose(first, [(0, 0.5), (0, 1.5)], atol=0.01) and np.allclose(last[:, 0], 2, atol=0.01)
    low, high = drawn.frame
    assert low == pytest.approx(0, abs=0.01) and 3 < high < 4  # the frame fits the points; a long bar is cut by it
    assert "across" in drawn.words() and "up" in drawn.words() and drawn.words().endswith("a")


def test_a_logarithmic_axis():
    values = [0.02, 0.1, 0.7]
    drawn = Drawn(chart([Line("a", [0, 1, 2], values, BLUE, True, [0.01, 0.2, 0.1])], "x", "y", log=True), log=True)
    (curve,) = drawn.paths(BLUE, 1.5)
    assert np.allclose(curve, np.stack([[0, 1, 2], values], 1), rtol=0.01, atol=0.01)
    bars = drawn.paths(BLUE, 1.2)
    assert np.allclose(bars[0][:, 1], [0.01, 0.03], rtol=0.01) and bars[1][1, 1] == pytest.approx(0.3, rel=0.01)
    assert bars[1][0, 1] <= drawn.frame[0]  # below zero: down to the frame
    assert set(drawn.ticks["y"]) >= {0.02, 0.05, 0.1, 0.2, 0.5}


@pytest.mark.parametrize("values", [[0.42, 0.36, 0.35], [1.0, 30.0, 1e6], [5.0]])
def test_a_logarithmic_axis_has_ticks_at_round_numbers(values):
    drawn = Drawn(chart([Line("a", range(len(values)), values, BLUE)], "x", "y", log=True), log=True)
    low, high = drawn.frame
    inside = [tick for tick in drawn.ticks["y"] if low <= tick <= high]
    assert 2 <= len(inside) <= 9 and all(float(f"{tick:.2g}") == tick for tick in inside)


def test_what_cannot_be_drawn_is_left_out():
    drawn = Drawn(
        chart([Line("a", [0, 1, 2, 3], [1.0, math.nan, -1.0, 2.0], BLUE, True)], "x", "y", log=True), log=True
    )
    (curve,) = drawn.paths(BLUE, 1.5)
    assert np.allclose(curve, [(0, 1), (3, 2)], atol=0.02)
    assert chart([Line("a", [0, 1], [math.nan, None], BLUE)], "x", "y") is None and chart([], "x", "y") is None
    assert "b" not in Drawn(chart([Line("a", [0, 1], [1, 2], BLUE), Line("b", [0], [None], ORANGE)], "", "")).words()


def test_the_span_of_an_axis():
    """A single point keeps its place on an axis that others share."""
    drawn = Drawn(chart([Line("a", [0], [5.0], BLUE)], "x", "y", span=(-2.0, 2.0)))
    assert {-2, -1, 0, 1, 2} <= set(drawn.ticks["x"])


def test_panels_share_their_legend():
    """Two axes with the curves of each, whose names stand once; a panel without a point is left out."""
    ways = [Line("student", [1, 2], [3.0, 4.0], BLUE), Line("teacher", [1, 2], [5.0, 6.0], ORANGE)]
    whole = ElementTree.fromstring(charts([Panel("distance", ways), Panel("law", ways[:1])], "calls", log=True))
    words = [text.text for text in whole.iter(NS + "text")]
    assert [words.count(name) for name in ("calls", "distance", "law", "student", "teacher")] == [2, 1, 1, 1, 1]
    curves = [path.get("style") for path in whole.iter(NS + "path") if path.get("clip-path")]
    assert (
        sum(f"stroke: {BLUE}" in style for style in curves) == 2 and sum(f"stroke: {ORANGE}" in s for s in curves) == 1
    )
    assert charts([Panel("distance", ways), Panel("law", [])], "calls") == chart(ways, "calls", "distance")
    assert charts([Panel("law", [])], "calls") is None


def test_a_drawing_is_the_same_whatever_the_caller_has_set():
    lines = [Line("<i> $x^2$ & more", [0, 1], [1, 2], BLUE, True, [0.1, 0.2])]
    first = chart(lines, "x", "<b>y</b>")
    with matplotlib.rc_context({"font.size": 30, "figure.dpi": 40, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert chart(lines, "x", "<b>y</b>") == first
        assert matplotlib.rcParams["font.size"] == 30 and matplotlib.rcParams["svg.hashsalt"] is None
    assert "&lt;i&gt; $x^2$ &amp; more" in first and "<b>" not in first


def test_drawing_leaves_the_process_as_it_was():
    code = (
        "import sys, matplotlib\n"
        "from sfumato.diagnostics.plots import BLUE, Line, chart\n"
        "settings = lambda: {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != 'backend'}\n"
        "before = settings()\n"
        "chart([Line('a', [0, 1], [1, 2], BLUE)], 'x', 'y')\n"
        "print('matplotlib.pyplot' in sys.modules, settings() == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_points_below_zero_are_in_the_frame():
    """The frame is that of the points, not of 0 to 1: a path from -3 to 3 has ticks on both sides of 0."""
    drawn = chart([Line("path", [-6, 0, 6], [-3.0, 1.0, 3.0], BLUE)], "x", "y")
    assert all(f">{tick}<" in drawn for tick in ("−2", "2", "−4", "4"))
