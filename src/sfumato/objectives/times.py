"""Time densities: distributions p(logsnr) from which a loss draws its noise levels.

A density changes only the variance of a weighted loss, not its expectation, since the loss divides by it.
In terms of logsnr it is the same under every schedule, except `uniform`, which follows the schedule.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import final

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.objectives.adaptive import adaptive as adaptive
from sfumato.objectives.adaptive import variance_optimal as variance_optimal
from sfumato.objectives.adaptive import warped as warped
from sfumato.objectives.density import TimeDensity as TimeDensity
from sfumato.objectives.density import limits as limits
from sfumato.objectives.learned import learned as learned
from sfumato.registry import Named, make, register
from sfumato.roots import bisection
from sfumato.schedule import Schedule


@final
@dataclasses.dataclass(frozen=True)
class UniformTime(TimeDensity):
    """t uniform: p(logsnr) = -1 / (dlogsnr/dt)."""

    def _ends(self, schedule: Schedule) -> tuple[Tensor, Tensor]:
        lo, hi = limits(schedule)
        return schedule.time(hi), schedule.time(lo)

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        start, stop = self._ends(schedule)
        return schedule.logsnr(start + u * (stop - start))

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        start, stop = self._ends(schedule)
        return -1 / schedule.dlogsnr(schedule.time(logsnr)) / (stop - start)


class LogSNRLaw(TimeDensity):
    """A distribution on all of logsnr, truncated to the range of the schedule."""

    @abc.abstractmethod
    def survival(self, logsnr: Tensor) -> Tensor:
        """P(Lambda > logsnr) of the untruncated distribution."""

    @abc.abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """logsnr with survival(logsnr) = u."""

    @abc.abstractmethod
    def pdf(self, logsnr: Tensor) -> Tensor:
        """The density of the untruncated distribution."""

    @final
    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        lo, hi = limits(schedule)
        first, last = _cut(self, lo, hi)
        return self.quantile(first + u * (last - first)).clamp(lo, hi)

    @final
    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        first, last = _cut(self, *limits(schedule))
        return self.pdf(logsnr) / (last - first)


@lru_cache(maxsize=256)
def _cut(law: LogSNRLaw, lo: float, hi: float) -> tuple[float, float]:
    """The survival function at hi and at lo."""
    first, last = law.survival(torch.tensor([hi, lo], dtype=torch.float64)).tolist()
    if not last - first > 1e-9:
        raise SfumatoError(
            f"The density {law} has no mass between logsnr {lo:.4g} and {hi:.4g}, the range of the schedule: "
            "use another density or schedule."
        )
    return first, last


@final
@dataclasses.dataclass(frozen=True)
class UniformLogSNR(TimeDensity):
    """logsnr uniform over the schedule's range within +-15."""

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        lo, hi = limits(schedule)
        return hi + u * (lo - hi)

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        lo, hi = limits(schedule)
        return torch.full_like(logsnr, 1 / (hi - lo))


@final
@dataclasses.dataclass(frozen=True)
class NormalLogSNR(LogSNRLaw):
    """logsnr ~ N(mean, std^2)."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise SfumatoError(f"A normal density needs a finite mean and std > 0, got {self.mean:g} and {self.std:g}.")

    def survival(self, logsnr: Tensor) -> Tensor:
        return torch.special.ndtr((self.mean - logsnr) / self.std)

    def quantile(self, u: Tensor) -> Tensor:
        return self.mean - self.std * torch.special.ndtri(u)

    def pdf(self, logsnr: Tensor) -> Tensor:
        standard = (logsnr - self.mean) / self.std
        return torch.exp(-0.5 * standard**2) / (self.std * math.sqrt(2 * math.pi))


@final
@dataclasses.dataclass(frozen=True)
class Mode(LogSNRLaw):
    """Flow time t = f(u; s), f = 1 - u - s (cos^2(pi u/2) - 1 + u), u uniform: SD3's sampling with heavy tails.

    Esser et al. 2024 (2403.03206), Eq. 20. s > 0 favours the middle of the flow, s < 0 its ends, s = 0 is uniform
    flow time; f is monotone for -1 <= s <= 2 / (pi - 2) = 1.75. In terms of v = 1 - u, used here,
    t = (1 + s) v - s sin^2(pi v / 2).
    """

    s: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.s <= 2 / (math.pi - 2):
            raise SfumatoError(f"Mode sampling needs -1 <= s <= {2 / (math.pi - 2):.4f}, got {self.s:g}.")

    def _time(self, v: Tensor) -> Tensor:
        return (1 + self.s) * v - self.s * torch.sin(math.pi / 2 * v) ** 2

    def _place(self, logsnr: Tensor) -> Tensor:
        """v <= 1/2 of the flow time min(t, 1 - t), by bisection: t(1 - v) = 1 - t(v)."""
        t = torch.sigmoid(-logsnr.abs() / 2)
        return bisection(lambda v: self._time(v) < t, torch.zeros_like(t), torch.full_like(t, 0.5), rounds=54)

    def survival(self, logsnr: Tensor) -> Tensor:
        place = self._place(logsnr)
        return torch.where(logsnr > 0, place, 1 - place)

    def quantile(self, u: Tensor) -> Tensor:
        return 2 * (self._time(1 - u).log() - self._time(u).log())

    def pdf(self, logsnr: Tensor) -> Tensor:
        rate = 1 + self.s - self.s * math.pi / 2 * torch.sin(math.pi * self._place(logsnr))  # dt/dv
        return torch.sigmoid(logsnr / 2) * torch.sigmoid(-logsnr / 2) / (2 * rate)


@final
@dataclasses.dataclass(frozen=True)
class CosMap(LogSNRLaw):
    """Flow time t = 1 - 1 / (tan(pi u/2) + 1): the levels of the cosine schedule, p = sech(logsnr/2) / (2 pi).

    Esser et al. 2024 (2403.03206), Eq. 21, whose density in flow time is 2 / (pi - 2 pi t + 2 pi t^2).
    """

    def survival(self, logsnr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-logsnr / 2))

    def quantile(self, u: Tensor) -> Tensor:
        return 2 * (torch.sin(math.pi / 2 * (1 - u)).log() - torch.sin(math.pi / 2 * u).log())

    def pdf(self, logsnr: Tensor) -> Tensor:
        return 1 / (2 * math.pi * torch.cosh(logsnr / 2))


@final
class FromDensity(TimeDensity):
    """Any density: an unnormalised p(logsnr) >= 0, tabulated over the schedule's range and inverted.

    p is interpolated linearly between `cells` + 1 equal nodes, both to draw levels and to divide the loss, so that the
    two agree up to rounding and the loss stays unbiased however coarse the table is.
    """

    def __init__(self, p: Callable[[Tensor], Tensor], cells: int = 4096) -> None:
        if cells < 1:
            raise SfumatoError(f"A tabulated density needs at least 1 cell, got {cells}.")
        self.p, self.cells = p, cells
        self._tables: dict[tuple[float, float], tuple[Tensor, Tensor]] = {}

    def _table(self, schedule: Schedule, like: Tensor) -> tuple[Tensor, Tensor]:
        """(values at the nodes, probability above each node); the nodes decrease from the highest logsnr."""
        lo, hi = ends = limits(schedule)
        if ends not in self._tables:
            value = torch.as_tensor(self.p(torch.linspace(hi, lo, self.cells + 1, dtype=torch.float64))).detach()
            value = value.to(torch.float64).expand(self.cells + 1).cpu()
            if not bool((value >= 0).all() and value.isfinite().all() and value.sum() > 0):
                raise SfumatoError(
                    f"A density must be finite, non-negative and not all zero from logsnr {lo:.4g} to {hi:.4g}."
                )
            cell = (value[1:] + value[:-1]) * (hi - lo) / (2 * self.cells)
            mass = torch.cat((torch.zeros(1, dtype=torch.float64), cell.cumsum(0)))
            self._tables[ends] = value / mass[-1], mass / mass[-1]
        value, mass = self._tables[ends]
        return value.to(like.device), mass.to(like.device)

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        (lo, hi), (value, mass) = limits(schedule), self._table(schedule, u)
        i = torch.searchsorted(mass, u.contiguous(), right=True).sub(1).clamp(0, self.cells - 1)
        width = (hi - lo) / self.cells
        top, rise, rest = value[i], (value[i + 1] - value[i]) / width, u - mass[i]
        # solve p d + rise d^2 / 2 = rest in the form without cancellation
        root = top + torch.sqrt((top**2 + 2 * rise * rest).clamp_min(0.0))
        depth = torch.where(rest > 0, 2 * rest / torch.where(root > 0, root, 1.0), 0.0)
        return (hi - i * width - depth.clamp_max(width)).clamp(lo, hi)

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        (lo, hi), (value, _) = limits(schedule), self._table(schedule, logsnr)
        place = (hi - logsnr) / (hi - lo) * self.cells
        i = place.floor().long().clamp(0, self.cells - 1)
        return torch.lerp(value[i], value[i + 1], (place - i).clamp(0.0, 1.0))


@final
class LowDiscrepancy(TimeDensity):
    """`base` with the levels of a batch spread evenly: u_i = frac(u_0 + i / golden ratio), `noise.spread`.

    Like stratified sampling over the batch (Kingma et al. 2021, 2107.00630, App. I.1), but a function of the sample's
    index alone, so that the levels do not depend on micro-batches and ranks.
    """

    def __init__(self, base: TimeDensity) -> None:
        self.base = base

    def __repr__(self) -> str:
        return f"LowDiscrepancy({self.base!r})"

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        return self.base.logsnr(u, schedule)

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        return self.base.density(logsnr, schedule)

    def levels(self, seed: int, index: Tensor | Sequence[int], role: int) -> Tensor:
        return noise.spread(seed, index, role)

    def observe(self, logsnr: Tensor, losses: Tensor) -> None:
        self.base.observe(logsnr, losses)

    def parameters(self) -> list[nn.Parameter]:
        return self.base.parameters()

    def tensors(self) -> dict[str, Tensor]:
        return self.base.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.base.load(tensors)

    @property
    def moves(self) -> bool:
        return self.base.moves


@register("density", "uniform")
def uniform() -> TimeDensity:
    """Uniform in t."""
    return UniformTime()


@register("density", "uniform-logsnr")
def uniform_logsnr() -> TimeDensity:
    """Uniform in logsnr."""
    return UniformLogSNR()


@register("density", "logit-normal")
def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeDensity:
    """t = sigmoid(mean + std n) of the flow path: logsnr ~ N(-2 mean, 4 std^2) (2403.03206, Eq. 19)."""
    return NormalLogSNR(0.0 - 2 * mean, 2 * std)


@register("density", "mode")
def mode(s: float = 1.29) -> TimeDensity:
    """SD3's mode sampling (2403.03206, Eq. 20)."""
    return Mode(s)


@register("density", "cosmap")
def cosmap() -> TimeDensity:
    """SD3's CosMap (2403.03206, Eq. 21): p = sech(logsnr/2) / (2 pi)."""
    return CosMap()


# the registered name is for data of standard deviation 1, not 0.5, which shifts ln(sigma/alpha) by ln 2
@register("density", "edm", mean=-1.2 + math.log(2))
def edm(mean: float = -1.2, std: float = 1.2) -> TimeDensity:
    """ln(sigma/alpha) ~ N(mean, std^2): logsnr ~ N(-2 mean, 4 std^2) (2206.00364, Table 1)."""
    return NormalLogSNR(0.0 - 2 * mean, 2 * std)


def from_density(p: Callable[[Tensor], Tensor], cells: int = 4096) -> TimeDensity:
    """The density proportional to any p(logsnr) >= 0."""
    return FromDensity(p, cells)


@register("density", "low-discrepancy")
def low_discrepancy(base: TimeDensity | None = None) -> TimeDensity:
    """A density (uniform in t by default) with levels spread evenly over a batch."""
    return LowDiscrepancy(base or UniformTime())


NAMED: Mapping[str, Callable[..., TimeDensity]] = Named("density")


def named(word: TimeDensity | str) -> TimeDensity:
    """A density as it is, or by its name with optional arguments: "mode(s=0.8)", "logit-normal(0.5, 0.8)"."""
    density: TimeDensity = make("density", word)
    if not isinstance(density, TimeDensity):
        raise SfumatoError(
            f"times must be a time density, such as sf.times.uniform(), or its name, not {density!r:.60}."
        )
    return density
