"""Distances between laws by a kernel: KID, MMD and the energy distance.

    M = mean_(i != j) k(x_i, x_j) + mean_(i != j) k(y_i, y_j) - 2 mean_(i, j) k(x_i, y_j)

without bias: zero on average for two sets of one law, and negative half of the time. Its variance is the larger of

    jackknife    (n - 1)^2 / n var_i M_(-i) + the same of y, from row sums of the kernel
    equal laws   (1/n + 1/m)^2 mean_(i != j) h_ij^2 / 2,   h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

Pairs (x_i, y_i) that share their noise or their condition are independent of each other, but not within: for them

    M = mean_(i != j) h_ij,   its variance the larger of (n - 1)/n sum_i (M_(-i) - M)^2 and 2 mean_(i != j) h_ij^2 / n^2

has no bias either, is 0 where x = y, and is the more precise the nearer the samples of a pair are.

The first rules where the laws differ. For equal laws M has no linear part, and its jackknife is too wide on average but
too narrow where M happens to be lowest: the second is the variance there, so that intervals cover 0 as they say.
Sources: Gretton et al. 2012, "A kernel two-sample test"; Binkowski et al. 2018 (1801.01401); Szekely and Rizzo 2013.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval, around
from sfumato.registry import register

Kernel = Callable[[Tensor, Tensor], Tensor]
_BLOCK = 1 << 22  # numbers of a kernel in memory
_FEW = 1000  # samples among which second moments and the median distance are taken


class Discrepancy(abc.ABC):
    """M by a kernel, of two sets of samples, or of pairs."""

    @abc.abstractmethod
    def kernel(self, y: Tensor) -> Kernel:
        """k: (B, D) and (m, D) -> (B, m), for comparison with the samples y (m, D)."""

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        return discrepancy(x, y, self.kernel(y))

    def paired(self, x: Tensor, y: Tensor) -> Interval:
        """M of pairs, x and y (n, D): samples of two models under the same noise, or under the same conditions."""
        return of_pairs(x, y, self.kernel(y))


@register("metric", "kid")
@dataclasses.dataclass(frozen=True)
class KID(Discrepancy):
    """M of features with k(a, b) = (a.b / d + 1)^3 in d dimensions, the kernel inception distance."""

    space: ClassVar[str] = "features"

    def kernel(self, y: Tensor) -> Kernel:
        return lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3


@register("metric", "mmd")
@dataclasses.dataclass(frozen=True)
class MMD(Discrepancy):
    """M (the squared maximum mean discrepancy) of numbers with k(a, b) = exp(-|a - b|^2 / (2 h^2)).

    bandwidth: h; by default the median distance of the real samples, so that all models meet one kernel.
    """

    bandwidth: float | None = None
    space: ClassVar[str] = "numbers"

    def kernel(self, y: Tensor) -> Kernel:
        h = median_distance(y) if self.bandwidth is None else self.bandwidth
        if not h > 0:
            raise SfumatoError(
                "mmd needs a bandwidth above 0: give mmd(bandwidth=...), as most real samples are equal."
            )
        return lambda a, b: torch.cdist(a, b).square_().div_(-2 * h * h).exp_()


@register("metric", "energy")
@dataclasses.dataclass(frozen=True)
class Energy(Discrepancy):
    """2 E|x - y| - E|x - x'| - E|y - y'| of numbers: M with k(a, b) = -|a - b|."""

    space: ClassVar[str] = "numbers"

    def kernel(self, y: Tensor) -> Kernel:
        return lambda a, b: -torch.cdist(a, b)


def discrepancy(x: Tensor, y: Tensor, kernel: Kernel) -> Interval:
    """M of x (n, D) and y (m, D), in float64. kernel: (B, D) and (m, D) -> (B, m)."""
    x, y = x.double(), y.double()
    n, m = _enough(x, y)
    xx, yy = _sums(x, x, kernel, own=True)[0], _sums(y, y, kernel, own=True)[0]
    xy, yx = _sums(x, y, kernel)
    within_x, within_y, across = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1)), xy.sum() / (n * m)
    value = float(within_x + within_y - 2 * across)
    # M without x_i, and without y_j
    no_x = (xx.sum() - 2 * xx) / ((n - 1) * (n - 2)) + within_y - 2 * (xy.sum() - xy) / ((n - 1) * m)
    no_y = within_x + (yy.sum() - 2 * yy) / ((m - 1) * (m - 2)) - 2 * (yx.sum() - yx) / (n * (m - 1))
    square = sum(float((left - left.mean()).square().mean()) * (len(left) - 1) for left in (no_x, no_y))
    square = max(square, (1 / n + 1 / m) ** 2 * _second_moment(x, y, kernel) / 2)
    return around(value, math.sqrt(square), min(n, m) - 1)


def of_pairs(x: Tensor, y: Tensor, kernel: Kernel) -> Interval:
    """M of n independent pairs, x and y (n, D), in float64, without the kernel within a pair. kernel: as above."""
    x, y = x.double(), y.double()
    n, _ = _enough(x, y)
    within = _sums(x, x, kernel, own=True)[0] + _sums(y, y, kernel, own=True)[0]
    xy, yx = _sums(x, y, kernel, own=True)
    rows = within - xy - yx
    left = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2))  # M without each pair
    square = max((n - 1) * float(left.var(correction=0)), 2 / n**2 * _second_moment(x, y, kernel))
    return around(float(rows.sum()) / (n * (n - 1)), math.sqrt(square), n - 1)


def _enough(x: Tensor, y: Tensor) -> tuple[int, int]:
    """The numbers of samples. Raises SfumatoError for fewer than three."""
    if min(len(x), len(y)) < 3:
        raise SfumatoError(f"A kernel distance needs sets of at least 3 samples, not {len(x)} and {len(y)}.")
    return len(x), len(y)


def _sums(a: Tensor, b: Tensor, kernel: Kernel, own: bool = False) -> tuple[Tensor, Tensor]:
    """Sums of k(a_i, b_j) over j (len(a),) and over i (len(b),); own: a is b, and i = j is left out."""
    rows, columns, step = [], torch.zeros(len(b), dtype=torch.float64, device=b.device), max(1, _BLOCK // len(b))
    for start in range(0, len(a), step):
        block = kernel(a[start : start + step], b)
        if own:
            block.diagonal(start).zero_()
        rows.append(block.sum(1))
        columns += block.sum(0)
    return torch.cat(rows), columns


def _second_moment(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    """The mean of h_ij^2 over i != j, of up to 1,000 pairs of samples."""
    n = min(len(x), len(y), _FEW)
    x, y = x[:n], y[:n]
    across = kernel(x, y)
    h = kernel(x, x) + kernel(y, y) - across - across.T
    return float((h.square().sum() - h.diagonal().square().sum()) / (n * (n - 1)))


def median_distance(y: Tensor) -> float:
    """The median distance between two rows of y (m, D), among at most 1,000 of them."""
    some = y[noise.permutation(0, 0, len(y))[:_FEW]].double()
    return float(torch.nn.functional.pdist(some).median())
