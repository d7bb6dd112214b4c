"""log p(x) by the instantaneous change of variables along the probability-flow ODE.

    log p(x) = log N(z_1; 0, sigma_1^2) + D log(alpha_0 S_1 / S_0) + int S tr(dy/dz) dtau     (the ODE as in `ode`)
    + start           one step from x to the least noise, z_0 = alpha x + sigma/2 eps(alpha x), as eps is proportional
                      to sigma near the data. Its log-determinant is D log(1 + sigma tr(deps/dz) / (2 D))
    + prior mismatch  log p_1(z_1) - log N(z_1; 0, sigma_1^2), with the model's own x^(z) and x^(0) at t = 1:
                      (alpha z.(x^(z) + x^(0)) - alpha^2 |x^(0)|^2) / (2 sigma^2) - alpha/2 tr(dx^/dz)

Both are first-order corrections. Without the first step, log p would be that of x with the least noise, lower by about
1/2 (sigma tr(deps/dz) - |eps|^2), which is reported as the truncation. The state moves by Runge-Kutta steps of order 4;
the trace is computed once per node and integrated by Gregory's rule on the same nodes.
Sources: Chen et al. 2018 (1806.07366), Eq. 8; Song et al. 2021 (2011.13456), App. D.2; Efron 2011 for the corrections,
which are Tweedie's formula twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError
from sfumato.likelihood.measured import Measured, pooled
from sfumato.likelihood.trace import Exact, TraceEstimator, choose
from sfumato.model import Model
from sfumato.probability_flow import Field, Track, data_scale, exact_law, quadrature

DEFAULT_STEPS = 64
_EXACT = 128  # largest sample dimension for which the trace of a network is exact by default


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
    """`log_prob` of normalised x (B, *shape), float64, with sample numbers `index`, in normalised units."""
    estimator, words, k = estimator_for(model, x, index, steps, trace, probes, seed)
    track = Track.of(model.process.schedule, steps, data_scale(model), sigma_min)
    figures = _measure(Field(model, track, cond), x, estimator)
    value, stderr, third, error, mismatch, truncation = (figure.cpu() for figure in figures)
    return Measured(
        value, stderr, third, error, mismatch, truncation, words, x[0].numel(), k, steps,
        sigma_min=track.sigma[0] / track.alpha[0],
    )  # fmt: skip


@torch.no_grad()
def noised_log_prob(model: Model, z: Tensor, t: float, cond: Conditions, steps: int = DEFAULT_STEPS) -> Tensor:
    """log p_t(z) of the ODE's law at time t for states z (B, *shape), float64 (B,) on the CPU, by the exact trace."""
    alpha, sigma = (float(each) for each in model.process.schedule(t))
    track, dim = Track.of(model.process.schedule, steps, data_scale(model), sigma / alpha), z[0].numel()
    field = Field(model, track, cond)
    trace_of = choose(model, "exact", 0, 0, torch.arange(len(z)), dim, z.device)
    run = Integration(field, z.double() / track.norm[0], 2, trace_of)
    for j in range(0, 2 * steps + 1, 2):
        y, trace = run.node(j, learn=False)
    change = dim * math.log(track.norm[-1] / track.norm[0])
    each = _log_prior(field, run.w) + change + run.total + _prior_mismatch(field, run.w, y, trace)
    return each[:, 0].cpu()


def estimator_for(
    model: Model, x: Tensor, index: Tensor, steps: int, trace: str, probes: int, seed: int, by_vectors: bool = False
) -> tuple[TraceEstimator, str, int]:
    """(estimator of traces, the method in words, its number of probes). by_vectors: no closed form of exact models."""
    if steps < 2 or steps % 2:
        raise SfumatoError(f"log_prob needs an even number of steps, at least 2; got {steps}.")
    dim = x[0].numel()
    if trace == "auto":
        trace = "exact" if exact_law(model) or dim <= _EXACT else "rademacher"
    if trace == "exact":
        estimator = Exact() if by_vectors else choose(model, trace, probes, seed, index, dim, x.device)
        return estimator, "ode, exact trace", 0
    return choose(model, trace, probes, seed, index, dim, x.device), f"ode, {probes} {trace} probes", probes


class Integration:
    """One integration of the flow from data to noise, `stride` points per step, with the weighted sum of traces."""

    def __init__(self, field: Field, w: Tensor, stride: int, trace: TraceEstimator) -> None:
        self.field, self.w, self.stride, self.trace = field, w, stride, trace
        self.weights = quadrature(2 * field.track.steps // stride).tolist()
        self.total: Tensor | float = 0.0

    def node(self, j: int, learn: bool) -> tuple[Tensor, Tensor]:
        """Return (y, trace) at point j and move to the next node."""
        track = self.field.track
        y, trace = self.trace(self.field, self.w, j, learn)
        self.total = self.total + self.weights[j // self.stride] * track.flux[j] * trace
        if j + self.stride < len(track.time):
            self.w = self.field.step(self.w, j, self.stride, y)
        return y, trace


@torch.no_grad()
def _measure(field: Field, x: Tensor, estimator: TraceEstimator) -> tuple[Tensor, ...]:
    """(value, stderr, third, solver error, prior mismatch, truncation) of normalised x, float64 (B,) each."""
    track, last = field.track, 2 * field.track.steps
    start, slack, truncation = _start(field, track.alpha[0] / track.norm[0] * x, estimator)
    fine, coarse = Integration(field, start, 2, estimator), Integration(field, start, 4, estimator)
    for j in range(0, last + 1, 2):
        if j % 4 == 0:
            coarse.node(j, learn=False)
        y, trace = fine.node(j, learn=True)
    mismatch = _prior_mismatch(field, fine.w, y, trace)
    change = x[0].numel() * math.log(track.alpha[0] * track.norm[-1] / track.norm[0])
    each = _log_prior(field, fine.w) + change + slack + fine.total + mismatch
    other = _log_prior(field, coarse.w) + change + slack + coarse.total
    value, stderr, third = pooled(each)
    mismatch = mismatch.mean(1)
    error = (value - mismatch - other.mean(1)).abs()
    return value, stderr, third, error, mismatch, truncation


def _log_prior(field: Field, w: Tensor) -> Tensor:
    """log N(z_1; 0, sigma_1^2), (B, 1)."""
    sigma = field.track.sigma[-1]
    z = (field.track.norm[-1] * w).flatten(1)
    return -0.5 * ((z / sigma).square().sum(1) + z.shape[1] * math.log(2 * math.pi * sigma**2))[:, None]


def _start(field: Field, w: Tensor, estimator: TraceEstimator) -> tuple[Tensor, Tensor, Tensor]:
    """The step from w = alpha x / S to the least noise: (w, its log-determinant (B, columns), the truncation (B,)).

    With eps = w + s alpha / S y and sigma tr(deps/dz) = sigma / S (D + s alpha tr(dy/dz)).
    """
    track, dim = field.track, w[0].numel()
    alpha, sigma, norm, scale = track.alpha[0], track.sigma[0], track.norm[0], track.scale
    y, trace = estimator(field, w, 0)
    eps = w + scale * alpha / norm * y
    total = sigma / norm * (dim + scale * alpha * trace)
    return w + sigma / (2 * norm) * eps, *logdet_of_start(eps, total, dim)


def logdet_of_start(eps: Tensor, total: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """(log-determinant of the first step (B, columns), truncation (B,)) from eps and total = sigma tr(deps/dz)."""
    mean = total.mean(1, keepdim=True)
    growth = (1 + mean / (2 * dim)).clamp_min(1e-3)  # log-determinant linearised around the mean of the probes
    slack = dim * growth.log() + (total - mean) / (2 * growth)
    return slack, 0.5 * (mean[:, 0] - eps.flatten(1).square().sum(1))


def _prior_mismatch(field: Field, w: Tensor, y: Tensor, trace: Tensor) -> Tensor:
    """log p_1(z) - log N(z; 0, sigma_1^2) to second order in alpha/sigma, (B, columns); x = s (w - sigma / S y)."""
    track, last = field.track, 2 * field.track.steps
    alpha, sigma, norm, scale = track.alpha[-1], track.sigma[-1], track.norm[-1], track.scale
    origin = torch.zeros_like(w)
    here = (scale * (w - sigma / norm * y)).flatten(1)
    there = (-scale * sigma / norm * field.y(origin, last)).flatten(1)
    pull = alpha * (norm * w.flatten(1) * (here + there)).sum(1) - alpha**2 * there.square().sum(1)
    slope = scale / norm * (w[0].numel() - sigma * trace)
    return (pull / (2 * sigma**2))[:, None] - alpha / 2 * slope
