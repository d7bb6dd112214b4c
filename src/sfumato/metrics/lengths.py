"""What sequences and sets of several lengths, NaN beyond their ends, show by themselves.

    lengths         sup_l |P(L <= l) - Q(L <= l)|
    step-marginals  sum_cl n_cl sup_v |F_cl(v) - G_cl(v)| / sum_cl n_cl,   n_cl: values of channel c at step l

Both are 0 for equal laws and above it for finite sets: read them beside their floor.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.data.lengths import ends
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval
from sfumato.metrics.channels import kolmogorov
from sfumato.metrics.jackknife import jackknife
from sfumato.registry import register


@register("metric", "lengths")
@dataclasses.dataclass(frozen=True)
class LawOfLengths:
    """The Kolmogorov-Smirnov distance of the laws of lengths of sequences or sizes of sets."""

    space: ClassVar[str] = "fields"

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        if x.ndim < 3:
            raise SfumatoError("The metric lengths is of sequences and sets, and these samples have no steps.")
        ours, real = (ends(each).double() for each in (x.flatten(2), y.flatten(2)))
        return jackknife(lambda i, j: float(kolmogorov(ours[i][None], real[j][None])), len(x), len(y), most=1.0)


@register("metric", "step-marginals")
@dataclasses.dataclass(frozen=True)
class StepMarginals:
    """The mean over places and channels of the Kolmogorov-Smirnov distance of their present values, each place
    weighted by how many there are."""

    space: ClassVar[str] = "fields"

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        ours, real = (each.flatten(1).T.double() for each in (x, y))

        def distance(i: Tensor, j: Tensor) -> float:
            a, b = ours[:, i], real[:, j]
            weight = torch.minimum((~a.isnan()).sum(1), (~b.isnan()).sum(1)).double()
            return float((kolmogorov(a, b) * weight).sum() / weight.sum().clamp_min(1))

        return jackknife(distance, len(x), len(y), most=1.0)
