"""log p(x) of a spectral process by the probability-flow ODE, in a clock of each coefficient.

    w_f = z_f / S_f,   S_f = s_f alpha_f + sigma_f,   tau_f = sigma_f / S_f,   dw_f/dtau_f = y_f = eps_f - x_f / s_f
    log p(x) = log N(z_1; 0, prior) + sum_f log(alpha_f S_f(1) / S_f) + int sum_f S_f dtau_f/du dy_f/dz_f du + start

u and the first step are those of `flow`, with the noise level of the total. The prior is that of the process, so that
the value is the log-density of the model that starts there, and nothing is added for its mismatch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import Conditions
from sfumato.likelihood.flow import DEFAULT_STEPS, Integration, estimator_for, logdet_of_start
from sfumato.likelihood.measured import Measured, pooled
from sfumato.likelihood.trace import TraceEstimator
from sfumato.model import Model
from sfumato.probability_flow import Field, Track

_LAST = 1 - 1e-7  # the end of the flow: at t = 1 the noise level of the total may be infinite


@dataclasses.dataclass(frozen=True)
class CoefficientTrack(Track):
    """A track whose alpha, sigma, norm and rate = 1 / norm are tensors (1, *shape); gain is S_f dtau_f/du."""

    gain: tuple[Tensor, ...] = ()

    @functools.cached_property
    def flux(self) -> tuple[float, ...]:
        return (1.0,) * len(self.time)

    @classmethod
    def along(cls, process: Any, steps: int, sigma_min: float | None) -> CoefficientTrack:
        """The track at the times of the clock's own, from sigma/alpha = sigma_min of the total."""
        own = Track.of(process.clock, steps, 1.0, sigma_min)
        scale, time = process.sigma_data, torch.tensor(own.time, dtype=torch.float64).clamp_max(_LAST)
        alpha, sigma = process.schedule(time)
        norm = scale * alpha + sigma
        # dtau/du = -tau (1 - tau) / 2 dlogsnr/du, for the total and for each coefficient
        tau = torch.sigmoid(-process.clock.logsnr(time) / 2)
        total = torch.tensor(own.rate, dtype=torch.float64) / (tau * (1 - tau))
        each = scale * alpha * sigma / norm**2 * process.shares(time)
        gain = norm * each * total.reshape(-1, *[1] * (norm.ndim - 1))
        names = ("alpha", "sigma", "norm", "rate", "gain")
        parts: Any = {
            name: value.split(1) for name, value in zip(names, (alpha, sigma, norm, 1 / norm, gain), strict=True)
        }
        return cls(time=tuple(time.tolist()), scale=scale, **parts)


class CoefficientField(Field):
    """S_f dw_f/du of one batch at the points of a track."""

    track: CoefficientTrack

    def _y(self, z: Tensor, j: int, copies: int = 1) -> Tensor:
        return self.track.gain[j].to(z) * super()._y(z, j, copies)


class NoiseField(CoefficientField):
    """sigma_f eps_f of one batch, for the step from the data to the least noise."""

    def _y(self, z: Tensor, j: int, copies: int = 1) -> Tensor:
        cond = self.cond if copies == 1 else self.cond.repeat(copies)
        sigma = torch.as_tensor(self.track.sigma[j])
        return sigma.to(z) * self.model(z, self.track.time[j], **cond).eps


def ode(
    model: Model,
    x: Tensor,
    index: Tensor,
    cond: Conditions,
    steps: int = DEFAULT_STEPS,
    trace: str = "auto",
    probes: int = 8,
    seed: int = 0,
    sigma_min: float | None = None,
) -> Measured:
    """`log_prob` of coefficients x (B, *shape), float64, with sample numbers `index`, in normalised units."""
    estimator, words, k = estimator_for(model, x, index, steps, trace, probes, seed, by_vectors=True)
    track = CoefficientTrack.along(model.process, steps, sigma_min)
    value, stderr, third, error, truncation = (figure.cpu() for figure in _measure(model, track, cond, x, estimator))
    least = math.exp(-float(model.process.clock.logsnr(track.time[0])) / 2)
    return Measured(value, stderr, third, error, None, truncation, words, x[0].numel(), k, steps, sigma_min=least)


@torch.no_grad()
def _measure(
    model: Model, track: CoefficientTrack, cond: Conditions, x: Tensor, estimator: TraceEstimator
) -> tuple[Tensor, ...]:
    """(value, stderr, third, solver error, truncation) of coefficients x, float64 (B,) each."""
    field, last = CoefficientField(model, track, cond), 2 * track.steps
    alpha, norm = (torch.as_tensor(value[0]).to(x.device) for value in (track.alpha, track.norm))
    noise, trace = estimator(NoiseField(model, track, cond), alpha / norm * x, 0)
    slack, truncation = logdet_of_start(noise / torch.as_tensor(track.sigma[0]).to(x), trace, x[0].numel())
    start = (alpha * x + noise / 2) / norm
    fine, coarse = Integration(field, start, 2, estimator), Integration(field, start, 4, estimator)
    for j in range(0, last + 1, 2):
        if j % 4 == 0:
            coarse.node(j, learn=False)
        fine.node(j, learn=True)
    change = (alpha.log() - norm.log()).sum() + torch.as_tensor(track.norm[-1]).log().sum()
    each, other = (
        _log_prior(model.process, torch.as_tensor(track.norm[-1]).to(x) * one.w) + change + slack + one.total
        for one in (fine, coarse)
    )
    value, stderr, third = pooled(each)
    return value, stderr, third, (value - other.mean(1)).abs(), truncation


def _log_prior(process: Any, z: Tensor) -> Tensor:
    """log N(z_1; 0, prior), (B, 1)."""
    std = process.prior(torch.ones_like(z))
    return -0.5 * ((z / std).square() + 2 * std.log() + math.log(2 * math.pi)).flatten(1).sum(1, keepdim=True)
