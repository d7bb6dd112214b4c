"""The probability-flow ODE of any model in one clock, by Runge-Kutta steps of order 4, from data to noise and back.

    w = z / S,   S = s alpha + sigma,   tau = sigma / S,   dw/dtau = y = E[eps|z] - E[x|z] / s

s is the standard deviation of the data. The clock depends on the schedule only through its ends, and y is finite at
both. Steps are equal in u, du = (1 - SHARE) dtau / (tau_1 - tau_0) + SHARE dlog(tau) / log(tau_1 / tau_0): the flow is
most curved at tau of order 1, and resolves the data's fine structure at small tau.
This is not a `Plan`: it also runs from data to noise, in float64 for every model, and computes traces at its nodes.
Source: Song et al. 2021 (2011.13456), Eq. 13, in the time of flow matching (2210.02747).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import Conditions, Given
from sfumato.errors import SfumatoError, whole
from sfumato.exact import ExactDenoiser
from sfumato.model import Model, compute_dtype
from sfumato.process import Spectral, require_flow
from sfumato.roots import bisection
from sfumato.schedule import NODE_LIMIT, Schedule

_LAST = 1 - 1e-7  # the end of the flow of coefficients: at t = 1 the noise level of the total may be infinite
SHARE = 0.4  # the share of the steps that is uniform in log(tau)
_ROWS = 512  # most rows of one model call when a state is repeated


@dataclasses.dataclass(frozen=True)
class Track:
    """The points of N steps: nodes at even j, midpoints at odd j, from j = 0 (data) to 2 N (noise).

    time, alpha, sigma, norm (S) and rate (dtau/du) have 2 N + 1 numbers each; scale is s.
    """

    time: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    norm: tuple[float, ...]
    rate: tuple[float, ...]
    scale: float

    @property
    def steps(self) -> int:
        return (len(self.time) - 1) // 2

    @functools.cached_property
    def flux(self) -> tuple[float, ...]:
        """rate * norm: the factor of tr(dy/dz) in the change of log p along u."""
        return tuple(rate * norm for rate, norm in zip(self.rate, self.norm, strict=True))

    @classmethod
    def of(cls, schedule: Schedule, steps: int, scale: float, sigma_min: float | None = None) -> Track:
        """The track from sigma/alpha = sigma_min, or the schedule's own start if that is noisier, to t = 1."""
        steps = whole("steps of the probability flow", steps)
        least = scale * math.exp(-NODE_LIMIT / 2) if sigma_min is None else float(sigma_min)
        own, last = (float(torch.exp(-schedule.logsnr(t) / 2)) for t in (0.0, 1.0))
        first = max(own, least)
        if not 0 < first < last:
            raise SfumatoError(f"sigma_min must lie above 0 and below sigma/alpha = {last:g} at t = 1, got {first:g}.")
        tau_0, tau_1 = first / (scale + first), 1.0 if math.isinf(last) else last / (scale + last)
        tau, rate = _clock(tau_0, tau_1, 2 * steps)
        time = schedule.time(2 * (torch.log1p(-tau) - torch.log(tau * scale)))
        time[-1] = 1.0
        if first == own:
            time[0] = 0.0
        alpha, sigma = schedule(time)
        norm = scale * alpha + sigma
        times, alphas, sigmas, norms, rates = (tuple(v.tolist()) for v in (time, alpha, sigma, norm, rate))
        return cls(times, alphas, sigmas, norms, rates, scale)


def _clock(tau_0: float, tau_1: float, intervals: int) -> tuple[Tensor, Tensor]:
    """(tau, dtau/du) at equal steps of u from 0 to 1, float64."""
    span, ratio = tau_1 - tau_0, math.log(tau_1 / tau_0)
    u = torch.linspace(0, 1, intervals + 1, dtype=torch.float64)

    def below(log: Tensor) -> Tensor:  # of log(tau / tau_0)
        return (1 - SHARE) * tau_0 * torch.expm1(log) / span + SHARE * log / ratio < u

    tau = tau_0 * torch.exp(bisection(below, torch.zeros_like(u), torch.full_like(u, ratio)))
    tau[0], tau[-1] = tau_0, tau_1
    return tau, 1 / ((1 - SHARE) / span + SHARE / (ratio * tau))


def exact_law(model: object) -> ExactDenoiser | None:
    """The model if it is an `ExactDenoiser`, else None."""
    return model if isinstance(model, ExactDenoiser) else None


def data_scale(model: Model) -> float:
    """The standard deviation of the data: that of an exact model (root mean variance), or the denoiser's sigma_data."""
    law = exact_law(model)
    if law is not None:
        z = torch.zeros(1, *law.shape, dtype=torch.float64)  # at alpha = 0, Var[x|z] is the variance of the data
        return math.sqrt(float(law.truth.variance(z, alpha=0.0, sigma=1.0).mean())) or 1.0
    return float(getattr(model, "sigma_data", 1.0))


class Products:
    """v -> (dy/dz)^T v for vectors v (P, B, D); `copies` of them share one backward pass, for speed."""

    def __init__(self, z: Tensor, y: Tensor, copies: int) -> None:
        self.z, self.y, self.copies = z, y, copies

    def _some(self, v: Tensor) -> Tensor:
        missing = self.copies - len(v)
        full = torch.cat((v, v.new_zeros(missing, *v.shape[1:]))) if missing else v
        (grad,) = torch.autograd.grad(self.y, self.z, full.reshape(self.y.shape).to(self.y.dtype), retain_graph=True)
        return grad.to(torch.float64).reshape(full.shape)[: len(v)]

    def __call__(self, v: Tensor) -> Tensor:
        parts = [self._some(part) for part in v.split(self.copies)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Field:
    """dw/du of one batch at the points of a track. States are float64; the model is called in its own dtype."""

    def __init__(self, model: Model, track: Track, cond: Mapping[str, Given | Tensor]) -> None:
        require_flow(model.process)
        self.model, self.track, self.dtype = model, track, compute_dtype(model)
        self.cond = Conditions.of(cond)

    def _y(self, z: Tensor, j: int, copies: int = 1) -> Tensor:
        cond = self.cond if copies == 1 else self.cond.repeat(copies)
        belief = self.model(z, self.track.time[j], **cond)
        return belief.eps - belief.x / self.track.scale

    def state(self, w: Tensor, j: int) -> Tensor:
        """z = S w, in the model's dtype."""
        return (self.track.norm[j] * w).to(self.dtype)

    @torch.no_grad()
    def y(self, w: Tensor, j: int) -> Tensor:
        """dw/dtau, float64."""
        return self._y(self.state(w, j), j).to(torch.float64)

    def linear(self, w: Tensor, j: int, count: int = 1) -> tuple[Tensor, Products]:
        """y as in `y`, and the products of (dy/dz)^T with vectors, set up for about `count` of them."""
        copies = max(1, min(count, _ROWS // len(w)))
        with torch.enable_grad():
            z = self.state(w, j).detach().repeat(copies, *([1] * (w.ndim - 1))).requires_grad_()
            out = self._y(z, j, copies)
        return out.detach()[: len(w)].to(torch.float64), Products(z, out, copies)

    @torch.no_grad()
    def step(self, w: Tensor, j: int, jump: int, y: Tensor | None = None) -> Tensor:
        """w at the point j + jump, by one classical Runge-Kutta step; y: its value at (w, j), if known."""
        h, half, end, rate = jump / (2 * self.track.steps), j + jump // 2, j + jump, self.track.rate
        k1 = rate[j] * (self.y(w, j) if y is None else y)
        k2 = rate[half] * self.y(w + h / 2 * k1, half)
        k3 = rate[half] * self.y(w + h / 2 * k2, half)
        k4 = rate[end] * self.y(w + h * k3, end)
        return w + h / 6 * (k1 + 2 * (k2 + k3) + k4)

    def walk(self, w: Tensor, back: bool = False) -> Iterator[tuple[int, Tensor]]:
        """Yield (j, w) at the nodes from data to noise, or back."""
        points = range(0, 2 * self.track.steps + 1, 2)
        jump = -2 if back else 2
        for j in reversed(points) if back else points:
            yield j, w
            if 0 <= j + jump < len(self.track.time):
                w = self.step(w, j, jump)


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


def field_of(model: Model, cond: Mapping[str, Given | Tensor], steps: int, sigma_min: float | None) -> Field:
    """The flow of one batch; of a spectral process that of its coefficients."""
    process: Any = model.process
    if isinstance(process, Spectral):
        return CoefficientField(model, CoefficientTrack.along(process, steps, sigma_min), cond)
    return Field(model, Track.of(process.schedule, steps, data_scale(model), sigma_min), cond)


def quadrature(steps: int, order: int = 6) -> Tensor:
    """Weights (steps + 1,) of int_0^1 f(u) du at equal steps: the trapezoidal rule with Gregory's corrections.

    The corrections c_j at each end solve sum_j c_j j^q = B_{q+1} / (q + 1) - [q = 0], q below `order` (Euler and
    Maclaurin), so that polynomials of that degree are integrated exactly. Source: Gregory 1670; Jordan 1965, sect. 99.
    """
    order = max(1, min(order, (steps + 1) // 2))
    bernoulli = (-0.5, 1 / 12, 0.0, -1 / 120, 0.0, 1 / 252, 0.0, -1 / 240)[:order]
    j = torch.arange(order, dtype=torch.float64)
    ends = torch.linalg.solve(j ** j[:, None], torch.tensor(bernoulli, dtype=torch.float64))
    weights = torch.ones(steps + 1, dtype=torch.float64)
    weights[:order] += ends
    weights[-order:] += ends.flip(0)
    return weights / steps
