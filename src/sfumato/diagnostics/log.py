"""The board of a run, from the lines that training left in its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sfumato.diagnostics.draws import ByLevel
from sfumato.diagnostics.gradients import Gradients, ratio
from sfumato.diagnostics.table import curves, nearest, plain_gradients
from sfumato.objectives.compiler import Objective

Lines = Sequence[Mapping[str, Any]]


def read(lines: Lines, objective: Objective) -> dict[str, Any] | None:
    """What `Board.to_dict` says, of the last line that has losses by noise level; None where there is none.

    The gradients are means over the second half of the lines that have them: |G|^2 and tr Sigma are averaged, so that
    their ratio is steadier than any one of its estimates.
    """
    scored = next((line for line in reversed(lines) if "bins_edges" in line), None)
    if scored is None:
        return None
    names = [name for name in ("raw", "ema", "trivial") if scored.get(f"bins_{name}") is not None]
    bins = len(scored["bins_logsnr"])

    def pair(column: str, per: float = 1.0, errors: str = "") -> dict[str, list[float | None]]:
        values, deviations = scored[f"bins_{column}"], scored[f"bins_{errors or column}_stderr"]
        return {
            "value": [v * per for v in values],
            "stderr": [None if e is None else e * per for e in deviations],
        }

    return {
        "monotone": objective.monotone,
        "nearest": nearest(objective),
        "models": [name for name in names if name != "trivial"],
        "logsnr": scored["bins_logsnr"],
        "edges": scored["bins_edges"],
        "span": _span(scored, objective),
        "loss": {name: pair(f"loss_{name}") for name in names},
        "contribution": {name: pair(name, 1 / bins) for name in names},  # bins of equal mass
        "curves": _curves(scored, objective),
        "gradients": _gradients(lines),
    }


def _span(scored: Mapping[str, Any], objective: Objective) -> list[float]:
    """The logsnr that a bin stands for: mass over density at its middle, or its width where the density moves."""
    edges, density = scored["bins_edges"], scored["bins_density"]
    if objective.times.moves:
        return [a - b for a, b in zip(edges, edges[1:], strict=False)]
    return [1 / len(density) / p for p in density]


def _curves(scored: Mapping[str, Any], objective: Objective) -> dict[str, list[float | None]]:
    """w and p; a density that moves is known at the middle of the bins, where the log has it."""
    if not objective.times.moves:
        return curves(objective)
    return {name: scored[f"bins_{name}"][::-1] for name in ("logsnr", "weight", "density")}


def _gradients(lines: Lines) -> dict[str, Any] | None:
    found = [line for line in lines if line.get("bins_grad_square") is not None]
    found = found[len(found) // 2 :]
    if not found:
        return None
    square, variance, errors, spread = (
        torch.tensor([line[f"bins_grad_{name}"] for line in found], dtype=torch.float64)
        for name in ("square", "variance", "square_stderr", "variance_stderr")
    )
    columns = [ByLevel(v.mean(0), e.square().sum(0).sqrt() / len(v)) for v, e in ((square, errors), (variance, spread))]
    names = ("valid_grad_square", "valid_grad_variance")
    total = torch.tensor([[line[name] for name in names] for line in found], dtype=torch.float64).mean(0).tolist()
    return plain_gradients(Gradients(columns[0], columns[1], ratio(*columns), (total[0], total[1])), "raw")
