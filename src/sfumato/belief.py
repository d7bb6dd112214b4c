"""What a model believes about the clean signal: E[x | z] and everything that is linear in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato import target
from sfumato.errors import SfumatoError
from sfumato.schedule import Schedule, Time, as_time


def broadcast(coefficient: Tensor, like: Tensor) -> Tensor:
    """A scalar or one number per batch item, shaped and typed to multiply `like` (B, ...)."""
    c = coefficient.to(like.dtype)
    if c.ndim == 0:
        return c
    return c.to(like.device).reshape(-1, *([1] * (like.ndim - 1)))


class Reading(NamedTuple):
    """How a prediction is read at a time: (alpha, sigma), the row of the prediction and its solution."""

    alpha: Tensor
    sigma: Tensor
    row: target.Row
    solution: target.Solution


def reading(name: str, schedule: Schedule, t: Time, sigma_data: float = 1.0) -> Reading:
    """That of a named target at times t."""
    t = as_time(t)
    alpha, sigma = schedule(t)
    row = target.row(name, schedule, t, sigma_data)
    return Reading(alpha, sigma, row, target.solve(row, alpha, sigma))


class Estimate:
    """The belief (x, eps) about a state z = alpha x + sigma eps at time t.

    Shapes: z (B, ...); t a number or (B,); every property but `t alpha sigma logsnr` has the shape of z.
    `row` and `y` are what the model predicted (`target.row`); both signals are read from it when asked for,
    so that nothing is lost to cancellation. `known` is what a model has read at this time before.
    `variance`, where the model knows it, is called when it is first asked for. `variance_share`, where the model has
    learned it, is v of a step's variance exp(v log beta + (1 - v) log beta_tilde), like z (2102.09672, Eq. 15).
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
        sigma_data: float = 1.0,
        known: Reading | None = None,
        variance_share: Tensor | None = None,
    ) -> None:
        self.variance_share = variance_share
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

    # What costs tensor operations is made when it is first asked for: a solver asks for x alone.

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
        return target.row("x" if "x" in self.__dict__ else "eps", self.schedule, self.t)

    @cached_property
    def _prediction(self) -> Tensor:
        given = self._y if self._y is not None else self.__dict__.get("x", self.__dict__.get("eps"))
        assert given is not None
        return given

    @cached_property
    def _solution(self) -> target.Solution:
        return target.solve(self._row, self.alpha, self.sigma)

    def _combine(self, a: Tensor, first: Tensor, b: Tensor, second: Tensor) -> Tensor:
        return broadcast(a, first) * first + broadcast(b, second) * second

    @cached_property
    def x(self) -> Tensor:
        """E[x | z]."""
        return self._combine(self._solution.xz, self.z, self._solution.xy, self._prediction)

    @cached_property
    def eps(self) -> Tensor:
        """E[eps | z]; 0 at sigma = 0, where the state says nothing of the noise."""
        return self._combine(self._solution.ez, self.z, self._solution.ey, self._prediction)

    @cached_property
    def variance(self) -> Tensor | None:
        """Var[x | z] of each element, or None where the model does not know it."""
        return None if self._variance is None else self._variance()

    def target(self, name: str) -> Tensor:
        """The belief in the terms of any row: a x + b eps."""
        a, b = target.row(name, self.schedule, self.t, self.sigma_data)
        # sigma' is infinite at t = 0 of a VP schedule, where eps = 0: their product is 0 in the mean
        return self._combine(a, self.x, torch.where(self.sigma == 0, 0.0, b), self.eps)

    @property
    def score(self) -> Tensor:
        """grad_z log p_t(z) = -E[eps | z] / sigma (Tweedie's formula)."""
        if bool((self.sigma == 0).any()):
            raise SfumatoError("The score at sigma = 0 is that of the data itself, which x and eps do not determine.")
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
        """self + weight (other - self), about the same state: linear in every row at once.

        What was learned of a step's variance is `other`'s, as guided models have it (2105.05233's code).
        """
        w = broadcast(weight, self.z) if isinstance(weight, Tensor) else weight
        x = self.x + w * (other.x - self.x)
        eps = self.eps + w * (other.eps - self.eps)
        return Estimate(
            self.z, self.t, self.schedule, x=x, eps=eps, sigma_data=self.sigma_data, variance_share=other.variance_share
        )


class Logits:
    """The belief p(x_i | z) about each of the symbols behind a state z (B, *shape) at time t.

    logits: (B, *shape, K), log-probabilities up to a constant; -inf for what is impossible.
    """

    def __init__(self, logits: Tensor, z: Tensor, t: Time) -> None:
        self.logits, self.z, self.t = logits, z, as_time(t)

    @cached_property
    def log_prob(self) -> Tensor:
        """log p(x_i = k | z), (B, *shape, K)."""
        return self.logits.log_softmax(-1)

    @cached_property
    def prob(self) -> Tensor:
        """p(x_i = k | z), (B, *shape, K)."""
        return self.logits.softmax(-1)
