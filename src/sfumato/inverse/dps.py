"""Diffusion posterior sampling: a gradient step towards the measurement after each ancestral step."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from sfumato.belief import broadcast
from sfumato.errors import SfumatoError
from sfumato.inverse.measurement import Measurement, local
from sfumato.inverse.method import StepMethod
from sfumato.registry import register
from sfumato.state import numbers_like


@register("method", "dps")
@dataclasses.dataclass(frozen=True)
class DPS(StepMethod):
    """z_s <- z_s - scale grad_z |y - A(E[x|z])|, with the norm of each sample; s is not used.

    Source: Chung et al. 2022 (2209.14687), Algorithm 1.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise SfumatoError(f"DPS needs a scale above 0, not {self.scale:g}.")

    def step(self, model: Any, measurement: Measurement, z: Tensor, t: float, s: float, noise: Any) -> Tensor:
        at = local(model, measurement, z, t)
        norm = at.residual.flatten(1).norm(dim=1).clamp_min(1e-12)
        uphill = at.back(at.pull(at.residual / broadcast(norm, at.residual)))
        if s == 0:
            return at.x + self.scale * uphill
        step = model.process.posterior(s, t)
        moved = broadcast(step.z, z) * z + broadcast(step.x, z) * at.x
        return moved + broadcast(step.std, z) * numbers_like(noise, z) + self.scale * uphill
