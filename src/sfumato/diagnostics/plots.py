"""Line charts as inline SVG, drawn by matplotlib, which is imported for the first chart."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

BLUE, ORANGE, GREEN, GREY, PURPLE = "#1f77b4", "#d66028", "#2c8c5a", "#7c8894", "#7a4fb5"
_INK, _QUIET = "#26323f", "#5f6b77"
_SIZE = (5.6, 3.3)  # inches; pages scale it to their columns
_SETTINGS = {  # on top of matplotlib's defaults, whatever the caller has configured
    "svg.fonttype": "none", "svg.hashsalt": "sfumato", "text.parse_math": False, "text.color": _INK,
    "axes.labelcolor": _INK, "axes.edgecolor": _QUIET, "xtick.color": _QUIET, "ytick.color": _QUIET,
    "axes.grid": True, "grid.color": _QUIET, "grid.alpha": 0.2, "axes.spines.top": False, "axes.spines.right": False,
    "axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False, "lines.markersize": 4,
}  # fmt: skip
Values = Sequence[float | None] | np.ndarray


class Line(NamedTuple):
    """A curve: its name, its points (None or nan if unknown), and half the bar of each y, such as its standard error.

    colour, dashes: as in matplotlib; dots: whether to mark the points, as for measurements.
    """

    name: str
    x: Values
    y: Values
    colour: str
    dots: bool = False
    errors: Values | None = None
    dashes: str = "-"


class Panel(NamedTuple):
    """Curves over one x axis; up: the label of the y axis."""

    up: str
    lines: Sequence[Line]


def chart(
    lines: Sequence[Line], across: str, up: str, log: bool = False, span: tuple[float, float] | None = None
) -> str | None:
    """Curves with error bars, axes and a legend as an <svg> element; None if there is no point to draw.

    A linear y axis starts at 0 if no point lies below; a logarithmic one shows only positive points. span: the ends of
    the x axis, by default those of the points. The frame fits the points; error bars may leave it.
    """
    return charts([Panel(up, lines)], across, log, span)


def charts(
    panels: Sequence[Panel], across: str, log: bool = False, span: tuple[float, float] | None = None
) -> str | None:
    """As `chart`, of panels side by side, whose curves of one name have one colour and one entry in the legend."""
    drawn = [Panel(up, [each for line in lines if len((each := _drawable(line, log)).x)]) for up, lines in panels]
    drawn = [panel for panel in drawn if panel.lines]
    if not drawn:
        return None
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _SETTINGS]):
        figure = Figure(figsize=(_SIZE[0] * len(drawn), _SIZE[1]), layout="constrained")
        named: dict[str, Any] = {}
        for axes, panel in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
            _plot(axes, panel, across, log, span)
            handles, labels = axes.get_legend_handles_labels()
            named = dict(zip(labels, handles, strict=True)) | named
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=2 * len(drawn))
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(written.getvalue(), f"{', '.join(panel.up for panel in drawn)} over {across}")


def _plot(axes: Any, panel: Panel, across: str, log: bool, span: tuple[float, float] | None) -> None:
    axes.set(xlabel=across, ylabel=panel.up)
    for line in panel.lines:
        marker = "o" if line.dots or len(line.x) == 1 else None
        axes.plot(line.x, line.y, color=line.colour, ls=line.dashes, marker=marker, label=line.name)
    _frame(axes, log, span)
    for line in panel.lines:
        if line.errors is not None:
            axes.errorbar(line.x, line.y, line.errors, fmt="none", ecolor=line.colour, elinewidth=1.2, alpha=0.7)


def _drawable(line: Line, log: bool) -> Line:
    """The line as arrays, without points that cannot be drawn."""
    x, y = np.array(line.x, dtype=float), np.array(line.y, dtype=float)
    kept = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))
    errors = None if line.errors is None else np.array(line.errors, dtype=float)[kept]
    return line._replace(x=x[kept], y=y[kept], errors=errors)


def _frame(axes: Any, log: bool, span: tuple[float, float] | None) -> None:
    """Fix the limits to the points drawn so far, and set ticks at round numbers."""
    from matplotlib import ticker

    if log:
        axes.set_yscale("log", nonpositive="clip")
        low, high = axes.get_ylim()
        decades = math.log10(high / low)
        marks = (1, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 3 else (1,)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=marks))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.autoscale_view()
        if axes.dataLim.ymin >= 0:
            axes.set_ylim(bottom=0)
    if span is not None:
        margin = axes.margins()[0] * (span[1] - span[0])
        axes.set_xlim(span[0] - margin, span[1] + margin)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
    axes.autoscale(False)


def _inline(svg: str, label: str) -> str:
    """An <svg> element for a page: without the file header, and without group ids, which charts would share."""
    svg = re.sub(r' id="[a-z0-9._]+_\d+"', "", svg[svg.index("<svg") :])
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
