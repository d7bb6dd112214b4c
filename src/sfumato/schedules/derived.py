"""Schedules derived from other data: shifted schedules, tables of logsnr or betas, Python functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.roots import bisection
from sfumato.schedule import Schedule, Time, as_time, require
from sfumato.schedules.paths import LogSNRSchedule


@register("schedule", "shifted")
@dataclasses.dataclass(frozen=True)
class Shifted(Schedule):
    """`base` with logsnr(t) = base.logsnr(t) - 2 log(factor): more noise for factor > 1, as larger images need.

    This multiplies sigma/alpha by `factor`: Hoogeboom et al. 2023 (2301.11093), Eq. 4 (factor = d/64);
    Esser et al. 2024 (2403.03206), Eq. 23 (flow time t -> s t / (1 + (s - 1) t)). The norm of the base,
    alpha^2 + sigma^2 (VP), alpha + sigma (flow) or alpha (VE), is preserved.
    """

    base: Schedule
    factor: float

    def __post_init__(self) -> None:
        require(0 < self.factor < math.inf, self, f"a factor above 0, got {self.factor:g}")
        self._power()

    def _power(self) -> int:
        p = power(self.base)
        if p is None:
            raise SfumatoError(
                f"{type(self.base).__name__} cannot be shifted: it is neither VP, VE nor a flow schedule."
            )
        return p

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
        turn = (alpha * ds - sigma * da) / norm ** (p + 1)
        if p == 2:  # sigma sigma' = -alpha alpha' on a VP base: finite even where sigma' is infinite
            return self.factor**2 * da / norm**3, alpha * turn
        return -turn, turn

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return self.base.curve_time(logsnr + 2 * math.log(self.factor))


def power(schedule: Schedule) -> int | None:
    """p with alpha^p + sigma^p = 1 (2: VP, 1: flow), 0 for alpha = 1 (VE), None for any other norm."""
    alpha, sigma = schedule(0.5)
    for p in (1, 2):
        if abs(float(alpha**p + sigma**p) - 1) < 1e-9:
            return p
    return 0 if abs(float(alpha) - 1) < 1e-12 else None


@dataclasses.dataclass(frozen=True)
class Kept(Schedule):
    """(sqrt k, sqrt(1 - k)), k = alpha(t) of the base: a variance-preserving curve with logsnr = logit k.

    The clock of a discrete process that keeps symbols with probability k: time densities, loss weights and intervals,
    which are functions of logsnr, then become functions of logit k.
    """

    base: Schedule

    def _share(self, t: Tensor) -> Tensor:
        return self.base.curve(t)[0].clamp(0.0, 1.0)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        k = self._share(t)
        return k.sqrt(), (1 - k).sqrt()

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        k, rate = self._share(t), self.base.curve_rates(t)[0]
        return rate / (2 * k.sqrt()), -rate / (2 * (1 - k).sqrt())

    def dlogsnr(self, t: Time) -> Tensor:
        t = as_time(t)
        k, rate = self._share(t), self.base.curve_rates(t)[0]
        return torch.where((k == 0) | (k == 1), -torch.inf, rate / (k * (1 - k)))

    def curve_time(self, logsnr: Tensor) -> Tensor:
        p = power(self.base)
        if p == 1:
            return self.base.curve_time(2 * logsnr)
        if p == 2:  # alpha^2 / (1 - alpha^2) with alpha = sigmoid(logsnr)
            log_k = torch.nn.functional.logsigmoid(logsnr)
            return self.base.curve_time(2 * log_k - torch.log(-torch.expm1(2 * log_k)))
        return bisected(self, logsnr)


class TableSchedule(LogSNRSchedule):
    """Variance-preserving; logsnr interpolates the entries of `_table`, at t = 0, 1/N, .., 1, linearly."""

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        table: Tensor = self._table.to(t.device)  # type: ignore[attr-defined]
        n = len(table) - 1
        i = (t * n).floor().long().clamp(0, n - 1)
        return table[i], table[i + 1], t * n - i, n

    def curve_logsnr(self, t: Tensor) -> Tensor:
        left, right, part, _ = self._segment(t)
        return left + part * (right - left)

    def curve_dlogsnr(self, t: Tensor) -> Tensor:
        left, right, _, n = self._segment(t)
        return (right - left) * n

    def curve_time(self, logsnr: Tensor) -> Tensor:
        table: Tensor = self._table.to(logsnr.device)  # type: ignore[attr-defined]
        n = len(table) - 1
        i = torch.searchsorted(-table, -logsnr.contiguous(), right=True).sub(1).clamp(0, n - 1)
        return (i + (logsnr - table[i]) / (table[i + 1] - table[i])) / n


@register("schedule", "tabulated")
@dataclasses.dataclass(frozen=True)
class Tabulated(TableSchedule):
    """Variance-preserving, with logsnr tabulated at t = 0, 1/N, .., 1 and linear in between.

    Uniform t draws logsnr with probability 1/N from each interval between neighbouring entries, so a table can store
    any distribution of logsnr.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        values = tuple(float(v) for v in self.values)
        table = torch.tensor(values, dtype=torch.float64)
        if len(values) < 2 or not bool(table.isfinite().all() and (table[1:] < table[:-1]).all()):
            raise SfumatoError("Tabulated needs at least two values of logsnr, finite and decreasing.")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "_table", table)


@register("schedule", "from-betas")
@dataclasses.dataclass(frozen=True)
class FromBetas(TableSchedule):
    """A table of betas: alpha_bar_i = prod_{j<=i} (1 - beta_j) at t = i/N, i = 1..N; logsnr is linear in between.

    `FromBetas.ddpm()` is the table of Ho et al. 2020 (2006.11239). Below t = 1/N logsnr is extrapolated linearly from
    the first two entries.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        betas = tuple(float(b) for b in self.betas)
        if len(betas) < 2 or not all(0 < b < 1 for b in betas):
            raise SfumatoError("FromBetas needs at least two betas, each strictly between 0 and 1.")
        object.__setattr__(self, "betas", betas)
        log_abar = torch.log1p(-torch.tensor(betas, dtype=torch.float64)).cumsum(0)
        table = log_abar - torch.log(-torch.expm1(log_abar))  # logsnr at t = 1/N .. 1
        table = torch.cat((2 * table[:1] - table[1:2], table))
        object.__setattr__(self, "_table", table)

    @classmethod
    def ddpm(cls, n: int = 1000, start: float = 1e-4, end: float = 0.02) -> FromBetas:
        """The linear beta table of DDPM."""
        return cls(tuple(torch.linspace(start, end, n, dtype=torch.float64).tolist()))

    @classmethod
    def scaled_linear(cls, n: int = 1000, start: float = 0.00085, end: float = 0.012) -> FromBetas:
        """The table of latent diffusion (2112.10752), linear in sqrt(beta)."""
        return cls(tuple((torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2).tolist()))


@dataclasses.dataclass(frozen=True)
class FromFunction(Schedule):
    """Any function t -> (alpha, sigma) with decreasing logsnr; rates by autograd, inverse by bisection."""

    function: Callable[[Tensor], tuple[Tensor, Tensor]]

    def __post_init__(self) -> None:
        lam = self.logsnr(torch.linspace(0, 1, 257, dtype=torch.float64))
        if lam.isnan().any() or not (lam[1:] < lam[:-1]).all():
            raise SfumatoError("The schedule's log(alpha^2/sigma^2) must decrease from t = 0 to t = 1.")

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.function(t)
        return torch.as_tensor(alpha).double().expand_as(t), torch.as_tensor(sigma).double().expand_as(t)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = t.detach().clone().requires_grad_()
            rates = []
            for value in self.curve(leaf):
                # retain_graph because alpha and sigma may share one graph
                rate = None  # stays None for a constant
                if value.requires_grad:
                    (rate,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)
                rates.append(torch.zeros_like(leaf) if rate is None else rate)
        return rates[0].detach(), rates[1].detach()

    def curve_time(self, logsnr: Tensor) -> Tensor:
        return bisected(self, logsnr)


def bisected(schedule: Schedule, logsnr: Tensor) -> Tensor:
    """t in [0, 1] with schedule.logsnr(t) = logsnr, to rounding."""
    return bisection(lambda t: schedule.logsnr(t) > logsnr, torch.zeros_like(logsnr), torch.ones_like(logsnr))
