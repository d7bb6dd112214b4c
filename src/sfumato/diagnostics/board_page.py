"""A board as text and as charts, from the plain numbers of `Board.to_dict` or of a run's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sfumato.diagnostics.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, Line, chart

AXIS = "logsnr (noise on the left, data on the right)"
_LOOKS = {  # name: legend, colour and dashes; in drawing order
    "trivial": ("trivial predictor (mean and variance)", GREY, "--"),
    "floor": ("floor: no model can be lower", PURPLE, ":"),
    "raw": ("raw weights", ORANGE, "-"),
    "ema": ("moving average", BLUE, "-"),
    "model": ("model", BLUE, "-"),
}
_SHOWN = 1e3  # curves of weight and density span at most this factor up and down
Facts = Mapping[str, Any]


def drawings(facts: Facts) -> dict[str, str | None]:
    """The charts by name (`plots.chart`), including those of gradients if they were measured."""
    made = {
        "loss": chart(_estimates(facts, "loss"), AXIS, "noise not explained"),
        "contribution": chart(_estimates(facts, "contribution", facts["span"]), AXIS, "objective per unit of logsnr"),
        "dials": _dials(facts["curves"]),
    }
    return made | (_gradients(facts["gradients"], facts["logsnr"]) if facts["gradients"] else {})


def _estimates(facts: Facts, column: str, span: Sequence[float | None] | None = None) -> list[Line]:
    """The estimates of a column by level, divided by each bin's width in logsnr if `span` is given."""
    lines, per = [], 1.0 if span is None else np.array(span, dtype=float)
    for name, (label, colour, dashes) in _LOOKS.items():
        if name in facts[column]:
            y, errors = (np.array(facts[column][name][each], dtype=float) / per for each in ("value", "stderr"))
            lines.append(Line(label, facts["logsnr"], y, colour, dashes == "-", errors, dashes))
    return lines


def _dials(curves: Facts) -> str | None:
    """A chart of weight and density, each relative to its typical size, without extreme values."""
    weight, density = (np.array(curves[name], dtype=float) for name in ("weight", "density"))
    scaled = {"weight w": weight / np.median(weight[weight > 0]), "density p": density / np.nanmax(density)}
    lines = [
        Line(name, curves["logsnr"], np.where((y >= 1 / _SHOWN) & (y <= _SHOWN), y, np.nan), colour)
        for (name, y), colour in zip(scaled.items(), (GREEN, BLUE), strict=True)
    ]
    return chart(lines, AXIS, "relative", log=True)


def _gradients(found: Facts, logsnr: Sequence[float]) -> dict[str, str | None]:
    norm, scale = found["norm"], found["noise_scale"]
    variance = np.array(found["variance"]["value"], dtype=float)
    lines = [
        Line("noise of one sample", logsnr, np.sqrt(np.where(variance > 0, variance, np.nan)), GREY, dashes="--"),
        Line("gradient", logsnr, norm["value"], BLUE, True, norm["stderr"]),
    ]
    scales = [Line("noise scale", logsnr, scale["value"], BLUE, True, scale["stderr"])]
    return {
        "gradient": chart(lines, AXIS, "norm of the gradient", log=True),
        "scale": chart(scales, AXIS, "samples", log=True, span=(logsnr[-1], logsnr[0])),
    }


def drowned(gradients: Facts | None) -> dict[str, Any] | None:
    """The number of levels with an estimated |G|^2 of 0 or less, and a lower bound on their noise scales,
    tr Sigma / (|G|^2 + 2 errors); None if there are none."""
    if gradients is None:
        return None
    columns = (gradients["square"]["value"], gradients["square"]["stderr"], gradients["variance"]["value"])
    lost = [(a, e, b) for a, e, b in zip(*columns, strict=True) if a is None or a <= 0]
    bounds = [b / (a + 2 * e) for a, e, b in lost if None not in (a, e, b) and a + 2 * e > 0 and b > 0]
    return {"levels": len(lost), "least": min(bounds, default=None)} if lost else None


def table(facts: Facts) -> str:
    """The board as text: one line per level, cleanest first, estimates with their standard errors."""
    models, gradients = facts["models"], facts["gradients"]
    names = [*models, "trivial", *(["floor"] if "floor" in facts["loss"] else [])]
    plain = {"logsnr": "logsnr", "p": "density", "w": "weight"}
    columns = {head: [_short(value) for value in facts[name]] for head, name in plain.items()}
    columns |= {f"loss {name}": _with_errors(facts["loss"][name]) for name in names}
    columns |= {f"adds {name}": _with_errors(facts["contribution"][name]) for name in models}
    if gradients is not None:
        columns |= {"gradient": _with_errors(gradients["norm"]), "noise scale": _with_errors(gradients["noise_scale"])}
    widths = [max(map(len, [head, *cells])) for head, cells in columns.items()]
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*_words(facts), "", *lines, "", *_totals(facts, names), *facts["notes"]])


def _words(facts: Facts) -> list[str]:
    near = facts["nearest"]
    names = ", ".join([near["name"], *near["aliases"]])
    known = f"It equals {names}." if near["same"] else f"Nearest: {names}, off by a factor of {near['factor']:.3g}."
    shape = "monotone: a likelihood bound of noised data" if facts["monotone"] else "not monotone: no likelihood bound"
    return [
        f"{facts['objective']}; {facts['draws']} draws per level, no dropout.",
        f"The weight is {shape}. {known}",
        "loss = E|eps - eps_hat|^2 per number; adds = contribution to the objective.",
    ]


def _totals(facts: Facts, names: Sequence[str]) -> list[str]:
    found = [f"{name} {_with_error(**facts['total'][name])}" for name in names]
    lines = [f"objective: {', '.join(found)}"]
    if (gradients := facts["gradients"]) is not None:
        norm, scale = (_short(gradients["total"][name]) for name in ("norm", "noise_scale"))
        lines.append(f"gradient of the objective ({gradients['of']}): norm {norm}, noise scale {scale} samples")
    return lines


def _with_errors(found: Facts) -> list[str]:
    return [_with_error(value, error) for value, error in zip(found["value"], found["stderr"], strict=True)]


def _with_error(value: float | None, stderr: float | None) -> str:
    if value is None or stderr is None:
        return _short(value)
    return f"{value:.4g} ({stderr:.1g})" if stderr < 1 else f"{value:.4g} ({stderr:.0f})"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
