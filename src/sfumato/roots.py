"""Bisection, for all clocks and quantiles without a closed-form inverse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def bisection(below: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, rounds: int = 64) -> Tensor:
    """The x in (low, high) where `below`, bool for each element, turns from True to False, after `rounds` halvings."""
    for _ in range(rounds):
        middle = (low + high) / 2
        left = below(middle)
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
    return (low + high) / 2
