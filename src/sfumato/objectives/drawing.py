"""Plot a compiled objective: w next to named weights, and p below, by noise level."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.files import atomic

if TYPE_CHECKING:
    from sfumato.objectives.compiler import Objective

# well-known weights for comparison; the nearest is drawn in any case
BESIDE: dict[str, Any] = {
    "elbo": "-", "eps-simple": "--", "flow": ":", "sigmoid": "-.", "edm": (0, (6, 1, 1, 1, 1, 1))
}  # fmt: skip
_SPAN = 1e7  # the range of w shown, down from its largest value
_INK, _MAIN, _NEAR, _QUIET = "#26323f", "#1f77b4", "#d66028", "#9aa5b1"


def draw(objective: Objective, path: str) -> None:
    """Write the plot; the suffix of `path` sets the format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    lo, hi = objective.range
    lam = torch.linspace(lo, hi, 1025, dtype=torch.float64)
    _weights(top, objective, lam)
    _density(bottom, objective, lam)
    top.set_title(
        f"{objective.target}-prediction, {type(objective.schedule).__name__}: {_words(objective)}",
        loc="left", fontsize=11, color=_INK,
    )  # fmt: skip
    kind, known = Path(path).suffix.lower().removeprefix("."), sorted(figure.canvas.get_supported_filetypes())
    if kind not in known:
        raise SfumatoError(f"{path} cannot be drawn: its name must end in one of {', '.join(f'.{k}' for k in known)}.")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format=kind)


def _words(objective: Objective) -> str:
    near = objective.nearest()
    name = " = ".join((near.name, *near.aliases))
    weight = f"weight {name}" if near.same else f"nearest weight {name}, off by a factor of {near.factor:.3g}"
    return f"{weight}, {'never rises' if objective.monotone else 'rises where shaded'}"


def _weights(axes: Any, objective: Objective, lam: Tensor) -> None:
    near = objective.nearest()
    scale = _unit(objective, lam)
    w = objective.weight(lam).detach() / scale
    for start, stop in objective.rises:
        axes.axvspan(start, stop, color=_NEAR, alpha=0.08, lw=0)
    for name, style in BESIDE.items():
        if name not in (near.name, *near.aliases):
            fitted = objective.named(name)(lam).detach() * objective.compare(objective.named(name))[1] / scale
            axes.plot(lam, fitted, color=_QUIET, lw=1, ls=style, label=name)
    if not near.same:
        fitted = objective.named(near.name)(lam).detach() * near.scale / scale
        axes.plot(lam, fitted, color=_NEAR, lw=1.5, ls="--", label=f"{near.name} (nearest)")
    axes.plot(lam, w, color=_MAIN, lw=2.5, label="this objective")
    largest = float(w.max())
    axes.set_yscale("log")
    axes.set_ylim(max(float(w.min()), largest / _SPAN) / 3, largest * 3)
    axes.set_ylabel("weight w (1 in the middle)")
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    axes.grid(color="#e3e8ed", lw=0.6)


def _unit(objective: Objective, lam: Tensor) -> float:
    """w at logsnr 0, or at the middle of a range that does not contain 0."""
    middle = lam[lam.abs().argmin()] if float(lam[0]) < 0 < float(lam[-1]) else lam[len(lam) // 2]
    return float(objective.weight(middle[None])[0]) or 1.0


def _density(axes: Any, objective: Objective, lam: Tensor) -> None:
    p = objective.density(lam).detach()
    axes.fill_between(lam, p, color=_MAIN, alpha=0.15, lw=0)
    axes.plot(lam, p, color=_MAIN, lw=1.5)
    axes.set_ylim(0, 1.1 * float(p.max()))
    axes.set_ylabel("density p of the draws")
    axes.set_xlabel("logsnr (left: noise, right: data)")
    axes.grid(color="#e3e8ed", lw=0.6)
