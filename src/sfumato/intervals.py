"""Confidence intervals for means over draws that share samples, and for fractions.

    mean of n draws in K strata, samples g with several draws each, residuals r_j from the mean of the draw's stratum:
    stderr^2 = G / (G - 1) (n - 1) / (n - K) sum_g (sum_(j in g) r_j)^2 / n^2,   interval = mean -+ t_f stderr

G groups, f = G - 1 degrees of freedom, at most n - K; the draws of a sample are spread over the strata. If every draw
has its own sample, this is the usual standard error of a stratified mean. Source: Liang and Zeger 1986, with the
small-sample factor "CR1".
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.roots import bisection

LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate and its 95 % confidence interval; stderr for means, else NaN."""

    value: float
    low: float
    high: float
    stderr: float = math.nan

    def to_dict(self) -> dict[str, float | None]:
        """Plain numbers for JSON; None for values that are not finite."""
        return {name: v if math.isfinite(v) else None for name, v in self._asdict().items()}

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2


def mean(values: Tensor, groups: Tensor, strata: Tensor) -> Interval:
    """The mean of draws (n,) with sample numbers `groups` and `strata`, int64 (n,); infinitely wide for one sample."""
    values = values.double()
    n, centre = len(values), float(values.mean())
    _, stratum = strata.unique(return_inverse=True)
    _, group = groups.unique(return_inverse=True)
    k, g = int(stratum.max()) + 1, int(group.max()) + 1
    freedom = min(g - 1, n - k)
    if freedom < 1:
        return Interval(centre, -math.inf, math.inf, math.inf)
    sums = torch.zeros(k, dtype=torch.float64).index_add_(0, stratum, values)
    residuals = values - (sums / stratum.bincount())[stratum]
    shared = torch.zeros(g, dtype=torch.float64).index_add_(0, group, residuals)
    square = g / (g - 1) * (n - 1) / (n - k) * float(shared.square().sum())
    return around(centre, math.sqrt(square) / n, freedom)


def around(value: float, stderr: float, freedom: int) -> Interval:
    """value -+ t stderr."""
    half = student_quantile((1 + LEVEL) / 2, freedom) * stderr
    return Interval(value, value - half, value + half, stderr)


def fraction(share: float, n: float) -> Interval:
    """The interval of p with |share - p| <= z sqrt(p (1 - p) / n) for a fraction of n cases (Wilson 1927)."""
    z2 = NORMAL**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (0.0 if share == 0 else max(0.0, centre - half)), (1.0 if share == 1 else min(1.0, centre + half))
    return Interval(share, low, high, math.sqrt(share * (1 - share) / n))


@functools.lru_cache(1024)  # 2 ms each, and a report asks for that of every validation
def student_quantile(p: float, freedom: int) -> float:
    """t with P(T <= t) = p, p above 1/2, for integer degrees of freedom, by bisection of arctan(t / sqrt(freedom))."""
    first, last = (torch.tensor(end, dtype=torch.float64) for end in (0.0, math.pi / 2))
    angle = bisection(lambda angle: torch.tensor(_student(float(angle), freedom) < p), first, last, 80)
    return math.sqrt(freedom) * math.tan(float(angle))


def _student(angle: float, freedom: int) -> float:
    """P(T <= sqrt(freedom) tan(angle)), by the finite sums of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    cos, odd = math.cos(angle), freedom % 2
    term, total = (cos if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cos**2 * k / (k + 1)
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + 0.5 * inside


NORMAL = 1.959963984540054  # the quantile of LEVEL
