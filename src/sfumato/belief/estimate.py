"""E[x | z] of real numbers and everything linear in it: the belief under a Gaussian process."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import target
from sfumato.belief.protocol import broadcast, parts
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.schedule import Schedule, Time, as_time
from sfumato.state import numbers_like


class Reading(NamedTuple):
    """How to read a prediction at a time: (alpha, sigma), the row of its target and the solution for (x, eps)."""

    alpha: Tensor
    sigma: Tensor
    row: target.Row
    solution: target.Solution


def reading(name: str, schedule: Schedule, t: Time, sigma_data: float = 1.0) -> Reading:
    """The `Reading` of a named target at times t."""
    t = as_time(t)
    alpha, sigma = schedule(t)
    row = target.row(name, schedule, t, sigma_data)
    return Reading(alpha, sigma, row, target.solve(row, alpha, sigma))


FAINT, FURTHEST = 10.0, 1.25  # in standard deviations of the data


def within(x: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float | Tensor) -> Tensor:
    """(m / r)^2 x for samples whose root mean square r exceeds m = FURTHEST sigma_data where the signal is faint,
    sigma > FAINT alpha sigma_data.

    A target that is pure noise there (eps, score) gives x only after division by alpha, which turns a network error of
    0.05 into 8 standard deviations at the start of DDPM sampling. Such an x is mostly error, as E[x | z] varies no more
    than x does: m^2 / r^2 is at least the share of its square that can be signal, the factor of Wiener's filter.
    """
    most = FURTHEST * sigma_data
    rms = x.flatten(1).square().mean(1).sqrt()
    faint = (sigma > FAINT * sigma_data * alpha).to(rms.device)
    shrink = (most / torch.where(faint, rms, most).clamp_min(most)).square()
    return broadcast(shrink, x) * x


class Estimate:
    """The belief (x, eps) about a state z = alpha x + sigma eps at time t.

    Shapes: z (B, ...); t a number or (B,); every property but `t alpha sigma logsnr` has the shape of z. Where elements
    have a schedule each, alpha, sigma and logsnr have one number per element, (1, ...) or (B, ...).
    `y` is the model's prediction of the target `named`, or of the one with this `row`; x and eps are each computed from
    it directly when first used, so that nothing cancels. `known` is a cached `Reading` for this time.
    `variance` is called on first use, if the model can compute it. `variance_share`, if the model learned it, is v of a
    step's variance exp(v log beta + (1 - v) log beta_tilde), like z (2102.09672, Eq. 15).
    `carried`, (B, ...), is what the network has for its next call in a walk, such as the latents of a `nets.RIN`.
    `indirect`: y carries no information on x in pure noise, so an x beyond the data is shrunk there (`within`);
    eps and the score stay the model's own, so z is not alpha x + sigma eps where x was changed.
    """

    def __init__(
        self,
        z: Tensor,
        t: Time,
        schedule: Schedule,
        y: Tensor | None = None,
        row: target.Row | None = None,
        x: Tensor | None = None,
        eps: Tensor | None = None,
        variance: Callable[[], Tensor | None] | None = None,
        sigma_data: float | Tensor = 1.0,
        known: Reading | None = None,
        variance_share: Tensor | None = None,
        named: str | None = None,
        indirect: bool = False,
        carried: Tensor | None = None,
    ) -> None:
        self.carried = carried
        self.variance_share, self._named, self._indirect = variance_share, named, indirect
        self.z, self.schedule, self.sigma_data = z, schedule, sigma_data
        self._t, self._variance, self._y = t, variance, y
        if y is None and x is None and eps is None:
            raise SfumatoError("An Estimate needs a prediction: y with its row, x, or eps.")
        if known is not None:
            self.__dict__.update(_level=known[:2], _row=known.row, _solution=known.solution)
        elif row is not None:
            self.__dict__["_row"] = row
        if x is not None:
            self.__dict__["x"] = x
        if eps is not None:
            self.__dict__["eps"] = eps

    # Everything that costs tensor operations is computed on first use: many solvers need only x.

    @cached_property
    def t(self) -> Tensor:
        """The time, float64."""
        return as_time(self._t)

    @cached_property
    def _level(self) -> tuple[Tensor, Tensor]:
        return self.schedule(self.t)

    @property
    def alpha(self) -> Tensor:
        return self._level[0]

    @property
    def sigma(self) -> Tensor:
        return self._level[1]

    @cached_property
    def _row(self) -> target.Row:
        name = self._named if self._named is not None else "x" if "x" in self.__dict__ else "eps"
        return target.row(name, self.schedule, self.t, self.sigma_data)

    @cached_property
    def _prediction(self) -> Tensor:
        prediction = self._y if self._y is not None else self.__dict__.get("x", self.__dict__.get("eps"))
        assert prediction is not None
        return prediction

    @cached_property
    def _solution(self) -> target.Solution:
        return target.solve(self._row, self.alpha, self.sigma)

    def _combine(self, a: Tensor, first: Tensor, b: Tensor, second: Tensor) -> Tensor:
        return broadcast(a, first) * first + broadcast(b, second) * second

    @cached_property
    def x(self) -> Tensor:
        """E[x | z]."""
        x = self._combine(self._solution.xz, self.z, self._solution.xy, self._prediction)
        return within(x, self.alpha, self.sigma, self.sigma_data) if self._indirect else x

    @cached_property
    def eps(self) -> Tensor:
        """E[eps | z]; 0 at sigma = 0, where z has no noise."""
        return self._combine(self._solution.ez, self.z, self._solution.ey, self._prediction)

    @cached_property
    def variance(self) -> Tensor | None:
        """Var[x | z] of each element, or None if the model cannot compute it."""
        return None if self._variance is None else self._variance()

    @property
    def mean(self) -> Tensor:
        """E[x | z]."""
        return self.x

    def target(self, name: str) -> Tensor:
        """The belief as any target, a x + b eps; for the model's own target its prediction, unchanged."""
        if name == self._named and self._y is not None:
            return self._y
        a, b = target.row(name, self.schedule, self.t, self.sigma_data)
        # sigma' is infinite at t = 0 of a VP schedule, where eps = 0: their product is 0 in the mean
        return self._combine(a, self.x, torch.where(self.sigma == 0, 0.0, b), self.eps)

    @property
    def score(self) -> Tensor:
        """grad_z log p_t(z) = -E[eps | z] / sigma (Tweedie's formula)."""
        if bool((self.sigma == 0).any()):
            raise SfumatoError("The score at sigma = 0 is that of the data, which x and eps do not determine.")
        return -self.eps / broadcast(self.sigma, self.eps)

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma x (2202.00512)."""
        return self.target("v")

    @property
    def velocity(self) -> Tensor:
        """dz/dt of the probability-flow ODE: alpha' x + sigma' eps."""
        return self.target("velocity")

    @property
    def F(self) -> Tensor:
        """EDM's raw network output (2206.00364, Eq. 7)."""
        return self.target("F")

    @property
    def logsnr(self) -> Tensor:
        return self.schedule.logsnr(self.t)

    def lerp(self, other: Estimate, weight: float | Tensor) -> Estimate:
        """self + weight (other - self) about the same state, in x and eps and so in every target.

        A learned step variance (as in the code of 2105.05233) and what is carried are taken from `other`.
        """
        w = broadcast(weight, self.z) if isinstance(weight, Tensor) else weight
        x = self.x + w * (other.x - self.x)
        eps = self.eps + w * (other.eps - self.eps)
        return Estimate(
            self.z, self._t, self.schedule, x=x, eps=eps, sigma_data=self.sigma_data,
            variance_share=other.variance_share, carried=other.carried,
        )  # fmt: skip

    def moved(self, x: Tensor) -> Estimate:
        """The belief with another x about the same state: eps = (z - alpha x) / sigma where x differs from its own."""
        sigma = broadcast(torch.where(self.sigma == 0, torch.inf, self.sigma), self.z)
        eps = torch.where(x == self.x, self.eps, (self.z - broadcast(self.alpha, self.z) * x) / sigma)
        return Estimate(
            self.z, self._t, self.schedule, x=x, eps=eps, sigma_data=self.sigma_data,
            variance_share=self.variance_share, carried=self.carried,
        )  # fmt: skip

    def nats(self, x: Tensor) -> Tensor:
        """-log N(x; E[x|z], 1 / (alpha^2 / sigma^2 + 1 / sigma_data^2)), float64 (B,)."""
        if bool((self.sigma == 0).any()):
            raise SfumatoError("At sigma = 0 the state is the data itself: p(x | z) has no density.")
        precision = (self.alpha / self.sigma) ** 2 + self.sigma_data**-2
        square = (x.double() - self.x.double()).square() * broadcast(precision, x.double())
        each = 0.5 * (square - broadcast(precision.log(), square) + math.log(2 * math.pi))
        return each.flatten(1).sum(1)

    def rows(self, index: Tensor | slice) -> Estimate:
        """The belief about some samples of the batch."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        def level(value: Tensor) -> Tensor:
            shared = value.ndim == 0 or value.ndim == self.z.ndim and len(value) == 1
            return value if shared else value[index]

        made = Estimate(
            self.z[index], self._t if isinstance(self._t, float | int) else level(self.t), self.schedule, cut(self._y),
            x=cut(self.__dict__.get("x")), eps=cut(self.__dict__.get("eps")), sigma_data=self.sigma_data,
            variance=None if self._variance is None else lambda: cut(self.variance),
            variance_share=cut(self.variance_share), named=self._named, indirect=self._indirect,
            carried=cut(self.carried),
        )  # fmt: skip
        if "_row" in self.__dict__:
            made.__dict__["_row"] = target.Row(*map(level, self._row))
        if "_solution" in self.__dict__:
            made.__dict__["_solution"] = target.Solution(*map(level, self._solution))
        if "_level" in self.__dict__:
            made.__dict__["_level"] = tuple(map(level, self._level))
        return made

    def under(self, process: Any, z: Tensor, t: Tensor) -> Estimate:
        """The same belief, about the state z at time t of another Gaussian process with the same logsnr."""
        alpha, sigma = process.schedule(t)
        matched = torch.isclose(alpha * self.sigma, sigma * self.alpha, rtol=1e-9, atol=1e-12)
        eps = self.eps if bool(matched.all()) else None
        return Estimate(
            z, t, process.schedule, x=self.x, eps=eps, sigma_data=self.sigma_data, variance_share=self.variance_share,
            carried=self.carried,
        )  # fmt: skip

    def stopped(self) -> Estimate:
        """The belief with x and eps detached; gradients still flow through `variance_share`."""
        y = None if self._y is None else self._y.detach()
        x, eps = (None, None) if y is not None else (self.x.detach(), self.eps.detach())
        return Estimate(
            self.z, self._t, self.schedule, y, x=x, eps=eps, sigma_data=self.sigma_data,
            variance_share=self.variance_share, named=self._named, indirect=self._indirect, carried=self.carried,
        )  # fmt: skip

    def chunk(self, n: int) -> tuple[Estimate, ...]:
        """The beliefs about n equal parts of the batch."""
        _ = self.x, self.eps  # compute once for all parts
        return tuple(self.rows(part) for part in parts(len(self.z), n))

    def to(self, s: Time, eta: float = 0.0, noise: Noise | Tensor | None = None) -> Tensor:
        """z_s = alpha_s x + sqrt(sigma_s^2 - std^2) eps + std n, std = eta times the posterior's (2010.02502, Eq. 12).

        s = 0 gives the clean signal x. noise: like z or a `Noise` source, needed for eta > 0.
        """
        mean, std = self.step(s, eta)
        if not eta:
            return mean
        if noise is None:
            raise SfumatoError(f"A step with eta = {eta:g} needs the argument noise.")
        return mean + broadcast(std, self.z) * numbers_like(noise, self.z)

    def step(self, s: Time, eta: float = 0.0) -> tuple[Tensor, Tensor]:
        """(mean, std) of z_s given z_t and the belief, s <= t; s = 0 gives the clean signal."""
        s = as_time(s)
        alpha, sigma = self.schedule(s)
        clean = (s == 0).reshape((*s.shape, *[1] * (alpha.ndim - s.ndim)))
        step = ancestral(self.alpha, self.sigma, torch.where(clean, 1.0, alpha), torch.where(clean, 0.0, sigma), eta)
        return broadcast(step.z, self.z) * self.z + broadcast(step.x, self.z) * self.x, step.std


class Transition(NamedTuple):
    """z_s = z * z_t + x * x_hat + std * n."""

    z: Tensor
    x: Tensor
    std: Tensor


def ancestral(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor, eta: float = 1.0) -> Transition:
    """The step t -> s of the DDIM family (2010.02502, Eq. 16) as coefficients of z_t, x and noise."""
    ratio = torch.where(alpha_s == 0, sigma_t / sigma_s, alpha_t / alpha_s)  # noise alone at both is kept
    variance = (sigma_t**2 - ratio**2 * sigma_s**2).clamp_min(0.0) * (sigma_s / sigma_t) ** 2
    std = eta * variance.sqrt()
    if bool((std > sigma_s).any()):
        raise SfumatoError(f"eta = {eta:g} adds more noise than the end of the step has: use a smaller eta.")
    kept = torch.sqrt(sigma_s**2 - std**2) / sigma_t  # times z - alpha_t x = sigma_t eps
    return Transition(kept, alpha_s - kept * alpha_t, std)
