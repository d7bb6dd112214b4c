"""Noise schedules: curves t -> (alpha, sigma) with z = alpha(t) x + sigma(t) eps; t = 0 is data, t = 1 is noise.

    logsnr = log(alpha^2 / sigma^2)      f = d log alpha / dt      g^2 = d sigma^2 / dt - 2 f sigma^2 = -sigma^2 dlogsnr/dt

Every quantity is computed in float64. A schedule is one curve and its inverse; the rest is derived once, here.
Sources: Song et al. 2021 (2011.13456) for VP, VE and sub-VP; Kingma et al. 2021 (2107.00630) for logsnr.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError

Time = Tensor | float | int
_T_TINY = 1e-300


def as_time(t: Time) -> Tensor:
    """Any time or logsnr as a float64 tensor, on its own device."""
    return torch.as_tensor(t, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Schedule(abc.ABC):
    """The curve t -> (alpha, sigma). A subclass gives the curve, its rates and the inverse of its logsnr."""

    @abc.abstractmethod
    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at float64 times."""

    @abc.abstractmethod
    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha/dt, d sigma/dt) at float64 times, in closed form."""

    @abc.abstractmethod
    def curve_time(self, logsnr: Tensor) -> Tensor:
        """t with logsnr(t) = logsnr; beyond the ends anything, `time` clamps."""

    def __call__(self, t: Time) -> tuple[Tensor, Tensor]:
        return self.curve(as_time(t))

    def alpha(self, t: Time) -> Tensor:
        return self(t)[0]

    def sigma(self, t: Time) -> Tensor:
        return self(t)[1]

    def logsnr(self, t: Time) -> Tensor:
        """log(alpha^2 / sigma^2); +inf where sigma = 0 and -inf where alpha = 0."""
        alpha, sigma = self(t)
        return 2 * (alpha.log() - sigma.log())

    def time(self, logsnr: Time) -> Tensor:
        """The inverse of `logsnr`, clamped to [0, 1]."""
        return self.curve_time(as_time(logsnr)).clamp(0.0, 1.0)

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        """(d alpha/dt, d sigma/dt)."""
        return self.curve_rates(as_time(t))

    def dlogsnr(self, t: Time) -> Tensor:
        """d logsnr/dt = 2 (alpha'/alpha - sigma'/sigma); -inf at an end with alpha = 0 or sigma = 0."""
        (alpha, sigma), (da, ds) = self(t), self.rates(t)
        return torch.where((alpha == 0) | (sigma == 0), -torch.inf, 2 * (da / alpha - ds / sigma))

    def drift(self, t: Time) -> Tensor:
        """f = d log alpha/dt of dz = f z dt + g dw; -inf where alpha = 0."""
        return self.rates(t)[0] / self(t)[0]

    def diffusion(self, t: Time) -> Tensor:
        """g^2 = 2 sigma (sigma' - f sigma)."""
        (alpha, sigma), (da, ds) = self(t), self.rates(t)
        return 2 * sigma * (ds - da / alpha * sigma)

    @property
    def logsnr_range(self) -> tuple[float, float]:
        """(logsnr at t = 1, logsnr at t = 0), possibly infinite."""
        return float(self.logsnr(1.0)), float(self.logsnr(0.0))

    def config(self) -> dict[str, Any]:
        """A JSON-able description that `from_config` reads."""
        args: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Schedule):
                value = value.config()
            elif callable(value):
                raise SfumatoError(
                    f"{type(self).__name__} holds a Python function and cannot be written to a file: use a named schedule."
                )
            args[field.name] = list(value) if isinstance(value, tuple) else value
        return {"name": type(self).__name__, "args": args}


class BetaSchedule(Schedule):
    """Variance-preserving curves given by B(t) = int_0^t beta: alpha = exp(-B/2), f = -beta/2."""

    @abc.abstractmethod
    def beta(self, t: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """B(t)."""

    @abc.abstractmethod
    def integral_time(self, b: Tensor) -> Tensor:
        """t with B(t) = b."""


def _linear_integral(t: Tensor, lo: float, hi: float) -> Tensor:
    return t * (lo + 0.5 * (hi - lo) * t)


def _linear_integral_time(b: Tensor, lo: float, hi: float) -> Tensor:
    # the root of a quadratic in the form that does not cancel for small b
    return 2 * b / (lo + torch.sqrt(lo * lo + 2 * (hi - lo) * b))


@dataclasses.dataclass(frozen=True)
class LinearBeta(BetaSchedule):
    """VP with linear beta: B(t) = b0 t + (b1 - b0) t^2 / 2, alpha = exp(-B/2), sigma^2 = 1 - exp(-B).

    Song et al. 2021 (2011.13456), Eq. 32-33; the continuous limit of DDPM's table (b = 1000 * beta_i).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integral(self, t: Tensor) -> Tensor:
        return _linear_integral(t, self.beta_min, self.beta_max)

    def integral_time(self, b: Tensor) -> Tensor:
        return _linear_integral_time(b, self.beta_min, self.beta_max)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b = self.integral(t)
        return torch.exp(-b / 2), torch.sqrt(-torch.expm1(-b))

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b, beta = self.integral(t), self.beta(t)
        return -beta / 2 * torch.exp(-b / 2), beta * torch.exp(-b) / (2 * torch.sqrt(-torch.expm1(-b)))

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return self.integral_time(torch.nn.functional.softplus(-logsnr, threshold=1e9))  # alpha^2 = sigmoid(logsnr)


@dataclasses.dataclass(frozen=True)
class SubVP(BetaSchedule):
    """sub-VP: alpha = exp(-B/2), sigma = 1 - exp(-B) (a standard deviation), g^2 = beta (1 - exp(-2B)).

    Song et al. 2021 (2011.13456), Eq. 29.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integral(self, t: Tensor) -> Tensor:
        return _linear_integral(t, self.beta_min, self.beta_max)

    def integral_time(self, b: Tensor) -> Tensor:
        return _linear_integral_time(b, self.beta_min, self.beta_max)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b = self.integral(t)
        return torch.exp(-b / 2), -torch.expm1(-b)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b, beta = self.integral(t), self.beta(t)
        return -beta / 2 * torch.exp(-b / 2), beta * torch.exp(-b)

    def curve_time(self, logsnr: Tensor) -> Tensor:
        # exp(logsnr/2) = 1 / (2 sinh(B/2))
        return self.integral_time(2 * torch.asinh(torch.exp(-logsnr / 2) / 2))


def _vp_from_logsnr(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos(a) / cos(c), sigma^2 = 1 - alpha^2, a = pi/2 (t + s)/(1 + s), c = pi/2 s/(1 + s).

    Nichol and Dhariwal 2021 (2102.09672), Eq. 17. s = 0 gives alpha = cos(pi t / 2).
    """

    s: float = 0.008

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (t + self.s) / (1 + self.s)

    @property
    def _start(self) -> float:
        return math.pi / 2 * self.s / (1 + self.s)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, c = self._angle(t), self._start
        # sines of the complement and of sums keep full precision at both ends
        alpha = torch.sin(math.pi / 2 * (1 - t) / (1 + self.s)) / math.cos(c)
        moved = math.pi / 2 * t / (1 + self.s)
        return alpha, torch.sqrt(torch.sin(a + c) * torch.sin(moved)) / math.cos(c)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, c, rate = self._angle(t), self._start, math.pi / 2 / (1 + self.s)
        alpha, sigma = self.curve(t)
        da = -rate * torch.sin(a) / math.cos(c)
        if self.s == 0:
            return da, rate * torch.cos(a)
        return da, -alpha * da / sigma

    def curve_time(self, logsnr: Tensor) -> Tensor:
        alpha2, c = torch.sigmoid(logsnr), self._start
        sin2 = torch.sigmoid(-logsnr) + alpha2 * math.sin(c) ** 2
        a = torch.atan2(sin2.sqrt(), alpha2.sqrt() * math.cos(c))
        t = a * 2 / math.pi * (1 + self.s) - self.s
        # near t = 1 the complement of the angle carries the precision
        complement = torch.atan2(alpha2.sqrt() * math.cos(c), sin2.sqrt())
        return torch.where(t > 0.5, 1 - complement * 2 / math.pi * (1 + self.s), t)


@dataclasses.dataclass(frozen=True)
class Trig(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2). Albergo and Vanden-Eijnden 2022 (2209.15571); Lu and Song 2024."""

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.curve(t)
        return -math.pi / 2 * sigma, math.pi / 2 * alpha

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-logsnr / 2))


@dataclasses.dataclass(frozen=True)
class Flow(Schedule):
    """alpha = 1 - t, sigma = t: the linear path of flow matching and rectified flow (2210.02747, 2209.03003)."""

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t.clone()

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr / 2)


@dataclasses.dataclass(frozen=True)
class VE(Schedule):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t. Song et al. 2021 (2011.13456), Eq. 30."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _ordered("VE", self.sigma_min, self.sigma_max)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = math.log(self.sigma_max / self.sigma_min)
        return torch.ones_like(t), self.sigma_min * torch.exp(ratio * t)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), math.log(self.sigma_max / self.sigma_min) * self.curve(t)[1]

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return (-logsnr / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclasses.dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    Karras et al. 2022 (2206.00364), Eq. 5, as a curve: equal steps in t are its nodes.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _ordered("EDM", self.sigma_min, self.sigma_max)

    def _root(self, t: Tensor) -> tuple[Tensor, float]:
        lo, hi = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return lo + t * (hi - lo), hi - lo

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self._root(t)[0] ** self.rho

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        root, span = self._root(t)
        return torch.zeros_like(t), self.rho * span * root ** (self.rho - 1)

    def curve_time(self, logsnr: Tensor) -> Tensor:
        lo, hi = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (torch.exp(-logsnr / (2 * self.rho)) - lo) / (hi - lo)


def _ordered(name: str, lo: float, hi: float) -> None:
    if not 0 < lo < hi:
        raise SfumatoError(f"{name} needs 0 < sigma_min < sigma_max, got {lo:g} and {hi:g}.")


class LogSNRSchedule(Schedule):
    """Variance-preserving curves given by logsnr(t): alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)."""

    @abc.abstractmethod
    def curve_logsnr(self, t: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def curve_dlogsnr(self, t: Tensor) -> Tensor: ...

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return _vp_from_logsnr(self.curve_logsnr(t))

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.curve(t)
        half = self.curve_dlogsnr(t) / 2
        return half * alpha * sigma**2, -half * sigma * alpha**2


@dataclasses.dataclass(frozen=True)
class LogLinear(LogSNRSchedule):
    """logsnr(t) = logsnr_max + t (logsnr_min - logsnr_max), variance-preserving. Kingma et al. 2021 (2107.00630)."""

    logsnr_min: float = -10.0
    logsnr_max: float = 10.0

    def curve_logsnr(self, t: Tensor) -> Tensor:
        return self.logsnr_max + t * (self.logsnr_min - self.logsnr_max)

    def curve_dlogsnr(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.logsnr_min - self.logsnr_max)

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return (logsnr - self.logsnr_max) / (self.logsnr_min - self.logsnr_max)


class QuantileSchedule(LogSNRSchedule):
    """logsnr(t) = Q(1 - u), u = u_min + t (u_max - u_min): uniform t draws logsnr from the law whose quantile is Q.

    The law is cut to [logsnr_min, logsnr_max], so that both ends are finite.
    """

    loc: float
    scale: float
    logsnr_min: float
    logsnr_max: float

    @abc.abstractmethod
    def survival(self, x: Tensor) -> Tensor:
        """P(X > x) of the standard law."""

    @abc.abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """x with survival(x) = u."""

    @abc.abstractmethod
    def density(self, x: Tensor) -> Tensor: ...

    def _cut(self) -> tuple[Tensor, Tensor]:
        ends = torch.tensor([self.logsnr_max, self.logsnr_min], dtype=torch.float64)
        lo, hi = self.survival((ends - self.loc) / self.scale)
        return lo, hi - lo

    def curve_logsnr(self, t: Tensor) -> Tensor:
        lo, span = (c.to(t.device) for c in self._cut())
        return self.loc + self.scale * self.quantile(lo + t * span)

    def curve_dlogsnr(self, t: Tensor) -> Tensor:
        span = self._cut()[1].to(t.device)
        return -self.scale * span / self.density((self.curve_logsnr(t) - self.loc) / self.scale)

    def curve_time(self, logsnr: Tensor) -> Tensor:
        lo, span = (c.to(logsnr.device) for c in self._cut())
        return (self.survival((logsnr - self.loc) / self.scale) - lo) / span


@dataclasses.dataclass(frozen=True)
class Laplace(QuantileSchedule):
    """Uniform t draws logsnr ~ Laplace(loc, scale), cut to a range. Hang et al. 2024 (2407.03297), Table 1."""

    loc: float = 0.0
    scale: float = 0.5
    logsnr_min: float = -10.0
    logsnr_max: float = 10.0

    def survival(self, x: Tensor) -> Tensor:
        tail = torch.exp(-x.abs()) / 2
        return torch.where(x > 0, tail, 1 - tail)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.where(u < 0.5, -torch.log(2 * u), torch.log(2 * (1 - u).clamp_min(_T_TINY)))

    def density(self, x: Tensor) -> Tensor:
        return torch.exp(-x.abs()) / 2


@dataclasses.dataclass(frozen=True)
class Cauchy(QuantileSchedule):
    """Uniform t draws logsnr ~ Cauchy(loc, scale), cut to a range. Hang et al. 2024 (2407.03297), Table 1."""

    loc: float = 0.0
    scale: float = 1.0
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def survival(self, x: Tensor) -> Tensor:
        return torch.atan2(torch.ones_like(x), x) / math.pi

    def quantile(self, u: Tensor) -> Tensor:
        return torch.cos(math.pi * u) / torch.sin(math.pi * u)

    def density(self, x: Tensor) -> Tensor:
        return 1 / (math.pi * (1 + x * x))


@dataclasses.dataclass(frozen=True)
class Sigmoid(LogSNRSchedule):
    """alpha^2 = (S(e/tau) - S((t (e - s) + s)/tau)) / (S(e/tau) - S(s/tau)), S the logistic function, VP.

    Jabri et al. 2022 (2212.11972); Chen 2023 (2301.10972), Algorithm 1.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def _ends(self) -> tuple[float, float]:
        return 1 / (1 + math.exp(-self.start / self.tau)), 1 / (1 + math.exp(-self.end / self.tau))

    def _position(self, t: Tensor) -> Tensor:
        return torch.sigmoid((t * (self.end - self.start) + self.start) / self.tau)

    @staticmethod
    def _difference(a: Tensor, b: Tensor) -> Tensor:
        """S(a) - S(b) without cancellation."""
        return torch.sinh((a - b) / 2) / (2 * torch.cosh(a / 2) * torch.cosh(b / 2))

    def _squares(self, t: Tensor) -> tuple[Tensor, Tensor]:
        s, e = (torch.as_tensor(v / self.tau, dtype=t.dtype, device=t.device) for v in (self.start, self.end))
        span = self._difference(e, s)
        clean = self._difference(e, e - (1 - t) * (e - s))
        noise = self._difference(s + t * (e - s), s)
        return clean / span, noise / span

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha2, sigma2 = self._squares(t)
        return alpha2.sqrt(), sigma2.sqrt()

    def curve_logsnr(self, t: Tensor) -> Tensor:
        alpha2, sigma2 = self._squares(t)
        return alpha2.log() - sigma2.log()

    def curve_dlogsnr(self, t: Tensor) -> Tensor:
        alpha2, sigma2 = self._squares(t)
        return -self._dsigma2(t) / (alpha2 * sigma2)

    def _dsigma2(self, t: Tensor) -> Tensor:
        p, (lo, hi) = self._position(t), self._ends()
        return p * (1 - p) * (self.end - self.start) / self.tau / (hi - lo)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), rate = self.curve(t), self._dsigma2(t)
        return -rate / (2 * alpha), rate / (2 * sigma)

    def curve_time(self, logsnr: Tensor) -> Tensor:
        lo, hi = self._ends()
        # p = S(position) lies between its ends; from the nearer end, so that nothing cancels
        p_lo = lo + (hi - lo) * torch.sigmoid(-logsnr)
        one_minus = (1 - hi) + (hi - lo) * torch.sigmoid(logsnr)
        return ((p_lo.log() - one_minus.log()) * self.tau - self.start) / (self.end - self.start)


@dataclasses.dataclass(frozen=True)
class Shifted(Schedule):
    """The same path x, eps with logsnr(t) = base.logsnr(t) - 2 log(factor): for larger images factor > 1.

    In the clock sigma/alpha it multiplies by `factor`: Hoogeboom et al. 2023 (2301.11093), Eq. 4 (factor = d/64);
    Esser et al. 2024 (2403.03206), Eq. 23 (flow time t -> s t / (1 + (s - 1) t)). The norm
    alpha^2 + sigma^2 (VP), alpha + sigma (flow) or alpha (VE) of the base stays what it is.
    """

    base: Schedule
    factor: float

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise SfumatoError(f"Shifted needs a factor above 0, got {self.factor:g}.")

    def _power(self) -> float:
        """p with alpha^p + sigma^p = 1 on the base (2: VP, 1: flow), 0 for alpha = 1."""
        alpha, sigma = self.base(0.5)
        for p in (1, 2):
            if abs(float(alpha**p + sigma**p) - 1) < 1e-9:
                return p
        if abs(float(alpha) - 1) < 1e-12:
            return 0
        raise SfumatoError(f"{type(self.base).__name__} is neither VP, VE nor a flow, so that it cannot be shifted.")

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), p = self.base.curve(t), self._power()
        if p == 0:
            return alpha, self.factor * sigma
        norm = (alpha**p + (self.factor * sigma) ** p) ** (1 / p)
        return alpha / norm, self.factor * sigma / norm

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), (da, ds), p = self.base.curve(t), self.base.curve_rates(t), self._power()
        sigma, ds = self.factor * sigma, self.factor * ds
        if p == 0:
            return da, ds
        norm = (alpha**p + sigma**p) ** (1 / p)
        dnorm = (alpha ** (p - 1) * da + sigma ** (p - 1) * ds) / norm ** (p - 1)
        return (da - alpha / norm * dnorm) / norm, (ds - sigma / norm * dnorm) / norm

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return self.base.curve_time(logsnr + 2 * math.log(self.factor))


@dataclasses.dataclass(frozen=True)
class FromBetas(LogSNRSchedule):
    """A discrete table: alpha_bar_i = prod_{j<=i} (1 - beta_j) sits at t = i/N, i = 1..N; logsnr is linear between.

    `FromBetas.ddpm()` is the table of Ho et al. 2020 (2006.11239). Below t = 1/N the line of the first two entries goes on.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        betas = tuple(float(b) for b in self.betas)
        if len(betas) < 2 or not all(0 < b < 1 for b in betas):
            raise SfumatoError("FromBetas needs at least two betas, each between 0 and 1 (rescale a zero-SNR table first).")
        object.__setattr__(self, "betas", betas)
        log_abar = torch.log1p(-torch.tensor(betas, dtype=torch.float64)).cumsum(0)
        table = log_abar - torch.log(-torch.expm1(log_abar))  # logsnr at t = 1/N .. 1
        table = torch.cat((2 * table[:1] - table[1:2], table))
        object.__setattr__(self, "_table", table)

    @classmethod
    def ddpm(cls, n: int = 1000, start: float = 1e-4, end: float = 0.02) -> FromBetas:
        """The linear table of DDPM."""
        return cls(tuple(torch.linspace(start, end, n, dtype=torch.float64).tolist()))

    @classmethod
    def scaled_linear(cls, n: int = 1000, start: float = 0.00085, end: float = 0.012) -> FromBetas:
        """beta_i = (linear in sqrt)^2: the table of latent diffusion (2112.10752)."""
        return cls(tuple((torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2).tolist()))

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        table: Tensor = self._table.to(t.device)  # type: ignore[attr-defined]
        n = len(self.betas)
        i = (t * n).floor().long().clamp(0, n - 1)
        return table[i], table[i + 1], t * n - i

    def curve_logsnr(self, t: Tensor) -> Tensor:
        left, right, part = self._segment(t)
        return left + part * (right - left)

    def curve_dlogsnr(self, t: Tensor) -> Tensor:
        left, right, _ = self._segment(t)
        return (right - left) * len(self.betas)

    def curve_time(self, logsnr: Tensor) -> Tensor:
        table: Tensor = self._table.to(logsnr.device)  # type: ignore[attr-defined]
        n = len(self.betas)
        i = torch.searchsorted(-table, -logsnr.contiguous(), right=True).sub(1).clamp(0, n - 1)
        return (i + (logsnr - table[i]) / (table[i + 1] - table[i])) / n


@dataclasses.dataclass(frozen=True)
class FromFunction(Schedule):
    """Any pair of functions t -> (alpha, sigma) with a falling logsnr; rates by automatic differentiation, time by bisection."""

    function: Callable[[Tensor], tuple[Tensor, Tensor]]

    def __post_init__(self) -> None:
        lam = self.logsnr(torch.linspace(0, 1, 257, dtype=torch.float64))
        if lam.isnan().any() or not (lam[1:] < lam[:-1]).all():
            raise SfumatoError("The schedule's log(alpha^2/sigma^2) must fall from t = 0 to t = 1.")

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.function(t)
        return torch.as_tensor(alpha).double().expand_as(t), torch.as_tensor(sigma).double().expand_as(t)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = t.detach().clone().requires_grad_()
            rates = []
            for value in self.curve(leaf):
                grad = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
                rates.append(torch.zeros_like(leaf) if grad is None else grad)
        return rates[0].detach(), rates[1].detach()

    def curve_time(self, logsnr: Tensor) -> Tensor:
        lo, hi = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        for _ in range(64):
            mid = (lo + hi) / 2
            above = self.logsnr(mid) > logsnr
            lo, hi = torch.where(above, mid, lo), torch.where(above, hi, mid)
        return (lo + hi) / 2


def named() -> dict[str, type[Schedule]]:
    """Every schedule that a file may name."""
    return {
        c.__name__: c
        for c in (
            LinearBeta, SubVP, Cosine, Trig, Flow, VE, EDM, LogLinear, Laplace, Cauchy, Sigmoid, Shifted, FromBetas,
        )
    }  # fmt: skip


def from_config(config: dict[str, Any]) -> Schedule:
    """The schedule that `config()` described."""
    known = named()
    if config.get("name") not in known:
        raise SfumatoError(f"Unknown schedule {config.get('name')!r}: known are {', '.join(sorted(known))}.")
    args = {
        k: from_config(v) if isinstance(v, dict) else tuple(v) if isinstance(v, list) else v
        for k, v in config.get("args", {}).items()
    }
    try:
        return known[config["name"]](**args)
    except TypeError as error:
        raise SfumatoError(f"The schedule {config['name']} does not take these arguments: {error}.") from None
