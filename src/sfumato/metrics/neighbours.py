"""Precision, recall, density and coverage by balls around the samples of one set.

    r(y_j): the distance to the k-th nearest of the others of its set;     B(y_j): the open ball of this radius
    precision = share of the x in some B(y_j)           recall   = share of the y in some B(x_i)
    density   = mean over x of |{j: x in B(y_j)}| / k   coverage = share of the B(y_j) with some x

x the samples, y the real ones, in the space of features. For equal laws density is 1 and coverage about 1 - 2^-k.
Sources: Kynkaanniemi et al. 2019 (1904.06991); Naeem et al. 2020 (2002.09797).
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.intervals import Interval
from sfumato.metrics.jackknife import jackknife
from sfumato.registry import register


@dataclasses.dataclass(frozen=True)
class Balls(abc.ABC):
    """What the four have in common: k neighbours, and distances that are computed once."""

    k: int = 5
    space: ClassVar[str] = "features"
    most: ClassVar[float] = 1.0  # that the figure can be

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        if min(len(x), len(y)) < 2 * (self.k + 1):
            raise SfumatoError(
                f"Balls to the neighbour number {self.k} need at least {2 * (self.k + 1)} samples, not "
                f"{min(len(x), len(y))}: draw more (-n)."
            )
        x, y = x.double(), y.double()
        xx, yy, xy = torch.cdist(x, x), torch.cdist(y, y), torch.cdist(x, y)

        def share(i: Tensor, j: Tensor) -> float:
            return self.share(xx[i][:, i], yy[j][:, j], xy[i][:, j])

        return jackknife(share, len(x), len(y), self.most)

    @abc.abstractmethod
    def share(self, xx: Tensor, yy: Tensor, xy: Tensor) -> float:
        """The figure from the distances (n, n), (m, m) and (n, m)."""

    def radius(self, own: Tensor) -> Tensor:
        """The distance of each to its k-th neighbour, from distances (n, n) with zeros for itself."""
        return own.kthvalue(self.k + 1, dim=1).values


@register("metric", "precision")
@dataclasses.dataclass(frozen=True)
class Precision(Balls):
    """The share of the samples that lie among the real ones."""

    def share(self, xx: Tensor, yy: Tensor, xy: Tensor) -> float:
        return float((xy < self.radius(yy)).any(1).double().mean())


@register("metric", "recall")
@dataclasses.dataclass(frozen=True)
class Recall(Balls):
    """The share of the real samples that lie among those of the model."""

    def share(self, xx: Tensor, yy: Tensor, xy: Tensor) -> float:
        return float((xy < self.radius(xx)[:, None]).any(0).double().mean())


@register("metric", "density")
@dataclasses.dataclass(frozen=True)
class Density(Balls):
    """How many real balls a sample lies in, over k."""

    most: ClassVar[float] = math.inf

    def share(self, xx: Tensor, yy: Tensor, xy: Tensor) -> float:
        return float((xy < self.radius(yy)).double().sum(1).mean()) / self.k


@register("metric", "coverage")
@dataclasses.dataclass(frozen=True)
class Coverage(Balls):
    """The share of the real balls in which some sample lies."""

    def share(self, xx: Tensor, yy: Tensor, xy: Tensor) -> float:
        return float((xy.min(0).values < self.radius(yy)).double().mean())
