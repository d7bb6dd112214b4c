"""Line charts as inline SVG, drawn from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 44


class Line(NamedTuple):
    """A curve: name, points (x, y), colour class of the style sheet, marked points or not."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dots: bool = False


def chart(lines: Sequence[Line], across: str, up: str, log_y: bool = False, zero: bool = False) -> str:
    """One chart with axes, a light grid and a legend; points that are not finite are left out."""
    usable = [line._replace(points=_clean(line.points, log_y)) for line in lines]
    usable = [line for line in usable if line.points]
    if not usable:
        return '<p class="quiet">Nothing was measured yet.</p>'
    xs = [x for line in usable for x, _ in line.points]
    ys = [y for line in usable for _, y in line.points]
    x_ticks = ticks(min(xs), max(xs))
    y_ticks = decades(min(ys), max(ys)) if log_y else ticks(0.0 if zero else min(ys), max(ys))
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_low, y_high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        if log_y:
            part = math.log(y / y_low) / math.log(y_high / y_low)
        else:
            part = (y - y_low) / (y_high - y_low)
        across = (x - x_low) / (x_high - x_low)
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * across, HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * part

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(up)} over {escape(across)}">']
    for y in y_ticks:
        _, b = place(x_low, y)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{b:.1f}" y2="{b:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{b + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in x_ticks:
        if x_low <= x <= x_high:
            a, _ = place(x, y_low)
            parts.append(f'<text x="{a:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{number(x)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>')
    parts.append(
        f'<text class="axis" transform="translate(14 {(_TOP + HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(up)}</text>'
    )
    for line in usable:
        points = [place(x, y) for x, y in line.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline class="{line.colour}" points="{path}"/>')
        if line.dots or len(points) == 1:
            parts += [f'<circle class="{line.colour}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    legend = "".join(f'<span><i class="{line.colour}"></i>{escape(line.name)}</span>' for line in usable)
    return "".join(parts) + f'</svg><div class="legend">{legend}</div>'


def _clean(points: Sequence[tuple[float, float]], positive: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not positive)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten that span the values."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [m * 10.0**p for p in range(first, last + 1) for m in (1, 2, 5)]
    below = max((m for m in marks if m <= low), default=marks[0])
    above = min((m for m in marks if m >= high and m > below), default=marks[-1])
    inside = [m for m in marks if below <= m <= above]
    return inside if len(inside) <= 8 else [m for m in inside if f"{m:e}"[0] == "1"] or inside


def number(value: float) -> str:
    """1200 as 1,200; 2500000 as 2.5M; small ones with three digits."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
