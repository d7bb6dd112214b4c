"""Where a solver calls the denoiser: nodes from t_start down to t_stop, equally spaced in some clock.

A grid is steps + 1 times; the last is t_stop, and t_stop = 0 stands for the clean signal. The flow time
tau = sigma / (alpha + sigma) runs from 1 (noise) to 0 (data) for every schedule, and is the time of the flow path
with the same logsnr.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.roots import bisection
from sfumato.schedule import NODE_LIMIT, Schedule


def _normal(start: Tensor, stop: Tensor) -> Tensor:
    """The part of N(0.5, 2.5^2) between two levels of logsnr."""
    return torch.special.ndtr((stop - 0.5) / 2.5) - torch.special.ndtr((start - 0.5) / 2.5)


def flow_time(logsnr: Tensor) -> Tensor:
    """tau = sigma / (alpha + sigma) = sigmoid(-logsnr / 2)."""
    return torch.sigmoid(-logsnr / 2)


class Grid(abc.ABC):
    """The rule that places the nodes."""

    starts_at: ClassVar[bool] = True  # whether the first node is t_start itself

    def times(self, schedule: Schedule, steps: int, t_start: float = 1.0, t_stop: float = 0.0) -> list[float]:
        """steps + 1 falling times, the first t_start and the last t_stop."""
        if steps < 1:
            raise SfumatoError(f"A solver needs at least 1 step, got {steps}.")
        if not 0 <= t_stop < t_start <= 1:
            raise SfumatoError(f"Sampling needs 0 <= t_stop < t_start <= 1, got {t_stop:g} and {t_start:g}.")
        nodes = self.nodes(schedule, steps, t_start, t_stop).tolist()
        nodes[0], nodes[-1] = float(t_start) if self.starts_at else nodes[0], float(t_stop)
        if any(not b < a for a, b in zip(nodes, nodes[1:], strict=False)) and not _ends_on_clean(nodes):
            raise SfumatoError(f"{steps} steps are too many for this grid: two nodes coincide in double precision.")
        return nodes

    @abc.abstractmethod
    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        """steps + 1 times, float64; the ends are set exactly by `times`."""


def _ends_on_clean(nodes: list[float]) -> bool:
    """A schedule with sigma(0) > 0 may be called at t = 0 and then step on to the clean signal."""
    inner = nodes[:-1]
    return nodes[-1] == 0 and inner[-1] == 0 and all(b < a for a, b in zip(inner, inner[1:], strict=False))


def _clean_end(schedule: Schedule, t_stop: float) -> bool:
    return t_stop == 0 and float(schedule.sigma(0.0)) > 0


@dataclasses.dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps in t. Where sigma(0) > 0, t = 0 is a node, and the clean signal comes after it (EDM's nodes)."""

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        if _clean_end(schedule, t_stop) and steps > 1:
            inner = torch.linspace(t_start, 0.0, steps, dtype=torch.float64)
            return torch.cat((inner, torch.zeros(1, dtype=torch.float64)))
        return torch.linspace(t_start, t_stop, steps + 1, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Rho(Grid):
    """Equal steps in (sigma/alpha)^(1/rho) (2206.00364, Eq. 5), then the clean signal; rho -> inf is logsnr."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise SfumatoError(f"The Rho grid needs rho > 0, got {self.rho:g}.")

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        lam = _cut(schedule, t_start, t_stop)
        start, stop = (torch.exp(-lam / (2 * self.rho))).tolist()
        return _clean_after(schedule, start, stop, steps, t_stop, lambda r: -2 * self.rho * r.log())


@dataclasses.dataclass(frozen=True)
class LogSNR(Grid):
    """Equal steps in logsnr, cut to +-12 where it is infinite; to the clean signal at the end."""

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        start, stop = _cut(schedule, t_start, t_stop).tolist()
        return _clean_after(schedule, start, stop, steps, t_stop, lambda lam: lam)


def _cut(schedule: Schedule, t_start: float, t_stop: float) -> Tensor:
    lam = schedule.logsnr(torch.tensor([t_start, t_stop], dtype=torch.float64))
    return torch.where(lam.isinf(), lam.clamp(-NODE_LIMIT, NODE_LIMIT), lam)


def _clean_after(
    schedule: Schedule, start: float, stop: float, steps: int, t_stop: float, logsnr: Callable[[Tensor], Tensor]
) -> Tensor:
    """`steps` nodes and the clean signal, or steps + 1 nodes where sampling stops earlier."""
    clean = t_stop == 0
    inner = schedule.time(logsnr(torch.linspace(start, stop, steps if clean else steps + 1, dtype=torch.float64)))
    return torch.cat((inner, torch.zeros(1, dtype=torch.float64))) if clean else inner


@dataclasses.dataclass(frozen=True)
class FlowTime(Grid):
    """Nodes at equal steps of m = (1 - share - middle - noise) tau + share logsnr + middle normal + noise log(1 - tau).

    Each part runs from 0 to 1. share = middle = noise = 0 is uniform in flow time. A share of logsnr puts a few nodes
    near the data and near the noise, where high order needs them. The normal part is that of N(0.5, 2.5^2) in logsnr:
    between noise and data, where standardised data take shape. Steps equal in log(1 - tau) multiply alpha / (alpha +
    sigma) by one factor: nodes in high noise alone, where correlated data, images foremost, take their coarse shape.
    """

    share: float = 0.0
    middle: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if min(self.share, self.middle, self.noise) < 0 or self.share + self.middle + self.noise > 1:
            raise SfumatoError(
                f"The FlowTime grid needs a share of logsnr, a middle and a noise part of 0 or more and 1 together at "
                f"most, got {self.share:g}, {self.middle:g} and {self.noise:g}."
            )

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        nodes = self._spaced(schedule, steps, t_start, t_stop, clean=t_stop == 0)
        if t_stop == 0 and steps > 1 and bool((nodes[1:-1] <= 0).any()):
            # steps so small that several fall below sigma(0) > 0: end on it, and then on the clean signal
            nodes = torch.cat((self._spaced(schedule, steps - 1, t_start, t_stop, clean=False), nodes[-1:]))
        return nodes

    def _spaced(self, schedule: Schedule, steps: int, t_start: float, t_stop: float, clean: bool) -> Tensor:
        lam_start, lam_stop = schedule.logsnr(torch.tensor([t_start, t_stop], dtype=torch.float64))
        tau_start = flow_time(lam_start)
        tau_stop = torch.zeros_like(tau_start) if clean else flow_time(lam_stop)
        cut = _cut(schedule, t_start, t_stop)
        logs = torch.nn.functional.logsigmoid(cut / 2)  # log(1 - tau)

        def measure(tau: Tensor) -> Tensor:
            lam = (-2 * torch.logit(tau)).clamp(cut[0], cut[1])
            linear = (tau_start - tau) / (tau_start - tau_stop)
            normal = _normal(cut[0], lam) / _normal(cut[0], cut[1])
            coarse = torch.nn.functional.logsigmoid(lam / 2) - logs[0]
            flow = (1 - self.share - self.middle - self.noise) * linear + self.noise * coarse / (logs[1] - logs[0])
            return flow + self.share * (lam - cut[0]) / (cut[1] - cut[0]) + self.middle * normal

        wanted = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        ends = tau_stop.expand_as(wanted), tau_start.expand_as(wanted)
        tau = bisection(lambda tau: ~(measure(tau) < wanted), *ends, rounds=60)
        return schedule.time(-2 * torch.logit(tau))


@dataclasses.dataclass(frozen=True)
class Timesteps(Grid):
    """The integers of a model trained on `train` steps: i = 0..train-1 stands at t = (i + 1) / train; clean after them.

    With K steps, in falling order (2305.08891, Table 2):
        leading   i = floor(train / K) k + offset   stops short of pure noise: the first call is not at t = 1
        trailing  i = train - 1 - k train / K       rounded to integers
        linspace  i = (train - 1) k / (K - 1)       rounded to integers
    drop_last: leading and linspace of K + 1, of which the lowest is left out (the DPM-Solver family's habit).
    t_start below 1 leaves out the integers above it; t_stop is 0.
    """

    spacing: str = "trailing"
    train: int = 1000
    offset: int = 0
    drop_last: bool = False
    starts_at: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.spacing not in ("leading", "trailing", "linspace"):
            raise SfumatoError(f"Timesteps are spaced leading, trailing or linspace, got {self.spacing!r}.")
        if self.train < 1 or self.offset < 0 or self.offset and self.spacing != "leading":
            raise SfumatoError("Timesteps need train >= 1, and an offset >= 0 with the spacing 'leading' alone.")
        if self.drop_last and self.spacing == "trailing":
            raise SfumatoError("Timesteps with the spacing 'trailing' have no last one to drop.")

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        count = round(t_start * self.train)
        if t_stop != 0 or abs(count - t_start * self.train) > 1e-6:
            raise SfumatoError("Timesteps run from an integer of the trained ones to the clean signal: t_stop is 0.")
        if steps + self.drop_last > count:
            raise SfumatoError(f"{steps} steps are too many for {count} trained ones.")
        points = steps + self.drop_last
        k = torch.arange(points, dtype=torch.float64).flip(0)
        if self.spacing == "leading":
            i = k * (count // points) + self.offset
        elif self.spacing == "linspace":
            i = ((count - 1) * k / max(points - 1, 1)).round()
        else:
            i = (count - torch.arange(steps, dtype=torch.float64) * count / steps).round() - 1
        if float(i[0]) >= self.train:
            raise SfumatoError(f"The offset {self.offset} leads beyond the {self.train} trained steps.")
        return torch.cat((i[:steps] + 1, torch.zeros(1, dtype=torch.float64))) / self.train


def auto() -> Grid:
    """The default: of the measure 58 % is uniform in flow time, 23 % in logsnr, 19 % lies in the middle of logsnr.

    Uniform flow time follows the curvature of the probability-flow ODE on standardised data, whatever the schedule;
    the middle of logsnr is where points are parted between modes, and an error made there is not undone; the share of
    logsnr keeps nodes near the data, where narrow modes are resolved.
    """
    return FlowTime(share=0.23, middle=0.19)
