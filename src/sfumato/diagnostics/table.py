"""The board: what a model loses at each noise level, what that adds to its objective, and how noisy its gradient is.

    loss_k         = E |eps - eps_hat|^2 / d in bin k, beside that of a trivial guess and the floor of a known law
    contribution_k = int over bin k of w(logsnr) E |eps - eps_hat|^2 / d dlogsnr;  their sum is the objective
    |G_k|, B_k     = gradient and noise scale of the training loss of a sample of bin k

The objective is 2 / d times that of `denoising_loss` (Kingma and Gao 2023, 2303.00848, Eq. 6): the loss that training
prints. Noise scale: McCandlish et al. 2018 (1812.06162).
"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.diagnostics import board_page, report
from sfumato.diagnostics.bins import Bins
from sfumato.diagnostics.draws import ByLevel, plain
from sfumato.diagnostics.gradients import Gradients
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.objectives.compiler import Nearest, Objective


@dataclasses.dataclass(frozen=True)
class Board:
    """Figures by noise level, cleanest first; every estimate comes with its standard error.

    loss, contribution: by name, one of `models` or "trivial", and "floor" where the law of the data is known.
    excess: the loss above the floor, by model, without the noise of the draws. gradients: those of the model named `of`
    in evaluation mode, None where they were not asked for or there is nothing to train. count: draws a bin.
    """

    objective: Objective
    bins: Bins
    count: int
    models: tuple[str, ...]
    loss: dict[str, ByLevel]
    contribution: dict[str, ByLevel]
    excess: dict[str, ByLevel]
    gradients: Gradients | None
    of: str
    words: str
    notes: tuple[str, ...]

    @property
    def logsnr(self) -> Tensor:
        """The middle of each bin, (K,)."""
        return self.bins.middle

    @property
    def weight(self) -> Tensor:
        """w at the middle of each bin, (K,)."""
        return self.objective.weight(self.logsnr).detach()

    @property
    def density(self) -> Tensor:
        """p at the middle of each bin, (K,)."""
        return self.objective.density(self.logsnr).detach()

    @property
    def monotone(self) -> bool:
        """Whether w never rises with logsnr: the objective is then a bound on the likelihood of noised data."""
        return self.objective.monotone

    def nearest(self) -> Nearest:
        """The named weight that is nearest."""
        return self.objective.nearest()

    def total(self, name: str) -> tuple[float, float]:
        """The objective of a model, the trivial guess or the floor, over the bins, and its standard error."""
        if name not in self.contribution:
            raise SfumatoError(f"The board has no {name!r}: it has {', '.join(self.contribution)}.")
        found = self.contribution[name]
        return float(found.value.sum()), math.sqrt(float(found.stderr.square().sum()))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; None where there is none (a drowned gradient, an error of one draw)."""
        made: dict[str, Any] = {
            "objective": self.words, "monotone": self.monotone, "nearest": nearest(self.objective),
            "models": list(self.models), "draws": self.count, "notes": list(self.notes),
            "logsnr": plain(self.logsnr), "edges": plain(self.bins.edges), "mass": plain(self.bins.mass),
            "span": plain(self.bins.mass / self.density), "weight": plain(self.weight), "density": plain(self.density),
        }  # fmt: skip
        for column in ("loss", "contribution", "excess"):
            made[column] = {name: _pair(found) for name, found in getattr(self, column).items()}
        made["total"] = {n: dict(zip(("value", "stderr"), map(_number, self.total(n)), strict=True)) for n in self.loss}
        return made | {"gradients": None if self.gradients is None else plain_gradients(self.gradients, self.of)}

    def __str__(self) -> str:
        return board_page.table(self.to_dict())

    def html(self) -> str:
        """Charts and figures as a page that opens without a network."""
        said = f"{self.words}; {self.count} draws a level, dropout off"
        return report.page("Board", said, self.to_dict() | {"curves": curves(self.objective)}, figures=str(self))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write the page (`html`) to a file whose name ends in .html."""
        path = Path(path).expanduser()
        if path.suffix.lower() != ".html":
            raise SfumatoError(f"A board is drawn as a page: end {path} in .html.")
        write_text(path, self.html())
        return path


def plain_gradients(found: Gradients, of: str) -> dict[str, Any]:
    """Gradients of the model named `of` in plain numbers."""
    return {
        "of": of, "mode": "evaluation", "norm": _pair(found.norm), "noise_scale": _pair(found.scale),
        "square": _pair(found.square), "variance": _pair(found.variance),
        "total": {"norm": _number(found.total_norm), "noise_scale": _number(found.total_scale)},
    }  # fmt: skip


def nearest(objective: Objective) -> dict[str, Any]:
    """The named weight that is nearest, in plain words and numbers."""
    near = objective.nearest()
    return near._asdict() | {"aliases": list(near.aliases), "same": near.same, "factor": near.factor}


def curves(objective: Objective, count: int = 121) -> dict[str, list[float | None]]:
    """w and p at `count` levels, over all but a thousandth of what the density draws."""
    with torch.no_grad():
        ends = objective.times.logsnr(torch.tensor([5e-4, 1 - 5e-4], dtype=torch.float64), objective.schedule)
        logsnr = torch.linspace(float(ends[1]), float(ends[0]), count, dtype=torch.float64)
        found = {"logsnr": logsnr, "weight": objective.weight(logsnr), "density": objective.density(logsnr)}
    return {name: plain(value) for name, value in found.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pair(found: ByLevel) -> dict[str, list[float | None]]:
    return {"value": plain(found.value), "stderr": plain(found.stderr)}
