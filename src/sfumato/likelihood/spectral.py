"""log p(x) of a spectral process by the probability-flow ODE, in a clock of each coefficient.

    w_f = z_f / S_f,   S_f = s_f alpha_f + sigma_f,   tau_f = sigma_f / S_f,   dw_f/dtau_f = y_f = eps_f - x_f / s_f
    log p(x) = log N(z_1; 0, prior) + sum_f log(alpha_f S_f(1) / S_f) + int sum_f S_f dtau_f/du dy_f/dz_f du + start

u and the first step are those of `flow`, with the noise level of the total. The prior is that of the process, so that
the value is the log-density of the model that starts there, and nothing is added for its mismatch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import Conditions
from sfumato.likelihood.flow import DEFAULT_STEPS, Integration, estimator_for, logdet_of_start
from sfumato.likelihood.measured import Measured, pooled
from sfumato.likelihood.trace import TraceEstimator
from sfumato.model import Model
from sfumato.probability_flow import CoefficientField, CoefficientTrack


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
        log_prior(model.process, torch.as_tensor(track.norm[-1]).to(x) * one.w) + change + slack + one.total
        for one in (fine, coarse)
    )
    value, stderr, third = pooled(each)
    return value, stderr, third, (value - other.mean(1)).abs(), truncation


def log_prior(process: Any, z: Tensor) -> Tensor:
    """log N(z_1; 0, prior), (B, 1), of states z_1 (B, *shape) of a process of numbers."""
    std = process.prior(torch.ones_like(z))
    return -0.5 * ((z / std).square() + 2 * std.log() + math.log(2 * math.pi)).flatten(1).sum(1, keepdim=True)
