"""Wasserstein distances of two sets of points, exact and over one-dimensional projections.

    W_2^2 = min over pairings of mean |x_i - y_s(i)|^2,      SW_2^2 = mean over directions u of W_2^2(u.x, u.y)

Both are above 0 for two sets of one law, the exact one far above in many dimensions: read them beside their floor.
Source: Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures".
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval
from sfumato.metrics.jackknife import jackknife
from sfumato.registry import register

MOST = 1000  # samples that are paired: the time grows with the third power


@register("metric", "sliced-wasserstein")
@dataclasses.dataclass(frozen=True)
class SlicedWasserstein:
    """SW_2 of numbers, over `directions` unit vectors drawn by `seed`."""

    directions: int = 128
    seed: int = 0
    space: ClassVar[str] = "numbers"

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        index = torch.arange(self.directions)
        axes = noise.normal(self.seed, index, x.shape[1:], noise.PROBE, dtype=torch.float64)
        axes = (axes / axes.norm(dim=1, keepdim=True)).T
        ours, real = x.double() @ axes, y.double() @ axes

        def distance(i: Tensor, j: Tensor) -> float:
            most = max(len(i), len(j))
            a, b = (_quantiles(points, most) for points in (ours[i], real[j]))
            return float((a - b).square().mean().sqrt())

        return jackknife(distance, len(x), len(y))


def _quantiles(points: Tensor, count: int) -> Tensor:
    """The quantiles of each column at (k + 1/2) / count; of `count` points, these themselves."""
    ranks = ((torch.arange(count) + 0.5) / count * len(points)).long()
    return points.sort(0).values[ranks]


@register("metric", "wasserstein")
@dataclasses.dataclass(frozen=True)
class Wasserstein:
    """W_2 of numbers by the best pairing of two equally large sets of up to 1,000 (needs scipy)."""

    space: ClassVar[str] = "numbers"

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        if len(x) != len(y) or len(x) > MOST:
            raise SfumatoError(
                f"wasserstein pairs two equally large sets of up to {MOST:,} samples, not {len(x):,} with {len(y):,}: "
                "take sliced-wasserstein, or fewer."
            )
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError:
            raise SfumatoError("wasserstein needs the library scipy: pip install 'sfumato[metrics]'.") from None
        cost = torch.cdist(x.double(), y.double()).square().cpu()

        def distance(i: Tensor, j: Tensor) -> float:
            part = cost[i][:, j].numpy()
            return math.sqrt(float(part[linear_sum_assignment(part)].mean()))

        return jackknife(distance, len(x), len(y))
