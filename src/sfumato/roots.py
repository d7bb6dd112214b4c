"""Where a function changes sign, by bisection: the one for all clocks and quantiles that have no closed inverse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def bisection(below: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, rounds: int = 64) -> Tensor:
    """x in (low, high) up to which `below` (a bool for each element) holds; `rounds` halvings, then the middle."""
    for _ in range(rounds):
        middle = (low + high) / 2
        left = below(middle)
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return (low + high) / 2
