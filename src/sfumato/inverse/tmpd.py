"""Tweedie moment projection: the covariance of the measurement given z by the sums of its rows."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.inverse.measurement import Local
from sfumato.inverse.method import BeliefMethod
from sfumato.registry import register


@register("method", "tmpd")
@dataclasses.dataclass(frozen=True)
class TMPD(BeliefMethod):
    """E[x|z, y] = E[x|z] + C A^T (y - A E[x|z]) / (A C A^T 1 + s^2),   C = Cov(x|z) = sigma^2 / alpha dE[x|z]/dz

    Two products with the Jacobian a call and no system to solve: exact where the measured numbers do not covary given
    z. A sum below 0, of numbers that covary negatively, counts as 0. Source: Boys et al. 2023 (2310.06721), Eq. 13.
    """

    usual_steps: ClassVar[int] = 100
    usual_solver: ClassVar[str | None] = "ddim(eta=1)"

    def clean(self, at: Local) -> Tensor:
        residual = at.residual
        sums = at.push(at.move(torch.ones_like(residual))).clamp_min(0)
        total = sums + at.measurement.variance(residual)
        return at.x + at.move(torch.where(total > 0, residual / torch.where(total > 0, total, 1.0), 0.0))
