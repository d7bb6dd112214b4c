"""FD, the distance of two normal laws with the moments of two sets of features.

    FD = |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)),    tr (C_x C_y)^(1/2) = tr (C_x^(1/2) C_y C_x^(1/2))^(1/2)

Its bias falls like 1 / n and depends on the model, so that values of different n say nothing beside each other.
Source: Heusel et al. 2017 (1706.08500), whose FID is FD of the features of an Inception network.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.intervals import Interval
from sfumato.metrics.jackknife import jackknife
from sfumato.registry import register


@register("metric", "fd")
@dataclasses.dataclass(frozen=True)
class FD:
    """FD of features. Raises SfumatoError where there are no more samples than features: covariances are singular."""

    space: ClassVar[str] = "features"
    name: ClassVar[str] = "fd"

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        fewest, dim = min(len(x), len(y)), x.shape[1]
        if fewest <= dim:
            raise SfumatoError(
                f"{self.name} of {dim:,} features needs more than {dim:,} samples, and there are {fewest:,}: draw more "
                "(-n), or take kid, which has no bias."
            )
        x, y = x.double(), y.double()
        return jackknife(lambda i, j: distance(*_moments(x[i]), *_moments(y[j])), len(x), len(y))


@register("metric", "fid")
@dataclasses.dataclass(frozen=True)
class FID(FD):
    """FD of the features of the published Inception network, of other features refused."""

    name: ClassVar[str] = "fid"
    network: ClassVar[str] = "Inception-v3"


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), x.T.cov()


def distance(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """FD of two normal laws, float64 (d,) and (d, d)."""
    values, vectors = torch.linalg.eigh(cov_x)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ cov_y @ root).clamp_min(0).sqrt().sum()
    return float((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * both)
