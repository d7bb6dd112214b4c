"""Decoupled annealing: a clean signal given state and measurement, then noise of the next level."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from sfumato.belief import broadcast
from sfumato.inverse.measurement import Measurement, conjugate_gradient, spread
from sfumato.inverse.method import StepMethod
from sfumato.registry import register
from sfumato.state import numbers, numbers_like


@register("method", "daps")
@dataclasses.dataclass(frozen=True)
class DAPS(StepMethod):
    """x0 ~ N(x; E[x|z], r^2) p(y | x),   z_s = alpha_s x0 + sigma_s n,   r^2 = sigma^2 / (alpha^2 + sigma^2)

    The draw is exact for a linear operator, a sample of the Gaussian to which the measurement is added (Matheron's
    rule). One call a step and no backward pass. Source: Zhang et al. 2024 (2407.01521).
    """

    rounds: int = 50

    def step(self, model: Any, measurement: Measurement, z: Tensor, t: float, s: float, noise: Any) -> Tensor:
        x, variance = model(z, t).x, spread(model.process, t)
        x0 = x + broadcast(variance.sqrt(), x) * numbers_like(noise.fold("clean"), x)
        seen = measurement.residual(x0)
        seen = seen + measurement.noise.to(x) * numbers(noise.fold("measured"), seen.shape[1:], x.device, x.dtype)

        def covariance(u: Tensor) -> Tensor:
            inner = measurement.push(x, measurement.pull(x, u))
            return broadcast(variance, u) * inner + measurement.variance(u) * u

        u = conjugate_gradient(covariance, seen, self.rounds)
        x0 = x0 + broadcast(variance, x) * measurement.pull(x, u)
        return model.process.corrupt(x0, s, numbers_like(noise.fold("next"), x)) if s else x0
