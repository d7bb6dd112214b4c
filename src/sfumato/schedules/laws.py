"""Schedules defined by a distribution of logsnr: uniform t draws logsnr from it."""

from __future__ import annotations

import abc
import dataclasses
import math

import torch
from torch import Tensor

from sfumato.registry import register
from sfumato.schedule import require
from sfumato.schedules.paths import LogSNRSchedule, falling

_TINY = 1e-300  # keeps log(0) finite in the branch that `where` discards


class QuantileSchedule(LogSNRSchedule):
    """logsnr(t) = Q(1 - u), u = u_min + t (u_max - u_min), for a distribution with quantile function Q.

    The distribution is truncated to [logsnr_min, logsnr_max], so that both ends are finite.
    """

    loc: float
    scale: float
    logsnr_min: float
    logsnr_max: float

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, self, "scale > 0")
        falling(self, self.logsnr_min, self.logsnr_max)

    @abc.abstractmethod
    def survival(self, x: Tensor) -> Tensor:
        """P(X > x) of the standard distribution (loc 0, scale 1)."""

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


@register("schedule", "laplace")
@dataclasses.dataclass(frozen=True)
class Laplace(QuantileSchedule):
    """Uniform t draws logsnr from a truncated Laplace(loc, scale). Hang et al. 2024 (2407.03297), Table 1."""

    loc: float = 0.0
    scale: float = 0.5
    logsnr_min: float = -10.0
    logsnr_max: float = 10.0

    def survival(self, x: Tensor) -> Tensor:
        tail = torch.exp(-x.abs()) / 2
        return torch.where(x > 0, tail, 1 - tail)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.where(u < 0.5, -torch.log(2 * u), torch.log(2 * (1 - u).clamp_min(_TINY)))

    def density(self, x: Tensor) -> Tensor:
        return torch.exp(-x.abs()) / 2


@register("schedule", "cauchy")
@dataclasses.dataclass(frozen=True)
class Cauchy(QuantileSchedule):
    """Uniform t draws logsnr from a truncated Cauchy(loc, scale). Hang et al. 2024 (2407.03297), Table 1."""

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
