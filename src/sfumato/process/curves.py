"""Schedules of many coefficients: t -> (alpha_f, sigma_f), each of which goes from data to noise in its own way.

    blur        alpha_f = a(t) ((1 - floor) e^{-l_f tau} + floor),  sigma_f = s(t),  tau = (width sin^2(pi t / 2))^2 / 2
    heat        alpha_f = e^{-l_f tau},  sigma_f = noise,                         tau = width(t)^2 / 2
    coloured    alpha_f = a(t),  sigma_f = s(t) c_f
    staggered   alpha_f, sigma_f = a, s at min(t / t_f, 1)

(a, s) is the schedule of the process, l_f = |omega|^2 the eigenvalue of minus the Laplacian, widths are in places.
Each is given one number a coefficient, its `rate`: l_f, log c_f or t_f. At times (B,) they return (B, *shape), at one
time (1, *shape); with a number as rate they are an ordinary schedule, that of one coefficient. No logsnr_f ever rises.
Sources: Hoogeboom and Salimans 2022 (2209.05557), Eq. 12-20; Rissanen et al. 2022 (2206.13397), Eq. 4-6.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Self

import torch
from torch import Tensor

from sfumato.roots import bisection
from sfumato.schedule import Schedule


@dataclasses.dataclass(frozen=True, eq=False)
class Curves(Schedule):
    """base: (a, s) of the process; rate: the number of each coefficient, (1, *shape) float64, or of one."""

    base: Schedule
    rate: Tensor | float

    def at(self, rate: Tensor | float) -> Self:
        """The schedule of a coefficient with this rate, or of some with these (1, n)."""
        return dataclasses.replace(self, rate=rate)

    def _apart(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(t, rate), shaped to broadcast against each other."""
        if not isinstance(self.rate, Tensor):
            return t, torch.as_tensor(self.rate, dtype=torch.float64, device=t.device)
        return t.reshape(-1, *[1] * (self.rate.ndim - 1)), self.rate.to(t.device)

    def curve_time(self, logsnr: Tensor) -> Tensor:
        """The time at which one coefficient has this logsnr."""
        return _time(self, logsnr)


@dataclasses.dataclass(frozen=True, eq=False)
class Blurred(Curves):
    """alpha_f = a(t) ((1 - floor) e^{-l_f tau} + floor), sigma_f = s(t)."""

    width: float = 20.0
    floor: float = 0.001

    def heated(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(tau, d tau/dt)."""
        sine, cosine = torch.sin(math.pi / 2 * t), torch.cos(math.pi / 2 * t)
        return 0.5 * self.width**2 * sine**4, math.pi * self.width**2 * sine**3 * cosine

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, rate = self._apart(t)
        a, s = self.base(t)
        kept = (1 - self.floor) * torch.exp(-rate * self.heated(t)[0]) + self.floor
        return a * kept, s + torch.zeros_like(kept)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, rate = self._apart(t)
        (a, _), (da, ds), (tau, dtau) = self.base(t), self.base.rates(t), self.heated(t)
        faded = (1 - self.floor) * torch.exp(-rate * tau)
        return da * (faded + self.floor) - a * rate * dtau * faded, ds + torch.zeros_like(faded)


@dataclasses.dataclass(frozen=True, eq=False)
class Heated(Curves):
    """alpha_f = e^{-l_f tau}, sigma_f = noise; the width of the blur grows from `least` to `width` in equal factors.

    At t = 0 there is no blur: tau is that of the width less that of `least`.
    """

    width: float = 20.0
    least: float = 0.5
    noise: float = 0.01

    def heated(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(tau, d tau/dt)."""
        growth = 2 * math.log(self.width / self.least)
        square = self.least**2 * torch.exp(growth * t)
        return 0.5 * (square - self.least**2), 0.5 * growth * square

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, rate = self._apart(t)
        alpha = torch.exp(-rate * self.heated(t)[0])
        return alpha, torch.full_like(alpha, self.noise)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, rate = self._apart(t)
        tau, dtau = self.heated(t)
        return -rate * dtau * torch.exp(-rate * tau), torch.zeros_like(rate * tau)

    def logsnr(self, t: Tensor | float) -> Tensor:
        """-2 l_f tau - 2 log noise, also where alpha is 0 in double precision."""
        t, rate = self._apart(torch.as_tensor(t, dtype=torch.float64))
        return -2 * rate * self.heated(t)[0] - 2 * math.log(self.noise)


@dataclasses.dataclass(frozen=True, eq=False)
class Tinted(Curves):
    """alpha_f = a(t), sigma_f = s(t) c_f, with log c_f as rates."""

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, rate = self._apart(t)
        a, s = self.base(t)
        return a + torch.zeros_like(rate), s * torch.exp(rate)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, rate = self._apart(t)
        da, ds = self.base.rates(t)
        return da + torch.zeros_like(rate), ds * torch.exp(rate)


@dataclasses.dataclass(frozen=True, eq=False)
class Staggered(Curves):
    """The base schedule at min(t / t_f, 1): a coefficient with t_f < 1 is noise alone from t_f on."""

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, rate = self._apart(t)
        return self.base((t / rate).clamp_max(1.0))

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, rate = self._apart(t)
        inside = t <= rate
        da, ds = self.base.rates((t / rate).clamp_max(1.0))
        return torch.where(inside, da / rate, 0.0), torch.where(inside, ds / rate, 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Total(Schedule):
    """The one clock of many coefficients: sigmoid(lam) = mean_f sigmoid(logsnr_f + log P_f), alpha^2 + sigma^2 = 1.

    sigmoid(logsnr_f + log P_f) is the share of a coefficient of power P_f that is signal, so that the mean never rises.
    power: P_f, (1, *shape) or one number.
    """

    curves: Curves
    power: Tensor | float = 1.0

    def logsnr(self, t: Tensor | float) -> Tensor:
        """log of (mean share of signal / mean share of noise)."""
        t = torch.as_tensor(t, dtype=torch.float64)
        each = self._each(t)
        total = [torch.nn.functional.logsigmoid(sign * each).logsumexp(1) for sign in (1, -1)]
        return (total[0] - total[1]).reshape(t.shape)

    def _each(self, t: Tensor) -> Tensor:
        """logsnr_f + log P_f, (n, F)."""
        power = torch.as_tensor(self.power, dtype=torch.float64, device=t.device)
        return (self.curves.logsnr(t) + power.log()).flatten(1)

    def dlogsnr(self, t: Tensor | float) -> Tensor:
        """mean_f s_f (1 - s_f) logsnr_f' / (s (1 - s)), s the shares of signal."""
        t = torch.as_tensor(t, dtype=torch.float64)
        each, lam = self._each(t), self.logsnr(t).reshape(-1, 1)
        rate = self.curves.dlogsnr(t).flatten(1)
        log = torch.nn.functional.logsigmoid
        share = torch.exp(log(each) + log(-each) - log(lam) - log(-lam))
        moving = torch.where(share > 0, share * rate, 0.0).mean(1)
        return torch.where(lam[:, 0].isinf(), -torch.inf, moving).reshape(t.shape)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        lam = self.logsnr(t)
        return torch.sigmoid(lam).sqrt(), torch.sigmoid(-lam).sqrt()

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), slope = self.curve(t), self.dlogsnr(t)
        return 0.5 * alpha * sigma**2 * slope, -0.5 * sigma * alpha**2 * slope

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return _time(self, logsnr)


def _time(schedule: Schedule, logsnr: Tensor) -> Tensor:
    """The time at which a schedule has this logsnr, by bisection; its ends for what lies beyond them."""
    low, high = schedule.logsnr_range
    zero = torch.zeros_like(logsnr)
    t = bisection(lambda t: schedule.logsnr(t) > logsnr, zero, zero + 1)
    return torch.where(logsnr >= high, 0.0, torch.where(logsnr <= low, 1.0, t))
