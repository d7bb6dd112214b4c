"""Line charts as inline SVG and the page that holds them, drawn from numbers alone; a page opens without a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 44

STYLE = """
:root { color-scheme: light dark; --ink: #26323f; --quiet: #6b7885; --rule: #e3e8ed; --paper: #fff; --panel: #f6f8fa;
  --c1: #1f77b4; --c2: #d66028; --c3: #2c8c5a; --c4: #9aa5b1; --c5: #7a4fb5; }
@media (prefers-color-scheme: dark) { :root { --ink: #dde4ea; --quiet: #93a1ae; --rule: #323c46; --paper: #161b20;
  --panel: #1e252c; --c1: #62a8dd; --c2: #ee8b58; --c3: #5cc08a; --c4: #7b8895; --c5: #b08be6; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  padding: 40px 24px 64px; max-width: 1080px; }
h1 { font-size: 28px; font-weight: 650; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 12px; }
.quiet { color: var(--quiet); margin: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 24px; }
.cards div { background: var(--panel); border-radius: 8px; padding: 12px 16px; }
.cards b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.cards span { color: var(--quiet); font-size: 14px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 32px; }
.two h2 { margin-bottom: 4px; } .two .quiet { min-height: 84px; font-size: 14px; margin-bottom: 8px; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 12px; fill: var(--quiet); }
svg .axis { font-size: 13px; } svg .rule { stroke: var(--rule); }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
polyline.c1 { stroke: var(--c1); } polyline.c2 { stroke: var(--c2); } polyline.c3 { stroke: var(--c3); }
polyline.c4 { stroke: var(--c4); stroke-dasharray: 5 4; } polyline.c5 { stroke: var(--c5); stroke-dasharray: 2 3; }
path { fill: none; stroke-width: 1.2; opacity: .7; } path.c1 { stroke: var(--c1); } path.c2 { stroke: var(--c2); }
path.c3 { stroke: var(--c3); } path.c4 { stroke: var(--c4); } path.c5 { stroke: var(--c5); }
circle.c1 { fill: var(--c1); } circle.c2 { fill: var(--c2); } circle.c3 { fill: var(--c3); }
circle.c4 { fill: var(--c4); } circle.c5 { fill: var(--c5); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 14px; padding-left: 10%; }
.legend i { display: inline-block; width: 18px; height: 3px; margin-right: 7px; vertical-align: middle; }
i.c1 { background: var(--c1); } i.c2 { background: var(--c2); } i.c3 { background: var(--c3); }
i.c4 { background: var(--c4); } i.c5 { background: var(--c5); }
figure { margin: 0 0 24px; } figcaption { color: var(--quiet); font-size: 14px; margin-bottom: 6px; }
figure img { max-width: 100%; border: 1px solid var(--rule); border-radius: 6px; }
pre { background: var(--panel); border-radius: 8px; padding: 14px 18px; overflow-x: auto; font-size: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } td { padding: 5px 16px 5px 0; vertical-align: top;
  border-top: 1px solid var(--rule); }
td:nth-child(2) { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
td:nth-child(3) { color: var(--quiet); } details summary { cursor: pointer; }
.wide { overflow-x: auto; } .figures th { text-align: right; font-weight: 500; padding: 5px 0 5px 16px; }
.figures td, .figures td:nth-child(2) { text-align: right; padding: 5px 0 5px 16px; color: var(--ink);
  font: inherit; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole HTML document of the house's style; `parts` are its body."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    head = f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head>'
    return f"{head}<body>{''.join(parts)}</body></html>"


class Line(NamedTuple):
    """A curve: name, points (x, y), colour class of the style sheet, marked points or not, a standard error of each."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    dots: bool = False
    errors: Sequence[float] = ()


def chart(
    lines: Sequence[Line],
    across: str,
    up: str,
    log_y: bool = False,
    zero: bool = False,
    span: tuple[float, float] | None = None,
) -> str:
    """One chart with axes, a light grid and a legend; points that are not finite are left out. span: x to be shown."""
    usable = [found for line in lines if (found := _clean(line, log_y)).points]
    if not usable:
        return '<p class="quiet">Nothing was measured yet.</p>'
    xs = [*(span or ()), *(x for line in usable for x, _ in line.points)]
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
        ends = [
            (place(x, max(y - e, y_low)), place(x, min(y + e, y_high)))
            for (x, y), e in zip(line.points, line.errors, strict=False)
            if math.isfinite(e)
        ]
        parts += [f'<path class="{line.colour}" d="M{a:.1f},{b:.1f}V{d:.1f}"/>' for (a, b), (_, d) in ends]
        parts.append(f'<polyline class="{line.colour}" points="{path}"/>')
        if line.dots or len(points) == 1:
            parts += [f'<circle class="{line.colour}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    legend = "".join(f'<span><i class="{line.colour}"></i>{escape(line.name)}</span>' for line in usable)
    return "".join(parts) + f'</svg><div class="legend">{legend}</div>'


def _clean(line: Line, positive: bool) -> Line:
    """Without the points that cannot be drawn."""
    errors = line.errors or [0.0] * len(line.points)
    kept = [
        ((x, y), e)
        for (x, y), e in zip(line.points, errors, strict=True)
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not positive)
    ]
    return line._replace(points=[point for point, _ in kept], errors=[e for _, e in kept] if line.errors else ())


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
