"""The continuous-time variational bound: what a sample costs at each noise level, whatever the schedule between.

    -log p(x) <= KL(q(z_1|x) || N(0, sigma_1^2)) + 1/2 int E|eps - E[eps|z]|^2 dlogsnr + E[-log p(x|z_0)]

The integral runs over logsnr between the ends alone, so that schedules with equal ends have equal bounds. z_0 is x with
the least noise, p(x|z_0) the discretised or the normal law around E[x|z_0] with the variance sigma^2 / (alpha^2 +
sigma^2 / s^2), s the size of the data.

Levels: of each replicate one in each of K strata of equal mass under p(logsnr) ~ sigmoid(logsnr + 2 log s), under which
the integrand of N(0, s^2) is constant, all shifted by one uniform number, so that logsnr may start at -inf. The error
of the linear denoiser of N(0, s^2) for the same noise, whose mean is known, is a control variate; its weight at a level
is fitted to the other replicates near that level, and so biases nothing.
Source: Kingma et al. 2021 (2107.00630), Eq. 11-15, App. I; the control is of the kind of Owen 2013, Ch. 8.9.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import broadcast
from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError
from sfumato.likelihood.measured import Measured, pooled
from sfumato.model import Model, compute_dtype
from sfumato.objectives.decoder import Cells, cell_nats, density_nats
from sfumato.objectives.prior import prior_kl
from sfumato.probability_flow import data_scale
from sfumato.schedule import NODE_LIMIT, Schedule

_ROWS = 512  # states that one call of the model sees, where samples are few
_SHIFT = (1 << 23) - 1  # the stream of the strata's shifts under the role of the bound
_DATA = 1 << 22  # the first stream of the noise of the last term
_WINDOW = 2  # strata on each side that the weight of the control is fitted to
_SHARE = 8  # levels for each draw of the last term


class Span(NamedTuple):
    """The logsnr of both ends, and the size of the data."""

    low: float
    high: float
    scale: float

    @classmethod
    def of(cls, schedule: Schedule, scale: float, sigma_min: float | None = None) -> Span:
        """From sigma/alpha = sigma_min (exp(-6) of the data's size), or the schedule's own end, to t = 1."""
        low, own = schedule.logsnr_range
        least = scale * math.exp(-NODE_LIMIT / 2) if sigma_min is None else float(sigma_min)
        high = min(own, -2 * math.log(least)) if least > 0 else math.inf
        if not low < high < math.inf:
            end = math.exp(-low / 2) if low > -1400 else math.inf
            raise SfumatoError(f"sigma_min must lie above 0 and below sigma/alpha = {end:g} at t = 1, got {least:g}.")
        return cls(low, high, scale)

    @property
    def _ends(self) -> tuple[float, float]:
        shift = 2 * math.log(self.scale)
        low, high = (float(torch.nn.functional.softplus(_number(v + shift))) for v in (self.low, self.high))
        return low, high

    def quantile(self, u: Tensor) -> Tensor:
        """logsnr rising from low at u = 0 to high at u = 1."""
        low, high = self._ends
        mass = low + u * (high - low)
        return (mass + torch.log(-torch.expm1(-mass)) - 2 * math.log(self.scale)).clamp(self.low, self.high)

    def density(self, logsnr: Tensor) -> Tensor:
        low, high = self._ends
        return torch.sigmoid(logsnr + 2 * math.log(self.scale)) / (high - low)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def elbo(
    model: Model,
    x: Tensor,
    index: Tensor,
    cond: Conditions,
    steps: int = 64,
    probes: int = 8,
    seed: int = 0,
    sigma_min: float | None = None,
    cells: Cells | None = None,
) -> Measured:
    """The bound for normalised x (B, *shape), float64, of the numbers `index`: `probes` replicates of `steps` levels.

    cells: those of whole numbers, for the probability of x; None for a density in normalised units.
    """
    if steps < 1 or probes < 2:
        raise SfumatoError(f"The bound needs at least 1 level and 2 replicates, got steps={steps}, probes={probes}.")
    span = Span.of(model.process.schedule, data_scale(model), sigma_min)
    draws = Draws(model, x, index, cond, seed, span)
    by_level = draws.diffusion(steps, probes)
    last = draws.reconstruction(max(1, steps // _SHARE), probes, cells)
    prior = prior_kl(model.process, x)
    value, stderr, third = pooled(-(prior[:, None] + by_level.sum(2) + last))
    mean = by_level.mean(1)
    edges = span.quantile(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    return Measured(
        value.cpu(), stderr.cpu(), third.cpu(), None, None, None, f"elbo, {probes} replicates", x[0].numel(), probes,
        steps, bound=True, prior=prior.cpu(), diffusion=mean.sum(1).cpu(), reconstruction=last.mean(1).cpu(),
        by_level=mean.cpu(), levels=edges,
    )  # fmt: skip


class Draws:
    """The model's errors on noised copies of one batch, with those of the linear denoiser beside them."""

    def __init__(self, model: Model, x: Tensor, index: Tensor, cond: Conditions, seed: int, span: Span) -> None:
        self.model, self.x, self.index, self.cond, self.seed, self.span = model, x, index, cond, seed, span
        self.dtype = compute_dtype(model)

    def diffusion(self, steps: int, replicates: int) -> Tensor:
        """1/2 |eps - E[eps|z]|^2 / p(logsnr) / K of each level, (B, R, K): sums over K have the integral as mean."""
        shift = noise.uniform(self.seed, self.index, (replicates, 1), noise.BOUND, _SHIFT, dtype=torch.float64)
        place = (shift.to(self.x.device) + torch.arange(steps, device=self.x.device)) / steps
        logsnr = self.span.quantile(place)
        flat = logsnr.flatten(1)
        errors = [self._errors(flat[:, some], some) for some in self._groups(flat.shape[1])]
        # of each stratum: its part of the integral, by the model's error and by the linear denoiser's
        scale = 0.5 / self.span.density(logsnr) / steps
        error, linear = (torch.cat(v, 1).reshape(logsnr.shape) * scale for v in zip(*errors, strict=True))
        edges = self.span.quantile(torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=self.x.device))
        mean = self._linear_integral(edges).diff()[:, None].expand_as(error)
        return controlled(error, linear - mean, mean, _WINDOW)

    def _linear_integral(self, edges: Tensor) -> Tensor:
        """1/2 int E|eps - E[eps|z]|^2 dlogsnr of the linear denoiser from -inf to each edge, (B, edges)."""
        square, lam = self.x.flatten(1).square().sum(1)[:, None], edges + 2 * math.log(self.span.scale)
        part = torch.sigmoid(lam)
        noise_part = self.x[0].numel() * (torch.nn.functional.softplus(lam) - part)
        return 0.5 * (noise_part + square * part / self.span.scale**2)

    def reconstruction(self, draws: int, replicates: int, cells: Cells | None) -> Tensor:
        """-log p(x|z_0), a mean over some draws for each replicate, (B, R)."""
        found = [self._data_nats(some, cells) for some in self._groups(draws * replicates)]
        nats, control = (torch.cat(v, 1).reshape(len(self.x), replicates, draws) for v in zip(*found, strict=True))
        return controlled(nats, control, torch.ones_like(nats), draws).mean(2)

    def _groups(self, count: int) -> list[Tensor]:
        """The numbers of the draws that go into one call together."""
        return list(torch.arange(count).split(max(1, _ROWS // len(self.x))))

    def _noised(self, logsnr: Tensor, streams: list[int]) -> tuple[Any, Tensor, Tensor]:
        """The beliefs about copies (B g, *shape), with x and the noise: logsnr (B, g), a stream of noise for each."""
        shape, copies = tuple(self.x.shape[1:]), len(streams)
        eps = torch.stack(
            [noise.normal(self.seed, self.index, shape, noise.BOUND, k, self.x.device, torch.float64) for k in streams],
            1,
        ).flatten(0, 1)
        x = self.x.repeat_interleave(copies, 0)
        t = self.model.process.schedule.time(logsnr.flatten())
        z = self.model.process.corrupt(x, t, eps).to(self.dtype)
        return self.model(z, t, **self.cond.copies(copies)), x, eps

    @torch.no_grad()
    def _errors(self, logsnr: Tensor, streams: Tensor) -> tuple[Tensor, Tensor]:
        """|eps - E[eps|z]|^2 of the model and of the linear denoiser, (B, g) each."""
        belief, x, eps = self._noised(logsnr, streams.tolist())
        lam = logsnr.flatten()
        by_eps = (eps - belief.eps.to(torch.float64)).flatten(1).square().sum(1)
        by_x = (x - belief.x.to(torch.float64)).flatten(1).square().sum(1)
        error = torch.where(lam > 0, by_eps, lam.clamp_max(0).exp() * by_x)  # each where it is precise
        return error.reshape(logsnr.shape), self._linear(lam, x, eps).reshape(logsnr.shape)

    def _linear(self, lam: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """|a eps - b x|^2, a = sigmoid(logsnr + 2 log s), b = a sigma / (alpha s^2)."""
        a = torch.sigmoid(lam + 2 * math.log(self.span.scale))
        b = a * torch.exp(-lam / 2) / self.span.scale**2
        return (broadcast(a, x) * eps - broadcast(b, x) * x).flatten(1).square().sum(1)

    @torch.no_grad()
    def _data_nats(self, some: Tensor, cells: Cells | None) -> tuple[Tensor, Tensor]:
        """-log p(x|z_0) of some draws, and the linear denoiser's error less its mean, (B, g) each."""
        logsnr = torch.full((len(self.x), len(some)), self.span.high, dtype=torch.float64, device=self.x.device)
        belief, x, eps = self._noised(logsnr, [_DATA + k for k in some.tolist()])
        lam = logsnr.flatten()
        log_std = broadcast(-0.5 * torch.log(lam.exp() + self.span.scale**-2), x).expand_as(x)
        if cells is not None:
            nats = cell_nats(x, belief.x.to(torch.float64), log_std, cells)
        else:  # E[x|z] - x = sigma / alpha (eps - E[eps|z])
            by_eps = broadcast(torch.exp(-lam / 2), x) * (belief.eps.to(torch.float64) - eps)
            error = by_eps if self.span.high > 0 else x - belief.x.to(torch.float64)
            nats = density_nats(error, log_std)
        a, b = torch.sigmoid(lam + 2 * math.log(self.span.scale)), x.flatten(1).square().sum(1)
        known = a**2 * x[0].numel() + a**2 * torch.exp(-lam) / self.span.scale**4 * b
        control = self._linear(lam, x, eps) - known
        return nats.reshape(logsnr.shape), control.reshape(logsnr.shape)


def controlled(value: Tensor, control: Tensor, mean: Tensor, window: int) -> Tensor:
    """value - c control, (B, R, K), control of mean 0, c of the least squares value ~ a mean + c control.

    They are taken over the other replicates within `window` places, so that c is independent of what it multiplies.
    """

    def others(v: Tensor) -> Tensor:
        rest = v.sum(1, keepdim=True) - v
        reach = min(window, v.shape[2] - 1)
        padded = torch.nn.functional.pad(rest, (reach + 1, reach)).cumsum(2)
        return padded[..., 2 * reach + 1 :] - padded[..., : -2 * reach - 1]

    square, cross, own = others(control.square()), others(control * mean), others(mean.square())
    spread = square * own - cross.square()
    slope = (others(value * control) * own - others(value * mean) * cross) / spread.clamp_min(1e-300)
    return value - torch.where(spread > 1e-9 * square * own, slope, 0.0) * control
