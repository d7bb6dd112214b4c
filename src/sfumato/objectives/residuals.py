"""Residuals of E[x|z] along the reverse SDE, and the denoising loss with one of them added.

With D = E[x|z], y = z / alpha, r = sigma^2 / alpha^2 and the score (D - y) / r in these units:

    E[D(z_s, s) | z_t] = D(z_t, t) along the reverse SDE             (Consistent Diffusion, 2302.09057, Eq. 6)
    -dD/dr + score.grad D + lap D / 2 = 0                            (FP-Diffusion, 2210.04296, Eq. 12, for r times D)

The second is the first in the limit of short walks (2306.00367). Both squares are estimated without bias by the product
of two residuals with independent noise, whose gradient is that of the square.
"""

from __future__ import annotations

import abc
import itertools
from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import broadcast
from sfumato.conditions import Conditions
from sfumato.noise import Noise
from sfumato.objectives.losses import Denoising
from sfumato.objectives.times import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register
from sfumato.state import numbers_like

APART = 1.0  # logsnr of a walk
_WALK = 4  # its steps
_SHORT, _WIDE = 0.02, 0.1  # of differences: in log(r), and of z in standard deviations of the noise


def drifts(model: Any, z: Tensor, t: Tensor, cond: Conditions, source: Noise) -> tuple[Tensor, Tensor]:
    """D(z_s) - D(z_t) after two independent walks from z (B, ...) over 1 in logsnr, which carry no gradients."""
    known, schedule = model(z, t, **cond).x, model.process.schedule
    times = [schedule.time(schedule.logsnr(t) + APART * k / _WALK) for k in range(_WALK + 1)]

    def end(walk: int) -> Tensor:
        state = z.detach()
        with torch.no_grad():
            for k, (before, after) in enumerate(itertools.pairwise(times)):
                n = numbers_like(source.at(2 * k + walk), state)
                state = model(state, before, **cond).to(after, 1.0, n)
        found: Tensor = model(state, times[-1], **cond).x
        return found - known

    return end(3), end(4)


def generated(model: Any, z: Tensor, t: Tensor, cond: Conditions, source: Noise) -> tuple[Tensor, Tensor]:
    """r (-dD/dr + score.grad D + lap D / 2) at z (B, ...), by differences, for two probes of the Laplacian."""
    schedule = model.process.schedule
    alpha, sigma = (broadcast(each, z) for each in schedule(t))
    logsnr, y, known = schedule.logsnr(t), z / alpha, model(z, t, **cond).x

    def at(y: Tensor, log: float = 0.0) -> Tensor:  # D at y, with log(r) larger by `log`
        s = schedule.time(logsnr - log)
        found: Tensor = model(broadcast(schedule.alpha(s), y) * y, s, **cond).x
        return found

    along = _SHORT * (known - y).detach()  # r score
    drift = (at(y + along, -_SHORT) - at(y - along, _SHORT)) / (2 * _SHORT)

    def residual(step: int) -> Tensor:
        v = _WIDE * sigma / alpha * numbers_like(source.at(step), z)
        return drift + (at(y + v) - 2 * known + at(y - v)) / (2 * _WIDE**2)

    return residual(1), residual(2)


class Regularised(Denoising, abc.ABC):
    """The denoising loss + share times the square of a residual, a number; held-out samples have the first alone."""

    def __init__(self, times: TimeDensity, weight: Weight | None, seed: int, share: float = 1.0) -> None:
        super().__init__(times, weight, seed)
        self.share = float(share)

    @abc.abstractmethod
    def residuals(self, model: Any, z: Tensor, t: Tensor, cond: Conditions, source: Noise) -> tuple[Tensor, Tensor]:
        """Two residuals at z, like z, with independent noise."""

    def losses(self, model: Any, batch: Any) -> Tensor:
        schedule = model.process.schedule
        t = schedule.time(self.times.logsnr(batch.u, schedule).detach())
        z = model.process.corrupt(batch.x, t, Noise(self.seed, batch.index, noise.TRAIN_NOISE))
        a, b = self.residuals(model, z, t, batch.cond, Noise(self.seed, batch.index, noise.PROBE))
        return super().losses(model, batch) + self.share * (a * b).flatten(1).mean(1)

    def suits(self, model: Any) -> None:
        require_numbers(model, "A residual of the reverse SDE", "take loss='denoising'")


@register("loss", "consistent-diffusion")
@final
class ConsistentDiffusion(Regularised):
    """The denoising loss + share (D(z_s) - D(z_t)).(D(z_s') - D(z_t)) / d along two walks of the reverse SDE.

    Ten more calls of the model, three of them with gradients. Source: Daras et al. 2023 (2302.09057), Eq. 8.
    """

    def residuals(self, model: Any, z: Tensor, t: Tensor, cond: Conditions, source: Noise) -> tuple[Tensor, Tensor]:
        return drifts(model, z, t, cond, source)


@register("loss", "fp-diffusion")
@final
class FPDiffusion(Regularised):
    """The denoising loss + share |r (-dD/dr + score.grad D + lap D / 2)|^2 / d, by differences.

    Seven more calls of the model with gradients. Source: Lai et al. 2023 (2210.04296), Eq. 14, in terms of E[x|z].
    """

    def residuals(self, model: Any, z: Tensor, t: Tensor, cond: Conditions, source: Noise) -> tuple[Tensor, Tensor]:
        return generated(model, z, t, cond, source)
