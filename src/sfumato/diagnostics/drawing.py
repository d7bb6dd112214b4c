"""A board in words and pictures, from the plain numbers of `Board.to_dict` (training's log has them, too)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sfumato.charts import Line, chart

AXIS = "logsnr: noise on the left, data on the right"
_COLOURS = {"trivial": "c4", "floor": "c5", "raw": "c2"}
_NAMES = {
    "trivial": "trivial predictor (mean and variance)", "floor": "floor: no model can be lower",
    "raw": "raw weights", "ema": "moving average", "model": "model",
}  # fmt: skip
_SHOWN = 1e3  # weights and densities are drawn down and up to this factor
Column = Sequence[float | None]


def sections(facts: Mapping[str, Any]) -> list[str]:
    """The charts, each with a sentence of what it says."""
    parts = [_loss(facts), _contribution(facts)]
    if facts.get("curves"):
        parts.append(_dials(facts, facts["curves"]))
    if facts.get("gradients"):
        parts += _gradients(facts)
    return parts


def rows(parts: Sequence[str]) -> str:
    """Sections, two in a row."""
    return f'<div class="two">{"".join(parts)}</div>'


def section(title: str, words: str, drawing: str) -> str:
    """A chart under its title and sentence."""
    return f'<section><h2>{escape(title)}</h2><p class="quiet">{words}</p>{drawing}</section>'


def _line(name: str, logsnr: Column, found: Mapping[str, Column], span: Sequence[float] | None = None) -> Line:
    """One estimate by level with its errors, divided by the span of logsnr of a bin where that is given."""
    per = span or [1.0] * len(logsnr)
    points = [(_number(x), _number(y) / w) for x, y, w in zip(logsnr, found["value"], per, strict=True)]
    errors = [_number(e) / w for e, w in zip(found.get("stderr") or [None] * len(per), per, strict=True)]
    return Line(_NAMES.get(name, name), points, _COLOURS.get(name, "c1"), name not in ("trivial", "floor"), errors)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _in_order(found: Mapping[str, Any]) -> list[str]:
    """What is drawn behind comes first."""
    return sorted(found, key=lambda name: ("trivial", "floor", "raw").index(name) if name in _COLOURS else 3)


def _loss(facts: Mapping[str, Any]) -> str:
    lines = [_line(name, facts["logsnr"], facts["loss"][name]) for name in _in_order(facts["loss"])]
    words = (
        "The share of the noise that the model cannot tell: 0 where noise is seen, 1 where data hide it. What was "
        "learned is the distance below the dashed line, the best guess of a predictor that looks at no neighbours."
    )
    if "floor" in facts["loss"]:
        words += " The dotted line is the best that any model could do."
    return section("Loss by noise level", words, chart(lines, AXIS, "noise not explained", zero=True))


def _contribution(facts: Mapping[str, Any]) -> str:
    found = facts["contribution"]
    lines = [_line(name, facts["logsnr"], found[name], facts["span"]) for name in _in_order(found)]
    words = (
        "Weight times loss: the area under a curve is the whole objective. Where it is high, training spends its "
        "effort; where it comes close to the dashed line there is little to learn."
    )
    return section("What each noise level adds", words, chart(lines, AXIS, "objective per unit of logsnr", zero=True))


def _dials(facts: Mapping[str, Any], curves: Mapping[str, Column]) -> str:
    near = facts["nearest"]
    known = f"It is the weight <b>{escape(near['name'])}</b>"
    if not near["same"]:
        off = f"off by a factor of {near['factor']:.3g} (root mean square)"
        known = f"The nearest named weight is <b>{escape(near['name'])}</b>, {off}"
    bound = (
        "the weight never rises with logsnr, so the loss is a likelihood bound of noised data"
        if facts["monotone"]
        else "the weight rises somewhere with logsnr, so the loss is no likelihood bound"
    )
    lines = []
    for name, title, colour in (("weight", "weight w", "c3"), ("density", "density p", "c1")):
        points = [(_number(x), _number(y)) for x, y in zip(curves["logsnr"], curves[name], strict=True)]
        values = [y for _, y in points if y > 0] or [1.0]
        size = sorted(values)[len(values) // 2] if name == "weight" else max(values)
        scaled = [(x, y / size) for x, y in points if 1 / _SHOWN <= y / size <= _SHOWN]
        lines.append(Line(title, scaled, colour))
    words = (
        f"Training draws levels by the density and counts their error by the weight, each up to a factor here. "
        f"{known}; {bound}."
    )
    return section("Weight and density", words, chart(lines, AXIS, "relative", log_y=True))


def _gradients(facts: Mapping[str, Any]) -> list[str]:
    found, logsnr = facts["gradients"], facts["logsnr"]
    single = [None if v is None or v < 0 else math.sqrt(v) for v in found["variance"]["value"]]
    points = [(_number(x), _number(y)) for x, y in zip(logsnr, single, strict=True)]
    norm = [Line("noise of one sample", points, "c4"), _line("gradient", logsnr, found["norm"])]
    pulls = (
        "How hard the loss of one level pulls at the weights, beside how far the pulls of single samples scatter "
        "about it (their standard deviation; dropout off)."
    )
    needs = (
        "About so many samples of a level must be averaged until a step is more signal than noise."
        f"{_whole(found)}{_drowned(found)}"
    )
    scale = [_line("noise scale", logsnr, found["noise_scale"])]
    span = (_number(logsnr[-1]), _number(logsnr[0]))
    return [
        section("Gradient by noise level", pulls, chart(norm, AXIS, "norm of the gradient", log_y=True)),
        section("Gradient noise scale", needs, chart(scale, AXIS, "samples", log_y=True, span=span)),
    ]


def _whole(found: Mapping[str, Any]) -> str:
    total = found["total"]["noise_scale"]
    return "" if total is None else f" For batches of all levels it is {total:,.3g}."


def _drowned(found: Mapping[str, Any]) -> str:
    """What can be said of the levels whose |G|^2 is not told from 0: tr Sigma / (|G|^2 + 2 errors) or more."""
    columns = (found["square"]["value"], found["square"]["stderr"], found["variance"]["value"])
    lost = [(a, e, b) for a, e, b in zip(*columns, strict=True) if a is None or a <= 0]
    if not lost:
        return ""
    bounds = [b / (a + 2 * e) for a, e, b in lost if None not in (a, e, b) and a + 2 * e > 0 and b > 0]
    least = f"; it takes more than {min(bounds):,.2g} samples" if bounds else ""
    return f" At {len(lost)} of {len(columns[0])} levels the draws do not tell the gradient from zero{least}."


def table(facts: Mapping[str, Any]) -> str:
    """The board as text: a line a level, cleanest first, estimates with their standard errors."""
    names = [*facts["models"], "trivial", *(["floor"] if "floor" in facts["loss"] else [])]
    head = ["logsnr", "p", "w", *[f"loss {name}" for name in names], *[f"adds {name}" for name in facts["models"]]]
    gradients = facts["gradients"]
    head += [] if gradients is None else ["gradient", "noise scale"]
    rows = [head]
    for k, logsnr in enumerate(facts["logsnr"]):
        row = [_short(logsnr), _short(facts["density"][k]), _short(facts["weight"][k])]
        row += [_with_error(facts["loss"][name], k) for name in names]
        row += [_with_error(facts["contribution"][name], k) for name in facts["models"]]
        row += [] if gradients is None else [_with_error(gradients[c], k) for c in ("norm", "noise_scale")]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*_words(facts), "", *lines, "", *_totals(facts, names), *facts["notes"]])


def _words(facts: Mapping[str, Any]) -> list[str]:
    near = facts["nearest"]
    names = ", ".join([near["name"], *near["aliases"]])
    known = f"It is that of {names}." if near["same"] else f"Nearest: {names}, off by a factor of {near['factor']:.3g}."
    shape = "monotone: a likelihood bound of noised data" if facts["monotone"] else "not monotone: no likelihood bound"
    return [
        f"{facts['objective']}; {facts['draws']} draws a level, no dropout.",
        f"The weight is {shape}. {known}",
        "loss = E|eps - eps_hat|^2 a number; adds = its part of the objective.",
    ]


def _totals(facts: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    found = [f"{name} {_with_error({k: [v] for k, v in facts['total'][name].items()}, 0)}" for name in names]
    lines = [f"objective: {', '.join(found)}"]
    if facts["gradients"] is not None:
        total = facts["gradients"]["total"]
        lines.append(
            f"gradient of the objective ({facts['gradients']['of']}): norm {_short(total['norm'])}, "
            f"noise scale {_short(total['noise_scale'])} samples"
        )
    return lines


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _with_error(found: Mapping[str, Column], k: int) -> str:
    value, error = found["value"][k], found["stderr"][k]
    if value is None or error is None:
        return _short(value)
    return f"{value:.4g} ({error:.1g})" if error < 1 else f"{value:.4g} ({error:.0f})"
