"""Schedules from the literature: variance-preserving, sub-VP, variance-exploding, flow, trigonometric, sigmoid.

Each implements (alpha, sigma), their rates and the inverse of logsnr in closed form, without cancellation at either
end; `schedule.Schedule` derives the rest.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import torch
from torch import Tensor

from sfumato.registry import register
from sfumato.schedule import Schedule, require

LARGEST_BETA = 1e9  # its square is still a number


@dataclasses.dataclass(frozen=True)
class BetaSchedule(Schedule):
    """alpha = exp(-B/2) with a linear beta = b0 + (b1 - b0) t, B(t) = int_0^t beta; f = -beta/2."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        known = 0 <= self.beta_min <= LARGEST_BETA and 0 < self.beta_max <= LARGEST_BETA
        require(known, self, f"0 <= beta_min and 0 < beta_max, both at most {LARGEST_BETA:g}")

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integral(self, t: Tensor) -> Tensor:
        """B(t)."""
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def integral_time(self, b: Tensor) -> Tensor:
        """t with B(t) = b."""
        b = b.clamp_max(1e300)  # pure noise, B = inf, lies beyond every t
        # solve the quadratic in the form without cancellation for small b
        slope = self.beta_max - self.beta_min
        return 2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * b))


@register("schedule", "linear")
@dataclasses.dataclass(frozen=True)
class LinearBeta(BetaSchedule):
    """VP with linear beta: B(t) = b0 t + (b1 - b0) t^2 / 2, alpha = exp(-B/2), sigma^2 = 1 - exp(-B).

    Song et al. 2021 (2011.13456), Eq. 32-33; the continuous limit of DDPM's table (b = 1000 * beta_i).
    """

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b = self.integral(t)
        return torch.exp(-b / 2), torch.sqrt(-torch.expm1(-b))

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b, beta = self.integral(t), self.beta(t)
        return -beta / 2 * torch.exp(-b / 2), beta * torch.exp(-b) / (2 * torch.sqrt(-torch.expm1(-b)))

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return self.integral_time(torch.nn.functional.softplus(-logsnr, threshold=1e9))  # alpha^2 = sigmoid(logsnr)


@register("schedule", "sub-vp")
@dataclasses.dataclass(frozen=True)
class SubVP(BetaSchedule):
    """sub-VP: alpha = exp(-B/2), sigma = 1 - exp(-B) (a standard deviation), g^2 = beta (1 - exp(-2B)).

    Song et al. 2021 (2011.13456), Eq. 29.
    """

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


@register("schedule", "cosine")
@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = cos(a) / cos(c), sigma^2 = 1 - alpha^2, a = pi/2 (t + s)/(1 + s), c = pi/2 s/(1 + s).

    Nichol and Dhariwal 2021 (2102.09672), Eq. 17. s = 0 gives alpha = cos(pi t / 2).
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        require(0 <= self.s < math.inf, self, "an offset s >= 0")

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (t + self.s) / (1 + self.s)

    @property
    def _start(self) -> float:
        return math.pi / 2 * self.s / (1 + self.s)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, c = self._angle(t), self._start
        # sines of the complement and of angle sums keep full precision at both ends
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


@register("schedule", "trig")
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


@register("schedule", "flow")
@dataclasses.dataclass(frozen=True)
class Flow(Schedule):
    """alpha = 1 - t, sigma = t: the linear path of flow matching and rectified flow (2210.02747, 2209.03003)."""

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t.clone()

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(-logsnr / 2)


@register("schedule", "ve")
@dataclasses.dataclass(frozen=True)
class VE(Schedule):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t. Song et al. 2021 (2011.13456), Eq. 30."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _ordered(self, self.sigma_min, self.sigma_max)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ratio = math.log(self.sigma_max / self.sigma_min)
        return torch.ones_like(t), self.sigma_min * torch.exp(ratio * t)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), math.log(self.sigma_max / self.sigma_min) * self.curve(t)[1]

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return (-logsnr / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@register("schedule", "edm")
@dataclasses.dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    Karras et al. 2022 (2206.00364), Eq. 5, as a schedule: equal steps in t give its nodes.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _ordered(self, self.sigma_min, self.sigma_max)
        require(0 < self.rho < math.inf, self, "rho > 0")

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


def _ordered(schedule: Schedule, lo: float, hi: float) -> None:
    require(0 < lo < hi < math.inf, schedule, f"0 < sigma_min < sigma_max, got {lo:g} and {hi:g}")


def falling(schedule: Schedule, lo: float, hi: float) -> None:
    """Raise SfumatoError unless lo < hi are finite."""
    require(-math.inf < lo < hi < math.inf, schedule, f"finite logsnr_min < logsnr_max, got {lo:g} and {hi:g}")


class LogSNRSchedule(Schedule):
    """A variance-preserving curve from logsnr(t): alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)."""

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


@register("schedule", "log-linear")
@dataclasses.dataclass(frozen=True)
class LogLinear(LogSNRSchedule):
    """logsnr(t) = logsnr_max + t (logsnr_min - logsnr_max), variance-preserving. Kingma et al. 2021 (2107.00630)."""

    logsnr_min: float = -10.0
    logsnr_max: float = 10.0

    def __post_init__(self) -> None:
        falling(self, self.logsnr_min, self.logsnr_max)

    def curve_logsnr(self, t: Tensor) -> Tensor:
        return self.logsnr_max + t * (self.logsnr_min - self.logsnr_max)

    def curve_dlogsnr(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.logsnr_min - self.logsnr_max)

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return (logsnr - self.logsnr_max) / (self.logsnr_min - self.logsnr_max)


@register("schedule", "sigmoid")
@dataclasses.dataclass(frozen=True)
class Sigmoid(LogSNRSchedule):
    """alpha^2 = (S(e/tau) - S((t (e - s) + s)/tau)) / (S(e/tau) - S(s/tau)), S the logistic function, VP.

    Jabri et al. 2022 (2212.11972); Chen 2023 (2301.10972), Algorithm 1.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        require(-math.inf < self.start < self.end < math.inf, self, "finite start < end")
        require(0 < self.tau < math.inf, self, "tau > 0")

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
        # p = S(position), measured from both ends so that nothing cancels near either
        p_lo = lo + (hi - lo) * torch.sigmoid(-logsnr)
        one_minus = (1 - hi) + (hi - lo) * torch.sigmoid(logsnr)
        return ((p_lo.log() - one_minus.log()) * self.tau - self.start) / (self.end - self.start)
