"""Pseudoinverse guidance: the covariance of x given z as that of standard normal data."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from sfumato.inverse.measurement import Local, conjugate_gradient
from sfumato.inverse.method import BeliefMethod
from sfumato.registry import register


@register("method", "pigdm")
@dataclasses.dataclass(frozen=True)
class PiGDM(BeliefMethod):
    """E[x|z, y] = E[x|z] + C A^T (r^2 A A^T + s^2)^-1 (y - A E[x|z]),   r^2 = sigma^2 / (alpha^2 + sigma^2)

    Exact for standard normal data. Source: Song et al. 2023 (Pseudoinverse-Guided Diffusion Models), with noise.
    """

    rounds: int = 50
    usual_steps: ClassVar[int] = 100
    usual_solver: ClassVar[str | None] = "ddim(eta=1)"

    def clean(self, at: Local) -> Tensor:
        return at.x + at.move(conjugate_gradient(at.isotropic_covariance, at.residual, self.rounds))
