"""The Gaussian process: q(z_t | x) = N(alpha_t x, sigma_t^2 I).

    jump       q(z_t | z_s) = N(a z_s, c^2),   a = alpha_t / alpha_s,   c^2 = sigma_t^2 - a^2 sigma_s^2
    posterior  q(z_s | z_t, x) = N(a sigma_s^2 / sigma_t^2 z_t + alpha_s c^2 / sigma_t^2 x,  c^2 sigma_s^2 / sigma_t^2)
    bridge     z_s = alpha_s x + sqrt(sigma_s^2 - std^2) eps + std xi
               std = eta * (the posterior's): eta 0 is DDIM, 1 is DDPM

Sources: Ho et al. 2020 (2006.11239), Eq. 6-7; Song et al. 2020 (2010.02502), Eq. 12 and 16; Kingma et al. 2021
(2107.00630), App. A.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import target
from sfumato.belief import Estimate, Reading, broadcast, reading
from sfumato.errors import SfumatoError
from sfumato.registry import build, register
from sfumato.schedule import Schedule, Time


class Jump(NamedTuple):
    """z_t = alpha z_s + sigma n."""

    alpha: Tensor
    sigma: Tensor


class Step(NamedTuple):
    """z_s = z * z_t + x * x_hat + std * n."""

    z: Tensor
    x: Tensor
    std: Tensor


@register("process", "Gaussian")
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """z = alpha(t) x + sigma(t) eps under a schedule, for real-valued data of any shape."""

    schedule: Schedule

    def prior(self, noise: Tensor) -> Tensor:
        """z_1 = sigma(1) noise, the law that sampling starts from: N(0, sigma(1)^2)."""
        return broadcast(self.schedule.sigma(1.0), noise) * noise

    def corrupt(self, x: Tensor, t: Time, eps: Tensor) -> Tensor:
        """z_t = alpha x + sigma eps; x and eps (B, ...), t a number or (B,)."""
        alpha, sigma = self.schedule(t)
        return broadcast(alpha, x) * x + broadcast(sigma, x) * eps

    def reading(self, name: str, t: Time, sigma_data: float = 1.0) -> Reading:
        """How a prediction of the named target is read at times t: what `read` needs beside y and z."""
        return reading(name, self.schedule, t, sigma_data)

    def read(
        self, y: Tensor, name: str, z: Tensor, t: Time, sigma_data: float = 1.0, known: Reading | None = None
    ) -> Estimate:
        """The belief that a prediction y of the named target says about z; `known` is the `reading` at t."""
        row = target.row(name, self.schedule, t, sigma_data) if known is None else None
        return Estimate(z, t, self.schedule, y=y, row=row, sigma_data=sigma_data, known=known)

    def jump(self, s: Time, t: Time) -> Jump:
        """q(z_t | z_s) for s <= t."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.schedule(s), self.schedule(t)
        alpha = alpha_t / alpha_s
        return Jump(alpha, (sigma_t**2 - alpha**2 * sigma_s**2).clamp_min(0.0).sqrt())

    def posterior(self, s: Time, t: Time) -> Step:
        """q(z_s | z_t, x) for s <= t and sigma_t > 0."""
        return ancestral(*self.schedule(t), *self.schedule(s), eta=1.0)

    def bridge(self, belief: Estimate, s: Time, eta: float = 0.0) -> tuple[Tensor, Tensor]:
        """(mean, std) of z_s given z_t and the belief about it, s <= t."""
        step = ancestral(belief.alpha, belief.sigma, *self.schedule(s), eta=eta)
        mean = broadcast(step.z, belief.z) * belief.z + broadcast(step.x, belief.z) * belief.x
        return mean, step.std

    def config(self) -> dict[str, Any]:
        return {"name": "Gaussian", "args": {"schedule": self.schedule.config()}}


def ancestral(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor, eta: float = 1.0) -> Step:
    """The eta family between two points of the path (2010.02502, Eq. 16), as coefficients of z_t, x and noise."""
    ratio = alpha_t / alpha_s
    variance = (sigma_t**2 - ratio**2 * sigma_s**2).clamp_min(0.0) * (sigma_s / sigma_t) ** 2
    std = eta * variance.sqrt()
    if bool((std > sigma_s).any()):
        raise SfumatoError(f"eta = {eta:g} asks for more noise than the step's end holds: use a smaller eta.")
    kept = torch.sqrt(sigma_s**2 - std**2) / sigma_t  # the part of eps = (z - alpha_t x)/sigma_t that stays
    return Step(kept, alpha_s - kept * alpha_t, std)


def from_config(config: dict[str, Any]) -> Any:
    """The process that `config()` described."""
    return build(config, "process")
