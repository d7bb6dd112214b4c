"""The interface of time densities: a law of logsnr under a schedule, as a quantile and a density."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.schedule import DRAWN_LIMIT, Schedule

MISSED = 1e-4  # of the draws lie beyond either end of the levels that a network is said to be trained at


def limits(schedule: Schedule) -> tuple[float, float]:
    """(lowest, highest) logsnr that a density draws under this schedule: its range, cut to +-15."""
    lo, hi = schedule.logsnr_range
    return max(lo, -DRAWN_LIMIT), min(hi, DRAWN_LIMIT)


def drawn_levels(times: TimeDensity, process: Any, missed: float = MISSED) -> tuple[float, float]:
    """(lowest, highest) noise level between which a density draws, but for a share `missed` at either end.

    In what a network of `process` hears, -logsnr / 8: all that the schedule has where the density moves.
    """
    clock, ends = process.clock, torch.tensor([missed, 1 - missed], dtype=torch.float64)
    with torch.no_grad():
        logsnr = ends.new_tensor(limits(clock)[::-1]) if times.moves else times.logsnr(ends, clock)
        low, high = process.noise_level(clock.time(logsnr)).tolist()
    return low, high


class TimeDensity(abc.ABC):
    """A law on logsnr, cut to the range of the schedule. One that learns from the losses overrides the last five."""

    @abc.abstractmethod
    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        """The quantile: u uniform in (0, 1) gives logsnr, falling in u (u = 0 is data)."""

    @abc.abstractmethod
    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """p(logsnr), integrating to 1 over the range."""

    def levels(self, seed: int, index: Tensor | Sequence[int], role: int) -> Tensor:
        """The places u in (0, 1) of samples `index`, float64 (B,): independent of each other."""
        return noise.uniform(seed, index, (), role, dtype=torch.float64)

    def observe(self, logsnr: Tensor, losses: Tensor) -> None:
        """Learn from the losses w |eps - eps_hat|^2 / p, (B,), at the drawn levels logsnr (B,); by default nothing."""
        return None

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that `observe` trains."""
        return []

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint must hold."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        return None

    @property
    def moves(self) -> bool:
        """Whether p changes while a network is trained under it: the loss then needs a weight, and divides by p."""
        return False
