"""Time grids: the nodes at which a solver calls the denoiser, equally spaced in some variable.

A grid has steps + 1 times from t_start down to t_stop; t_stop = 0 means the clean signal. The flow time
tau = sigma / (alpha + sigma) runs from 1 (noise) to 0 (data) for every schedule: it is the t of the flow schedule
at the same logsnr.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.errors import SfumatoError, whole
from sfumato.roots import bisection
from sfumato.schedule import NODE_LIMIT, Schedule

MOST_STEPS = 100_000  # of a plan, a hundred times those of the longest chain in use


def _normal(start: Tensor, stop: Tensor) -> Tensor:
    """The probability of N(0.5, 2.5^2) between two levels of logsnr."""
    return torch.special.ndtr((stop - 0.5) / 2.5) - torch.special.ndtr((start - 0.5) / 2.5)


def flow_time(logsnr: Tensor) -> Tensor:
    """tau = sigma / (alpha + sigma) = sigmoid(-logsnr / 2)."""
    return torch.sigmoid(-logsnr / 2)


class Grid(abc.ABC):
    """A rule that places the nodes."""

    starts_at: ClassVar[bool] = True  # whether the first node is t_start itself

    def of(self, process: Any) -> Grid:
        """The rule for this process, or schedule; most are the same for all."""
        return self

    def times(self, schedule: Schedule, steps: int, t_start: float = 1.0, t_stop: float = 0.0) -> list[float]:
        """steps + 1 decreasing times from t_start to t_stop."""
        steps = whole("steps", steps, most=MOST_STEPS)
        if not 0 <= t_stop < t_start <= 1:
            raise SfumatoError(f"Sampling needs 0 <= t_stop < t_start <= 1, got {t_stop:g} and {t_start:g}.")
        nodes = self.nodes(schedule, steps, t_start, t_stop).tolist()
        nodes[0], nodes[-1] = float(t_start) if self.starts_at else nodes[0], float(t_stop)
        if any(not b < a for a, b in zip(nodes, nodes[1:], strict=False)) and not _ends_on_clean(nodes):
            raise SfumatoError(f"{steps} steps are too many for this grid: two nodes coincide in double precision.")
        return nodes

    @abc.abstractmethod
    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        """steps + 1 times, float64; `times` then sets the ends exactly."""


def _ends_on_clean(nodes: list[float]) -> bool:
    """Whether the last two nodes are t = 0: a schedule with sigma(0) > 0 is called there, then steps to clean data."""
    inner = nodes[:-1]
    return nodes[-1] == 0 and inner[-1] == 0 and all(b < a for a, b in zip(inner, inner[1:], strict=False))


def _clean_end(schedule: Schedule, t_stop: float) -> bool:
    return t_stop == 0 and float(schedule.sigma(0.0)) > 0


@dataclasses.dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps in t. If sigma(0) > 0, t = 0 is a node, followed by the clean signal (EDM's nodes)."""

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        if _clean_end(schedule, t_stop) and steps > 1:
            inner = torch.linspace(t_start, 0.0, steps, dtype=torch.float64)
            return torch.cat((inner, torch.zeros(1, dtype=torch.float64)))
        return torch.linspace(t_start, t_stop, steps + 1, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Rho(Grid):
    """Equal steps in (sigma/alpha)^(1/rho) (2206.00364, Eq. 5), then the clean signal; rho -> inf gives LogSNR."""

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
    """Equal steps in logsnr, limited to +-12 where it is infinite, then the clean signal."""

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        start, stop = _cut(schedule, t_start, t_stop).tolist()
        return _clean_after(schedule, start, stop, steps, t_stop, lambda lam: lam)


def _cut(schedule: Schedule, t_start: float, t_stop: float) -> Tensor:
    lam = schedule.logsnr(torch.tensor([t_start, t_stop], dtype=torch.float64))
    return torch.where(lam.isinf(), lam.clamp(-NODE_LIMIT, NODE_LIMIT), lam)


def _clean_after(
    schedule: Schedule, start: float, stop: float, steps: int, t_stop: float, logsnr: Callable[[Tensor], Tensor]
) -> Tensor:
    """`steps` nodes and the clean signal, or steps + 1 nodes if sampling stops earlier."""
    clean = t_stop == 0
    inner = schedule.time(logsnr(torch.linspace(start, stop, steps if clean else steps + 1, dtype=torch.float64)))
    return torch.cat((inner, torch.zeros(1, dtype=torch.float64))) if clean else inner


@dataclasses.dataclass(frozen=True)
class FlowTime(Grid):
    """Equal steps of m = (1 - share - middle - noise) tau + share logsnr + middle normal + noise log(1 - tau).

    Each term is rescaled to run from 0 to 1. share = middle = noise = 0 is uniform in flow time. The logsnr term puts a
    few nodes near the data and near the noise, where high-order methods need them. The normal term is the distribution
    function of N(0.5, 2.5^2) in logsnr: nodes between noise and data, where standardised data take shape. The
    log(1 - tau) term multiplies alpha / (alpha + sigma) by a constant factor per step: nodes at high noise, where
    correlated data such as images take their coarse shape.
    """

    share: float = 0.0
    middle: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if min(self.share, self.middle, self.noise) < 0 or self.share + self.middle + self.noise > 1:
            raise SfumatoError(
                f"The FlowTime grid needs share, middle and noise of at least 0 that sum to at most 1, got "
                f"{self.share:g}, {self.middle:g} and {self.noise:g}."
            )

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        nodes = self._spaced(schedule, steps, t_start, t_stop, clean=t_stop == 0)
        if t_stop == 0 and steps > 1 and bool((nodes[1:-1] <= 0).any()):
            # several nodes fall below sigma(0) > 0: end at t = 0, then at the clean signal
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

        target = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        ends = tau_stop.expand_as(target), tau_start.expand_as(target)
        tau = bisection(lambda tau: ~(measure(tau) < target), *ends, rounds=60)
        return schedule.time(-2 * torch.logit(tau))


@dataclasses.dataclass(frozen=True)
class Timesteps(Grid):
    """Integer timesteps of a model trained on `train` steps: i = 0..train-1 at t = (i + 1) / train, then clean.

    With K steps, in decreasing order (2305.08891, Table 2):
        leading   i = floor(train / K) k + offset   starts below pure noise: the first call is not at t = 1
        trailing  i = train - 1 - k train / K       rounded to integers
        linspace  i = (train - 1) k / (K - 1)       rounded to integers
    drop_last: compute leading or linspace for K + 1 and drop the lowest (as the DPM-Solver family does).
    t_start below 1 skips the integers above it; t_stop must be 0.
    """

    spacing: str = "trailing"
    train: int = 1000
    offset: int = 0
    drop_last: bool = False
    starts_at: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.spacing not in ("leading", "trailing", "linspace"):
            raise SfumatoError(f"Unknown spacing {self.spacing!r} of Timesteps: use leading, trailing or linspace.")
        if self.train < 1 or self.offset < 0 or self.offset and self.spacing != "leading":
            raise SfumatoError("Timesteps need train >= 1 and offset >= 0; only spacing='leading' takes an offset.")
        if self.drop_last and self.spacing == "trailing":
            raise SfumatoError("Timesteps with spacing='trailing' do not take drop_last.")

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        count = round(t_start * self.train)
        if t_stop != 0 or abs(count - t_start * self.train) > 1e-6:
            raise SfumatoError("Timesteps need t_start at a trained timestep and t_stop = 0, the clean signal.")
        if steps + self.drop_last > count:
            raise SfumatoError(f"{steps} steps are too many: the model has {count} trained timesteps.")
        points = steps + self.drop_last
        k = torch.arange(points, dtype=torch.float64).flip(0)
        if self.spacing == "leading":
            i = k * (count // points) + self.offset
        elif self.spacing == "linspace":
            i = ((count - 1) * k / max(points - 1, 1)).round()
        else:
            i = (count - torch.arange(steps, dtype=torch.float64) * count / steps).round() - 1
        if float(i[0]) >= self.train:
            raise SfumatoError(f"The offset {self.offset} exceeds the {self.train} trained timesteps.")
        return torch.cat((i[:steps] + 1, torch.zeros(1, dtype=torch.float64))) / self.train


def auto() -> Grid:
    """The default grid: 58 % of the measure is uniform in flow time, 23 % in logsnr, 19 % normal in mid logsnr.

    Uniform flow time follows the curvature of the probability-flow ODE on standardised data under any schedule; at mid
    logsnr points are assigned to modes, and errors made there are not corrected later; the share of logsnr keeps nodes
    near the data, where narrow modes are resolved.
    """
    return FlowTime(share=0.23, middle=0.19)
