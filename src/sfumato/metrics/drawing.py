"""A sweep as a picture: each metric over the number of calls, a line for each of the other settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.files import atomic
from sfumato.metrics.evaluation import Point

FORMATS = (".png", ".svg", ".pdf")
_QUIET = "#9aa5b1"


def draw(points: Sequence[Point], path: Path) -> None:
    """Write the picture; the suffix of `path`, one of FORMATS, sets the format."""
    from matplotlib.figure import Figure

    names = list(points[0].metrics)
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _panel(axes, points, name)
    figure.axes[0].legend()
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.lower().removeprefix("."))


def _panel(axes: Any, points: Sequence[Point], name: str) -> None:
    """One metric with its intervals, and its floor as a dashed line."""
    lines: dict[str, list[Point]] = {}
    for point in points:
        others = [f"{key} {value}" for key, value in point.settings.items() if key != "steps"]
        lines.setdefault(", ".join(others) or "samples", []).append(point)
    for label, own in lines.items():
        found = sorted((calls(point), point.metrics[name].interval) for point in own)
        x, values = [each[0] for each in found], [each[1] for each in found]
        errors = [[each.value - each.low for each in values], [each.high - each.value for each in values]]
        axes.errorbar(x, [each.value for each in values], errors, marker="o", capsize=3, label=label)
    floor = points[0].metrics[name].floor
    if floor is not None:
        axes.axhline(floor.value, color=_QUIET, ls="--", label="real data")
    axes.set(xlabel="calls of the network", ylabel=name)


def calls(point: Point) -> int:
    """The calls of the network for each sample; 0 where no metric needed samples."""
    return max(int(found.protocol.get("calls", 0)) for found in point.metrics.values())
