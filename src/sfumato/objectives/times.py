"""Time densities: which noise levels a loss looks at, as laws of logsnr with density p(logsnr).

A density only changes the variance of the loss estimate, never its expectation: the loss divides by it.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import torch
from torch import Tensor

from sfumato.schedule import Schedule

# Where a schedule's logsnr is infinite: beyond +-15 the loss is constant to 3e-7 of its value.
_LIMIT = 15.0


def _range(schedule: Schedule) -> tuple[float, float]:
    lo, hi = schedule.logsnr_range
    return max(lo, -_LIMIT), min(hi, _LIMIT)


class TimeDensity(abc.ABC):
    """A law on logsnr, cut to the range of the schedule."""

    @abc.abstractmethod
    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        """The quantile: u uniform in (0, 1) gives logsnr, falling in u (u = 0 is data)."""

    @abc.abstractmethod
    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """p(logsnr), integrating to 1 over the range."""


@dataclasses.dataclass(frozen=True)
class UniformTime(TimeDensity):
    """t uniform: p(logsnr) = -1 / (dlogsnr/dt)."""

    def _ends(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        lo, hi = _range(schedule)
        return schedule.time(hi), schedule.time(lo)

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        start, stop = self._ends(schedule)
        return schedule.logsnr(start + u * (stop - start))

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        start, stop = self._ends(schedule)
        return -1 / schedule.dlogsnr(schedule.time(logsnr)) / (stop - start)


@dataclasses.dataclass(frozen=True)
class UniformLogSNR(TimeDensity):
    """logsnr uniform over the schedule's range (cut to +-15 where that is infinite)."""

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        lo, hi = _range(schedule)
        return hi + u * (lo - hi)

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        lo, hi = _range(schedule)
        return torch.full_like(logsnr, 1 / (hi - lo))


@dataclasses.dataclass(frozen=True)
class NormalLogSNR(TimeDensity):
    """logsnr ~ N(mean, std^2), cut to the schedule's range."""

    mean: float
    std: float

    def _cdf(self, logsnr: Tensor) -> Tensor:
        return torch.special.ndtr((logsnr - self.mean) / self.std)

    def _ends(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        lo, hi = self._cdf(torch.tensor(_range(schedule), dtype=torch.float64))
        return lo, hi

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        lo, hi = _range(schedule)
        p_lo, p_hi = self._ends(schedule)
        quantile = self.mean + self.std * torch.special.ndtri(p_hi + u * (p_lo - p_hi))
        return quantile.clamp(lo, hi)

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        p_lo, p_hi = self._ends(schedule)
        standard = (logsnr - self.mean) / self.std
        return torch.exp(-0.5 * standard**2) / (self.std * math.sqrt(2 * math.pi) * (p_hi - p_lo))


def uniform() -> TimeDensity:
    """Uniform in t."""
    return UniformTime()


def uniform_logsnr() -> TimeDensity:
    """Uniform in logsnr."""
    return UniformLogSNR()


def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeDensity:
    """t = sigmoid(mean + std n) of the flow path: logsnr ~ N(-2 mean, 4 std^2) (2403.03206, Eq. 19)."""
    return NormalLogSNR(-2 * mean, 2 * std)


def edm(mean: float = -1.2, std: float = 1.2) -> TimeDensity:
    """ln(sigma/alpha) ~ N(mean, std^2): logsnr ~ N(-2 mean, 4 std^2) (2206.00364, Table 1)."""
    return NormalLogSNR(-2 * mean, 2 * std)
