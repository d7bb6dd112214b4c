"""Null-space projection: the measured part of the clean signal is the measurement."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from sfumato.inverse.measurement import Local
from sfumato.inverse.method import BeliefMethod
from sfumato.registry import register


@register("method", "ddnm")
@dataclasses.dataclass(frozen=True)
class DDNM(BeliefMethod):
    """E[x|z, y] = E[x|z] + A^+ (y - A E[x|z]): y is taken as free of noise.

    One call a step and no backward pass. Source: Wang et al. 2022 (2212.00490).
    """

    nonlinear: ClassVar[bool] = False
    usual_steps: ClassVar[int] = 100
    usual_solver: ClassVar[str | None] = "ddim(eta=1)"

    def clean(self, at: Local) -> Tensor:
        return at.x + at.measurement.project(at.x, at.residual)
