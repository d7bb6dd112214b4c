"""The figures of a board: a model's loss at each noise level, its contribution to the objective, and the noise of the
gradient; measured by `sf.board`, or read from the log of a run.

    loss_k         = E |eps - eps_hat|^2 / d in bin k, beside that of a trivial guess and the floor of a known law
    contribution_k = int over bin k of w(logsnr) E |eps - eps_hat|^2 / d dlogsnr;  their sum is the objective
    |G_k|, B_k     = norm of the gradient of the training loss in bin k, and its noise scale

The objective is 2 / d times that of `denoising_loss` (Kingma and Gao 2023, 2303.00848, Eq. 6): the loss that training
prints. Noise scale: McCandlish et al. 2018 (1812.06162).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.diagnostics import board_page, report
from sfumato.diagnostics.bins import Bins
from sfumato.diagnostics.draws import ByLevel, plain
from sfumato.diagnostics.gradients import Gradients, ratio
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.objectives.compiler import Nearest, Objective


@dataclasses.dataclass(frozen=True)
class Board:
    """Figures by noise level, cleanest first, each with its standard error.

    loss, contribution: by name: those in `models`, "trivial", and "floor" if the law of the data is known. excess: the
    loss above the floor, by model, without the noise of the draws. gradients: of the model named `of`, in evaluation
    mode; None if not requested or if it has no parameters. count: draws per bin.
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
        """The nearest named weight."""
        return self.objective.nearest()

    def total(self, name: str) -> tuple[float, float]:
        """(objective, standard error) of a model, the trivial predictor or the floor, summed over the bins."""
        if name not in self.contribution:
            raise SfumatoError(f"The board has no {name!r}: it has {', '.join(self.contribution)}.")
        found = self.contribution[name]
        return float(found.value.sum()), math.sqrt(float(found.stderr.square().sum()))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; None for undefined ones (a gradient below its noise, the error of a single draw)."""
        made: dict[str, Any] = {
            "objective": self.words, "monotone": self.monotone, "nearest": _nearest(self.objective),
            "models": list(self.models), "draws": self.count, "notes": list(self.notes),
            "logsnr": plain(self.logsnr), "edges": plain(self.bins.edges), "mass": plain(self.bins.mass),
            "span": plain(self.bins.mass / self.density), "weight": plain(self.weight), "density": plain(self.density),
        }  # fmt: skip
        for column in ("loss", "contribution", "excess"):
            made[column] = {name: _pair(found) for name, found in getattr(self, column).items()}
        made["total"] = {n: dict(zip(("value", "stderr"), map(_number, self.total(n)), strict=True)) for n in self.loss}
        return made | {"gradients": None if self.gradients is None else _plain_gradients(self.gradients, self.of)}

    def __str__(self) -> str:
        return board_page.table(self.to_dict())

    def html(self) -> str:
        """Charts and figures as a self-contained HTML page."""
        subtitle = f"{self.words}; {self.count} draws per level, dropout off"
        return report.page("Board", subtitle, self.to_dict() | {"curves": _curves(self.objective)}, figures=str(self))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write the page (`html`) to a file whose name ends in .html."""
        path = Path(path).expanduser()
        if path.suffix.lower() != ".html":
            raise SfumatoError(f"A board is written as an HTML page: {path} must end in .html.")
        write_text(path, self.html())
        return path


def from_log(lines: Sequence[Mapping[str, Any]], objective: Objective) -> dict[str, Any] | None:
    """The facts for a board's page, from the last line of a log with losses by noise level; None if there is none.

    Each estimate is a column `bins_NAME`, with its errors in `bins_NAME_stderr`.
    """
    line = next((line for line in reversed(lines) if "bins_edges" in line), None)
    if line is None:
        return None
    names, density = [name for name in ("raw", "ema", "trivial") if line.get(f"bins_{name}")], line["bins_density"]
    mass = torch.tensor(1 / len(density), dtype=torch.float64)  # bins have equal mass
    curves, span = _curves(objective), [float(mass) / p for p in density]
    if objective.times.moves:  # a learned density is known only where it was logged
        curves = {name: line[f"bins_{name}"][::-1] for name in ("logsnr", "weight", "density")}
        span = [a - b for a, b in zip(line["bins_edges"], line["bins_edges"][1:], strict=False)]
    return {
        "monotone": objective.monotone, "nearest": _nearest(objective), "logsnr": line["bins_logsnr"], "span": span,
        "loss": {name: _pair(_column(line, f"loss_{name}")) for name in names},
        "contribution": {name: _pair(_column(line, name).times(mass)) for name in names},
        "curves": curves, "gradients": _logged_gradients(lines),
    }  # fmt: skip


def _column(line: Mapping[str, Any], name: str) -> ByLevel:
    columns = ([math.nan if v is None else v for v in line[f"bins_{column}"]] for column in (name, f"{name}_stderr"))
    return ByLevel(*(torch.tensor(values, dtype=torch.float64) for values in columns))


def _logged_gradients(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Means of |G|^2 and tr Sigma over the second half of the lines that have them; the ratio of the means is steadier
    than any single estimate."""
    found = [line for line in lines if line.get("bins_grad_square") is not None]
    found = found[len(found) // 2 :]
    if not found:
        return None

    def mean(name: str) -> ByLevel:
        columns = [_column(line, name) for line in found]
        errors = torch.stack([each.stderr for each in columns]).square().sum(0).sqrt() / len(found)
        return ByLevel(torch.stack([each.value for each in columns]).mean(0), errors)

    square, variance = mean("grad_square"), mean("grad_variance")
    names = ("valid_grad_square", "valid_grad_variance")
    total = torch.tensor([[line[name] for name in names] for line in found], dtype=torch.float64).mean(0).tolist()
    return _plain_gradients(Gradients(square, variance, ratio(square, variance), (total[0], total[1])), "raw")


def _plain_gradients(found: Gradients, of: str) -> dict[str, Any]:
    """The gradients of the model named `of`, as plain numbers."""
    return {
        "of": of, "mode": "evaluation", "norm": _pair(found.norm), "noise_scale": _pair(found.scale),
        "square": _pair(found.square), "variance": _pair(found.variance),
        "total": {"norm": _number(found.total_norm), "noise_scale": _number(found.total_scale)},
    }  # fmt: skip


def _nearest(objective: Objective) -> dict[str, Any]:
    """The nearest named weight, as plain words and numbers."""
    near = objective.nearest()
    return near._asdict() | {"aliases": list(near.aliases), "same": near.same, "factor": near.factor}


def _curves(objective: Objective, count: int = 121) -> dict[str, list[float | None]]:
    """w and p at `count` levels, over the central 99.9 % of the density."""
    with torch.no_grad():
        ends = objective.times.logsnr(torch.tensor([5e-4, 1 - 5e-4], dtype=torch.float64), objective.schedule)
        logsnr = torch.linspace(float(ends[1]), float(ends[0]), count, dtype=torch.float64)
        found = {"logsnr": logsnr, "weight": objective.weight(logsnr), "density": objective.density(logsnr)}
    return {name: plain(value) for name, value in found.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pair(found: ByLevel) -> dict[str, list[float | None]]:
    return {"value": plain(found.value), "stderr": plain(found.stderr)}
