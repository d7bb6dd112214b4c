"""Orders from errors: the slope of log e over log n where it is a line, else p of log e = c - p log n + d / n.

d / n is the next term of any smooth error: without it the slope of a few dozen steps is off by some tenths. Measured at
growing n until the fit settles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

SETTLED = 0.05  # fits that differ by less, with and without the newest error, belong to the asymptotic range
STRAIGHT = 0.05  # local slopes that differ by less are a line
_POINTS = 4


class Slope(NamedTuple):
    """order: the fitted slope, None where fewer than three errors lie above rounding; errors: (steps, error).

    settled: whether the fit had stopped changing, so that it is of the asymptotic range.
    """

    order: float | None
    errors: tuple[tuple[int, float], ...]
    settled: bool


def fit(errors: list[tuple[int, float]]) -> float | None:
    """p by least squares over the last errors, three at least."""
    last = errors[-_POINTS:]
    if len(last) < 3:
        return None
    before, after = (-math.log(f / e) / math.log(m / n) for (n, e), (m, f) in zip(last[-3:], last[-2:], strict=False))
    if abs(before - after) < STRAIGHT:
        return (before + after) / 2
    n, e = torch.tensor(last, dtype=torch.float64).unbind(-1)
    terms = torch.stack((torch.ones_like(n), -n.log(), n[0] / n), -1)
    return float(torch.linalg.lstsq(terms, e.log()[:, None]).solution[1, 0])


def refine(error: Callable[[int], float | None], counts: Iterable[int], floor: float) -> Slope:
    """Measure at growing numbers of steps until the fit settles, the error is rounding, or counts end.

    error(n) is None where n steps cannot be taken.
    """
    seen: list[tuple[int, float]] = []
    good: list[tuple[int, float]] = []
    order: float | None = None
    settled = False
    for n in counts:
        value = error(n)
        if value is None or not math.isfinite(value):
            continue
        seen.append((n, value))
        if value <= floor:
            break
        good.append((n, value))
        before, order = order, fit(good)
        settled = before is not None and order is not None and abs(order - before) < SETTLED
        if settled:
            break
    return Slope(order, tuple(seen), settled)
