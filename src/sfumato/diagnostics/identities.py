"""Identities that hold for E[x|z] and for no other function, each as numbers of noised samples whose mean is 0.

With D = E[x|z], m the mean of the data, s less noisy than t, J = (sigma^2 / alpha) dD/dz = Cov(x|z) and
r = sigma^2 / alpha^2:

    slope        E[(x - D).(D - m)] = 0              orthogonality  E[(x - D).g(z)] = 0 for every field g
    martingale   E[(D_s - D_t).(D_t - m)] = 0        gradient       the same for g = grad psi
    tweedie      E|x - D|^2 = E tr J                 calibration    the same, weighted by the model's own tr J
    curl         J = J^T                             negative       v^T J v >= 0
    stein        E[S score.w + d] = 0                continuity     the ODE keeps E|z_t|^2 that of noised data
    generator    -dD/dr + score.grad D + lap D / 2 = 0 at z / alpha (score-FPE residual times r for a conservative D)
    reverse-martingale  E[D_s|z_t] = D_t along the reverse SDE, by two independent walks;  semigroup  X_ms X_tm = X_ts

Sources: Efron 2011; Daras et al. 2023 (2302.09057); Lai et al. 2023 (2210.04296, and 2306.00367 for their equivalence).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Estimate, broadcast
from sfumato.diagnostics import fields
from sfumato.diagnostics.draws import Draws, Trivial
from sfumato.noise import Noise
from sfumato.objectives import flow_maps, residuals
from sfumato.process.angles import angle, moved, time
from sfumato.state import numbers_like

_APART = 1.0  # logsnr between the two levels of an identity
_STEPS = 4  # of the ODE between them
_OWN = 1000  # the stream of the less noisy state, apart from those of signs and walks
_ROUNDING = 1e-6  # relative size of what counts as zero where a number may have no random error


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a . b of each sample, float64 (B,)."""
    return (a.double() * b.double()).flatten(1).sum(1)


class Believed:
    """States z, and what a model believes of them; guess: the trivial predictor, with m and the data's variance."""

    def __init__(self, belief: Callable[[], Estimate], z: Tensor, t: Tensor, guess: Trivial) -> None:
        self._belief, self.z, self.t, self.guess = belief, z, t, guess
        alpha, sigma = guess.process.schedule(t)
        self.alpha, self.sigma = (broadcast(each, z) for each in (alpha, sigma))

    @cached_property
    def belief(self) -> Estimate:
        return self._belief()

    @cached_property
    def centre(self) -> Tensor | float:
        """m."""
        m = self.guess.mean
        return m.to(self.z) if isinstance(m, Tensor) else m

    @cached_property
    def moved(self) -> Tensor:
        """D - m."""
        return self.belief.x - self.centre

    @cached_property
    def scale(self) -> Tensor:
        """S, the standard deviation of a number of z."""
        return (self.alpha**2 * self.guess.variance + self.sigma**2).sqrt()

    @cached_property
    def unit(self) -> Tensor:
        """w = (z - alpha m) / S, of variance 1."""
        return (self.z - self.alpha * self.centre) / self.scale


class Seen(Believed):
    """Some draws as a model sees them, each quantity computed when it is first used."""

    def __init__(self, model: Any, guess: Trivial, draws: Draws, part: Tensor) -> None:
        self.x, self.eps, z, t, self.cond = draws.take(part)
        super().__init__(lambda: self.believe(z, t), z, t, guess)
        self.model, self.process, self.size = model, model.process, z[0].numel()
        self.source = Noise(draws.seed, draws.first + part, noise.PROBE, _OWN)

    def believe(self, z: Tensor, t: Tensor) -> Estimate:
        """The belief about z (B, ...), or about twice as many states, under the conditions of the draws."""
        found: Estimate = self.model(z, t, **(self.cond if len(z) == len(self.x) else self.cond.repeat(2)))
        return found

    def nearer(self, t: Tensor, by: float) -> Tensor:
        """The times at which logsnr is larger by this much, as far as the schedule goes."""
        return self.process.schedule.time(self.process.schedule.logsnr(t) + by)

    @cached_property
    def mean(self) -> Tensor:
        """D, like z."""
        return self.belief.x

    @cached_property
    def residual(self) -> Tensor:
        """x - D."""
        return self.x - self.mean

    @cached_property
    def error(self) -> Tensor:
        """|x - D|^2, float64 (B,)."""
        return dot(self.residual, self.residual)

    @cached_property
    def cleaner(self) -> tuple[Tensor, Tensor]:
        """(z_s, s) of the same sample with less noise, drawn given z and x."""
        s = self.nearer(self.t, _APART)
        step = self.process.posterior(s, self.t)
        z, x, std = (broadcast(c, self.z) for c in step)
        return z * self.z + x * self.x + std * numbers_like(self.source, self.z), s

    @cached_property
    def products(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(u, J^T u) and (v, J^T v) for two random signs."""
        seed, index, shape, role, like = self.source.seed, self.source.index, self.z.shape[1:], noise.PROBE, self.z
        signs = torch.cat([noise.rademacher(seed, index, shape, role, k, like.device, like.dtype) for k in (0, 1)])
        with torch.enable_grad():
            z = self.z.repeat(2, *[1] * (self.z.ndim - 1)).requires_grad_()
            (grad,) = torch.autograd.grad(self.believe(z, self.t.repeat(2)).x, z, signs)
        grad = grad * (self.sigma**2 / self.alpha).repeat(2, *[1] * (self.z.ndim - 1))
        (u, v), (ju, jv) = signs.chunk(2), grad.chunk(2)
        return (u, ju), (v, jv)


Pair = tuple[Tensor, Tensor]  # (B,) each: what has the mean 0, and what it is measured by


def slope(seen: Seen) -> Pair:
    return dot(seen.residual, seen.moved), dot(seen.moved, seen.moved)


def martingale(seen: Seen) -> Pair:
    z, s = seen.cleaner
    return dot(seen.believe(z, s).x - seen.mean, seen.moved), dot(seen.moved, seen.moved)


def tweedie(seen: Seen) -> Pair:
    return seen.error - sum(dot(u, ju) for u, ju in seen.products) / 2, seen.error


def calibration(seen: Seen) -> Pair:
    (u, ju), (v, jv) = seen.products
    usual = seen.guess.variance * seen.size * (seen.sigma / seen.scale).square().flatten().double()
    return (seen.error - dot(u, ju)) * (dot(v, jv) - usual), seen.error * usual


def curl(seen: Seen) -> Pair:
    (u, ju), (v, jv) = seen.products
    return (dot(ju, v) - dot(jv, u)).square(), (dot(ju, ju) + dot(jv, jv)) / 2


def negative(seen: Seen) -> Pair:
    below = [dot(u, ju) < -_ROUNDING * (dot(u, u) * dot(ju, ju)).sqrt() for u, ju in seen.products]
    share = torch.stack(below).double().mean(0)
    return share, torch.ones_like(share)


def stein(seen: Seen) -> Pair:
    pull = dot(-seen.scale * seen.belief.score, seen.unit)
    return seen.size - pull, torch.full_like(pull, seen.size)


def continuity(seen: Seen) -> Pair:
    noised, s = seen.cleaner
    alpha, sigma = (broadcast(each, seen.z) for each in seen.process.schedule(s))
    rate = flow_maps.step(seen.model, seen.z, seen.t, s, _STEPS, **seen.cond)
    carried = moved(seen.process, seen.z, seen.t, s, rate)
    a, b = carried - alpha * seen.centre, noised - alpha * seen.centre
    usual = (alpha**2 * seen.guess.variance + sigma**2).flatten().double()
    return (dot(a, a) - dot(b, b)) / usual, torch.full_like(usual, seen.size)


def reverse_martingale(seen: Seen) -> Pair:
    return dot(*residuals.drifts(seen.model, seen.z, seen.t, seen.cond, seen.source)), seen.error


def generator(seen: Seen) -> Pair:
    return dot(*residuals.generated(seen.model, seen.z, seen.t, seen.cond, seen.source)), seen.error


def semigroup(seen: Seen) -> Pair:
    """Of a flow map, from t to the data at once and by way of half the angle."""
    end = torch.zeros_like(seen.t)
    half = time(seen.process, angle(seen.process, seen.t) / 2)
    at_once = seen.model(seen.z, seen.t, until=end, **seen.cond).to(end)
    between = seen.model(seen.z, seen.t, until=half, **seen.cond).to(half)
    apart = seen.model(between, half, until=end, **seen.cond).to(end) - at_once
    return dot(apart, apart), dot(at_once - seen.centre, at_once - seen.centre)


class Identity(NamedTuple):
    """An identity by name: what its violation means, what to do about it, and how it is measured.

    measure: the numbers whose ratio of means is 0; fields (B, K, *shape): those in which the error x - D is sought.
    least: the smallest value that is more than rounding.
    """

    means: str
    action: str
    measure: Callable[[Seen], Pair] | None = None
    fields: Callable[[Believed], Tensor] | None = None
    least: float = 0.0


DEFAULT = {
    "slope": Identity(
        "x_hat lies too near the mean of the data (above 0) or too far from it (below)",
        "multiply x_hat - mean by 1 + slope, as found.corrected(model, 'slope') does, or train these levels more",
        slope, lambda seen: seen.moved[:, None],
    ),
    "orthogonality": Identity(
        "simple functions of z still explain this share of what x_hat leaves unexplained",
        "the network lacks capacity, training or weight at these levels, or hears a wrong level (see the doctor)",
        fields=lambda seen: fields.every(seen.unit, seen.moved / seen.guess.variance**0.5),
    ),
    "gradient": Identity(
        "gradients do so: the part of the error that moves the law of the samples",
        "found.corrected(model) adds what was found to x_hat; train these levels more",
        fields=lambda seen: fields.gradients(seen.unit),
    ),
    "martingale": Identity(
        "x_hat changes with less noise in a direction that was known before",
        "neighbouring levels disagree: train the marked level, or the next cleaner one, more",
        martingale,
    ),
    "tweedie": Identity(
        "the error of x_hat is larger (above 0) or smaller than its Jacobian says",
        "take no error bars from the Jacobian; if the slope is right, the network hears a wrong level (see the doctor)",
        tweedie,
    ),
    "curl": Identity(
        "the Jacobian of x_hat is not symmetric, by this share of its square: the score is no gradient",
        "harmless for samples if all else is 0; energies, likelihoods and compositions need an energy network",
        curl, least=_ROUNDING,
    ),
    "negative": Identity(
        "x_hat falls where z rises, in this share of random directions",
        "no covariance of x can be had from this model at these levels; train them more",
        negative, least=_ROUNDING,
    ),
}  # fmt: skip
REQUESTED = {
    "calibration": Identity(
        "the errors of x_hat are not larger by as much as its Jacobian is",
        "take no error bars from the Jacobian", calibration,
    ),
    "stein": Identity(
        "the score pulls back too little (above 0) or too much for the spread of the noised data",
        "the scale of the score is wrong: compare the slope", stein,
    ),
    "continuity": Identity(
        "the ODE leaves the noised data too wide (above 0) or too narrow",
        "so will samples of the ODE be: compare the slope", continuity,
    ),
    "reverse-martingale": Identity(
        "x_hat drifts along the reverse SDE", "train with loss='consistent-diffusion'", reverse_martingale,
    ),
    "generator": Identity(
        "x_hat does not solve the equation of conditional expectations",
        "train with loss='fp-diffusion'", generator, least=_ROUNDING,
    ),
    "semigroup": Identity(
        "two steps of the flow map differ from one, by this share of the square",
        "train the map longer, or with loss='semigroup'", semigroup, least=_ROUNDING,
    ),
}  # fmt: skip
IDENTITIES = DEFAULT | REQUESTED
