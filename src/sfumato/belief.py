"""What a model believes about the clean signal, given a noisy state.

`Estimate` is E[x | z] of real numbers and everything that is linear in it, `Logits` the law p(x_i | z) of symbols,
`Beliefs` one of these for each part of a state. All answer the same questions: `Belief`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self, final, runtime_checkable

import torch
from torch import Tensor

from sfumato import target
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.schedule import Schedule, Time, as_time
from sfumato.state import State, numbers_like


@runtime_checkable
class Belief(Protocol):
    """What every model returns about its state z at time t (a number or (B,))."""

    @property
    def z(self) -> State: ...

    @property
    def t(self) -> Tensor: ...

    @property
    def mean(self) -> State:
        """E[x | z]; of symbols that of the one-hot code, (B, *shape, K)."""

    def to(self, s: Time, eta: float = 0.0, noise: Noise | State | None = None) -> State:
        """A draw of z_s, s <= t, given z_t = z and the belief; eta 0 with as little noise as possible, 1 with that of
        the reverse Markov chain. noise: standard normal numbers like z, or a source of them."""

    def lerp(self, other: Self, weight: float | Tensor) -> Self:
        """self + weight (other - self) about the same state: guidance."""

    def nats(self, x: State) -> Tensor:
        """-log p(x | z), float64 (B,), each entry by itself: what the last step of a bound costs."""

    def rows(self, index: Tensor | slice) -> Self:
        """The belief about some rows."""

    def chunk(self, n: int) -> tuple[Self, ...]:
        """The beliefs about n equal parts of the batch."""


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


FAINT, FURTHEST = 10.0, 3.0  # in standard deviations of the data


def within(x: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """x of samples that are faint in their noise, sigma > FAINT alpha sigma_data, drawn in to a root mean square of at
    most FURTHEST sigma_data, where data lie.

    A target that is all noise there (eps, score) tells x through a division by alpha, which makes of a network's error
    of 0.05 one of 8 standard deviations where DDPM starts.
    """
    most = FURTHEST * sigma_data
    size = x.flatten(1).square().mean(1).sqrt()
    share = most / torch.where((sigma > FAINT * sigma_data * alpha).to(size.device), size, most).clamp_min(most)
    return broadcast(share, x) * x


class Estimate:
    """The belief (x, eps) about a state z = alpha x + sigma eps at time t.

    Shapes: z (B, ...); t a number or (B,); every property but `t alpha sigma logsnr` has the shape of z.
    `y` is what the model predicted, in the terms of `row` or of the target `named`; both signals are read from it when
    asked for, so that nothing is lost to cancellation. `known` is what a model has read at this time before.
    `variance`, where the model knows it, is called when it is first asked for. `variance_share`, where the model has
    learned it, is v of a step's variance exp(v log beta + (1 - v) log beta_tilde), like z (2102.09672, Eq. 15).
    `indirect`: y says nothing of x in pure noise, so that x is kept `within` the data there.
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
        named: str | None = None,
        indirect: bool = False,
    ) -> None:
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
        own = self._named if self._named is not None else "x" if "x" in self.__dict__ else "eps"
        return target.row(own, self.schedule, self.t, self.sigma_data)

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
        x = self._combine(self._solution.xz, self.z, self._solution.xy, self._prediction)
        return within(x, self.alpha, self.sigma, self.sigma_data) if self._indirect else x

    @cached_property
    def eps(self) -> Tensor:
        """E[eps | z]; 0 at sigma = 0, where the state says nothing of the noise."""
        eps = self._combine(self._solution.ez, self.z, self._solution.ey, self._prediction)
        if not self._indirect:
            return eps
        faint = self.sigma > FAINT * self.sigma_data * self.alpha
        if not bool(faint.any()):
            return eps
        rest = (self.z - broadcast(self.alpha, self.z) * self.x) / broadcast(self.sigma, self.z)  # z stays their sum
        return torch.where(broadcast(faint.double(), eps) > 0, rest, eps)

    @cached_property
    def variance(self) -> Tensor | None:
        """Var[x | z] of each element, or None where the model does not know it."""
        return None if self._variance is None else self._variance()

    @property
    def mean(self) -> Tensor:
        """E[x | z]."""
        return self.x

    def target(self, name: str) -> Tensor:
        """The belief in the terms of any row: a x + b eps, or what the model said where it spoke in these terms."""
        if name == self._named and self._y is not None:
            return self._y
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
            self.z, self._t, self.schedule, x=x, eps=eps, sigma_data=self.sigma_data,
            variance_share=other.variance_share,
        )  # fmt: skip

    def nats(self, x: Tensor) -> Tensor:
        """-log N(x; E[x|z], 1 / (alpha^2 / sigma^2 + 1 / sigma_data^2)), float64 (B,)."""
        if bool((self.sigma == 0).any()):
            raise SfumatoError("At sigma = 0 the state is the data, of which a belief has no density.")
        precision = (self.alpha / self.sigma) ** 2 + self.sigma_data**-2
        square = (x.double() - self.x.double()).square() * broadcast(precision, x.double())
        each = 0.5 * (square - broadcast(precision.log(), square) + math.log(2 * math.pi))
        return each.flatten(1).sum(1)

    def rows(self, index: Tensor | slice) -> Estimate:
        """The belief about some rows."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        def level(value: Tensor) -> Tensor:
            return value[index] if value.ndim else value

        made = Estimate(
            self.z[index], self._t if isinstance(self._t, float | int) else level(self.t), self.schedule, cut(self._y),
            x=cut(self.__dict__.get("x")), eps=cut(self.__dict__.get("eps")), sigma_data=self.sigma_data,
            variance=None if self._variance is None else lambda: cut(self.variance),
            variance_share=cut(self.variance_share), named=self._named, indirect=self._indirect,
        )  # fmt: skip
        if "_row" in self.__dict__:
            made.__dict__["_row"] = target.Row(*map(level, self._row))
        if "_solution" in self.__dict__:
            made.__dict__["_solution"] = target.Solution(*map(level, self._solution))
        if "_level" in self.__dict__:
            made.__dict__["_level"] = tuple(map(level, self._level))
        return made

    def under(self, process: Any, z: Tensor, t: Tensor) -> Estimate:
        """The same belief about the state z of equal level at time t of another Gaussian process."""
        alpha, sigma = process.schedule(t)
        matched = torch.isclose(alpha * self.sigma, sigma * self.alpha, rtol=1e-9, atol=1e-12)
        eps = self.eps if bool(matched.all()) else None
        return Estimate(
            z, t, process.schedule, x=self.x, eps=eps, sigma_data=self.sigma_data, variance_share=self.variance_share
        )

    def stopped(self) -> Estimate:
        """The same belief with no gradient through the mean; that of the variance's share stays."""
        y = None if self._y is None else self._y.detach()
        x, eps = (None, None) if y is not None else (self.x.detach(), self.eps.detach())
        return Estimate(
            self.z, self._t, self.schedule, y, x=x, eps=eps, sigma_data=self.sigma_data,
            variance_share=self.variance_share, named=self._named, indirect=self._indirect,
        )  # fmt: skip

    def chunk(self, n: int) -> tuple[Estimate, ...]:
        """The beliefs about n equal parts of the batch."""
        _ = self.x, self.eps  # read once for all parts
        return tuple(self.rows(part) for part in parts(len(self.z), n))

    def to(self, s: Time, eta: float = 0.0, noise: Noise | Tensor | None = None) -> Tensor:
        """z_s = alpha_s x + sqrt(sigma_s^2 - std^2) eps + std n, std = eta times the posterior's (2010.02502, Eq. 12).

        s = 0 is the clean signal itself, x. noise: like z, needed for eta > 0.
        """
        mean, std = self.step(s, eta)
        if not eta:
            return mean
        if noise is None:
            raise SfumatoError(f"A step with eta = {eta:g} draws noise: give it.")
        return mean + broadcast(std, self.z) * numbers_like(noise, self.z)

    def step(self, s: Time, eta: float = 0.0) -> tuple[Tensor, Tensor]:
        """(mean, std) of z_s given z_t and the belief, s <= t; s = 0 is the clean signal."""
        s = as_time(s)
        alpha, sigma = self.schedule(s)
        clean = s == 0
        step = ancestral(self.alpha, self.sigma, torch.where(clean, 1.0, alpha), torch.where(clean, 0.0, sigma), eta)
        return broadcast(step.z, self.z) * self.z + broadcast(step.x, self.z) * self.x, step.std


def parts(rows: int, n: int) -> list[slice]:
    """n equal stretches of so many rows."""
    size, rest = divmod(rows, n)
    if rest:
        raise SfumatoError(f"{rows} rows are no {n} equal parts.")
    return [slice(k * size, (k + 1) * size) for k in range(n)]


class Step(NamedTuple):
    """z_s = z * z_t + x * x_hat + std * n."""

    z: Tensor
    x: Tensor
    std: Tensor


def ancestral(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor, eta: float = 1.0) -> Step:
    """The eta family between two points of the path (2010.02502, Eq. 16), as coefficients of z_t, x and noise."""
    ratio = alpha_t / alpha_s
    variance = (sigma_t**2 - ratio**2 * sigma_s**2).clamp_min(0.0) * (sigma_s / sigma_t) ** 2
    std = eta * variance.sqrt()
    if bool((std > sigma_s).any()):
        raise SfumatoError(f"eta = {eta:g} asks for more noise than the step's end holds: use a smaller eta.")
    kept = torch.sqrt(sigma_s**2 - std**2) / sigma_t  # the part of eps = (z - alpha_t x)/sigma_t that stays
    return Step(kept, alpha_s - kept * alpha_t, std)


class NoSuchReading(SfumatoError, AttributeError):
    """What a belief about symbols has not got, though one about real numbers has."""


def _no_reading(belief: Any, name: str) -> NoSuchReading | AttributeError:
    if name in ("x", "eps", "alpha", "sigma", "variance", "logsnr", *target.NAMES):
        return NoSuchReading(
            f"A belief about symbols has no {name!r}, which is a reading of real numbers: it has mean, prob and "
            "log_prob; of a product each part has its own."
        )
    return AttributeError(f"{type(belief).__name__} has no attribute {name!r}")


class SymbolProcess(Protocol):
    """What `Logits` asks of the process of its symbols."""

    def bridge(self, belief: Logits, s: Time, eta: float = 1.0) -> Tensor:
        """p(z_s | z_t) of each symbol, (B, *shape, S)."""

    def evidence(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log q(z_i | x_i = k)."""

    def draw(self, prob: Tensor, noise: Noise | Tensor) -> Tensor:
        """A symbol of each law."""


@final
class Logits:
    """The belief p(x_i | z) about each of the symbols behind a state z (B, *shape) at time t.

    logits: (B, *shape, K), log-probabilities up to a constant; -inf for what is impossible. process: that of the
    symbols, which is needed to draw z_s. said: log p(x_i | the other symbols), where the model says it (`other`).
    """

    def __init__(
        self, logits: Tensor, z: Tensor, t: Time, process: SymbolProcess | None = None, said: Tensor | None = None
    ) -> None:
        self.logits, self.z, self.t, self.process, self._said = logits, z, as_time(t), process, said

    @cached_property
    def other(self) -> Tensor:
        """What the other symbols say of each, log h(k) up to a constant: log p(k | z) - log q(z_i | k), (B, *shape, K).

        Where z_i excludes a symbol, h of it is not in p and counts as impossible, unless the model itself said it.
        """
        if self._said is not None:
            return self._said
        if self.process is None:
            raise SfumatoError("This belief does not know its process: Logits(..., process=...).")
        evidence = self.process.evidence(self.z, self.t)
        return torch.where(evidence > -torch.inf, self.logits.to(evidence) - evidence, -torch.inf)

    def __getattr__(self, name: str) -> Any:
        raise _no_reading(self, name)

    @cached_property
    def log_prob(self) -> Tensor:
        """log p(x_i = k | z), (B, *shape, K)."""
        return self.logits.log_softmax(-1)

    @cached_property
    def prob(self) -> Tensor:
        """p(x_i = k | z), (B, *shape, K)."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        """E of the one-hot code of x, which is p(x_i = k | z): (B, *shape, K)."""
        return self.prob

    def to(self, s: Time, eta: float = 0.0, noise: Noise | Tensor | None = None) -> Tensor:
        """z_s ~ p(z_s | z_t), each symbol by itself, int64 like z."""
        if self.process is None:
            raise SfumatoError("This belief does not know its process, and cannot draw: Logits(..., process=...).")
        if noise is None:
            raise SfumatoError("Symbols are drawn: a step between states of symbols needs noise.")
        return self.process.draw(self.process.bridge(self, s, eta), numbers_like(noise, self.z))

    def lerp(self, other: Logits, weight: float | Tensor) -> Logits:
        """log p = log p_self + weight (log p_other - log p_self), up to a constant; what either excludes stays so."""
        ours, theirs = self.log_prob, other.log_prob
        w = broadcast(weight, ours) if isinstance(weight, Tensor) else torch.as_tensor(weight, dtype=ours.dtype)
        possible = ours.isfinite() & theirs.isfinite()
        mixed = torch.where(possible, ours, 0.0) + w * torch.where(possible, theirs - ours, 0.0)
        known = torch.where(w == 0, ours, torch.where(w == 1, theirs, torch.where(possible, mixed, -torch.inf)))
        said = None
        if self._said is not None and other._said is not None:
            said = self._said + w * (other._said - self._said)
        return Logits(known, self.z, self.t, self.process, said)

    def under(self, process: SymbolProcess, z: Tensor, t: Time) -> Logits:
        """The same belief about the same state at the time t of equal level of another process."""
        return Logits(self.logits, z, t, process, self._said)

    def nats(self, x: Tensor) -> Tensor:
        """-sum_i log p(x_i | z), float64 (B,)."""
        return -self.log_prob.double().gather(-1, x[..., None]).flatten(1).sum(1)

    def rows(self, index: Tensor | slice) -> Logits:
        """The belief about some rows."""
        said = None if self._said is None else self._said[index]
        t = self.t[index] if self.t.ndim else self.t
        return Logits(self.logits[index], self.z[index], t, self.process, said)

    def chunk(self, n: int) -> tuple[Logits, ...]:
        """The beliefs about n equal parts of the batch."""
        return tuple(self.rows(part) for part in parts(len(self.z), n))


@final
class Beliefs(dict[str, Any]):
    """A belief for each part of a state that is a dict, all about the same t."""

    def __getattr__(self, name: str) -> Any:
        raise _no_reading(self, name)

    @property
    def z(self) -> State:
        return {name: belief.z for name, belief in self.items()}

    @property
    def t(self) -> Tensor:
        return next(iter(self.values())).t

    @property
    def mean(self) -> State:
        """E[x | z], part by part."""
        return {name: belief.mean for name, belief in self.items()}

    def to(self, s: Time, eta: float = 0.0, noise: Noise | State | None = None) -> State:
        """A draw of z_s, part by part, each with noise of its own."""

        def part(name: str) -> Any:
            return noise.fold(name) if isinstance(noise, Noise) else None if noise is None else noise[name]

        return {name: belief.to(s, eta, part(name)) for name, belief in self.items()}

    def lerp(self, other: Beliefs, weight: float | Tensor) -> Beliefs:
        """That of each part."""
        return Beliefs({name: belief.lerp(other[name], weight) for name, belief in self.items()})

    def nats(self, x: State) -> Tensor:
        """The sum over the parts, float64 (B,)."""
        return torch.stack([belief.nats(x[name]) for name, belief in self.items()]).sum(0)

    def rows(self, index: Tensor | slice) -> Beliefs:
        """The belief about some rows."""
        return Beliefs({name: belief.rows(index) for name, belief in self.items()})

    def chunk(self, n: int) -> tuple[Beliefs, ...]:
        """The beliefs about n equal parts of the batch."""
        found = {name: belief.chunk(n) for name, belief in self.items()}
        return tuple(Beliefs({name: each[k] for name, each in found.items()}) for k in range(n))
