"""The reconstruction term of the variational bound: -log p(x | z) at the least noise, for discrete or real data.

    discretised   P(x | z) = prod_d [Phi((x + 1/2 - m) / s) - Phi((x - 1/2 - m) / s)]      x integers
    density       p(x | z) = prod_d N(x; m, s^2)                                           x real numbers

m = E[x | z]. The cells of the lowest and highest declared values extend to infinity, so that the probabilities of all
values sum to 1. Everything is in normalised units, where a cell has width 1 / std of its channel.
Source: Ho et al. 2020 (2006.11239), Eq. 13.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

_OPEN = 40.0  # standard deviations at which an unbounded cell is cut off, with no probability beyond


class Cells(NamedTuple):
    """Half the width of a cell, and the lowest and highest value (+-inf without bounds), float64 (C, 1, ..)."""

    half: Tensor
    low: Tensor
    high: Tensor


def cells_of(spec: Any) -> Cells | None:
    """The cells of data declared discrete (`DataSpec.discrete`), in normalised units; None for real-valued data."""
    if spec is None or not spec.discrete:
        return None
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (spec.normaliser.mean, spec.normaliser.std))
    low, high = (-math.inf, math.inf) if spec.bounds is None else spec.bounds
    columns = (0.5 / std, (low - mean) / std, (high - mean) / std)
    return Cells(*(v.reshape(-1, *([1] * (len(spec.shape) - 1))) for v in columns))


def cell_nats(x: Tensor, mean: Tensor, log_std: Tensor, cells: Cells) -> Tensor:
    """-log P(x | z), summed over the elements (B,); x, mean and log_std (B, *shape)."""
    half, low, high = (v.to(x) for v in cells)
    scale = torch.exp(-log_std)
    left, right = (x - half - mean) * scale, (x + half - mean) * scale
    with torch.no_grad():
        first, last = x < low + half / 2, x > high - half / 2
        floor, ceiling = right.clamp_max(0) - _OPEN, left.clamp_min(0) + _OPEN
    left, right = torch.where(first, floor, left), torch.where(last, ceiling, right)
    return -_log_between(left, right).flatten(1).sum(1)


def _log_between(left: Tensor, right: Tensor) -> Tensor:
    """log(Phi(right) - Phi(left)), left < right, computed in the lower tail, where neither term is near 1."""
    mirrored = left + right > 0
    a, b = torch.where(mirrored, -right, left), torch.where(mirrored, -left, right)
    top = torch.special.log_ndtr(b)
    difference = (torch.special.log_ndtr(a) - top).clamp_max(-torch.finfo(top.dtype).tiny)
    return top + torch.log(-torch.expm1(difference))


def density_nats(error: Tensor, log_std: Tensor) -> Tensor:
    """-log N(x; m, s^2), summed over the elements (B,); error = x - m and log_std (B, *shape)."""
    each = 0.5 * (error * torch.exp(-log_std)).square() + log_std + 0.5 * math.log(2 * math.pi)
    return each.flatten(1).sum(1)
