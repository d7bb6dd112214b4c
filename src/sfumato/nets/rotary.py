"""Rotary positions: queries and keys are turned by the angles of their positions, so that scores hear differences."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def rotary(length: int, width: int) -> Tensor:
    """(cos, sin) of w_k i for each position i, w_k = 10000^(-2k / width): (2, length, width / 2) (Su et al. 2021)."""
    frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()]).float()


def axial_rotary(grid: Sequence[int], width: int) -> Tensor:
    """(cos, sin) of w_k i for the index i along each axis of a grid: (2, prod grid, width / 2).

    Each axis has K = width / 2 / axes pairs, w_k = 100^(-k / K). Pairs that are left over are not turned.
    Source: Heo et al. 2024, "Rotary position embedding for vision transformer" (2403.13298), axial frequencies.
    """
    pairs = width // (2 * len(grid))
    frequency = 100.0 ** (-torch.arange(pairs, dtype=torch.float64) / max(pairs, 1))
    index = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in grid]).reshape(-1, len(grid))
    angle = (index[:, :, None] * frequency).flatten(1)
    angle = F.pad(angle, (0, width // 2 - angle.shape[1]))
    return torch.stack([angle.cos(), angle.sin()]).float()


def beyond(turn: Tensor, extra: int) -> Tensor:
    """The turns of a grid and of `extra` tokens behind it that have no place and are not turned."""
    return torch.stack([F.pad(turn[0], (0, 0, 0, extra), value=1.0), F.pad(turn[1], (0, 0, 0, extra))])


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Each pair of halves (x_k, x_{k + width / 2}) turned by the angle of its position; x (.., L, width)."""
    (cos, sin), (first, second) = turn.to(x.dtype), x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
