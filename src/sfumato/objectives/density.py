"""The interface of time densities: a distribution of logsnr under a schedule, by its quantile function and density."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.schedule import DRAWN_LIMIT, Schedule

MISSED = 1e-4  # the share of draws beyond either end of the levels that count as trained


def limits(schedule: Schedule) -> tuple[float, float]:
    """The (lowest, highest) logsnr that a density draws under this schedule: its range within +-15."""
    lo, hi = schedule.logsnr_range
    return max(lo, -DRAWN_LIMIT), min(hi, DRAWN_LIMIT)


def drawn_levels(times: TimeDensity, process: Any, missed: float = MISSED) -> tuple[float, float]:
    """The (lowest, highest) noise level that a density draws, except for a share `missed` at either end.

    In the network's input of `process`, -logsnr / 8; the whole range of the schedule if the density changes.
    """
    clock, ends = process.clock, torch.tensor([missed, 1 - missed], dtype=torch.float64)
    with torch.no_grad():
        logsnr = ends.new_tensor(limits(clock)[::-1]) if times.moves else times.logsnr(ends, clock)
        low, high = process.noise_level(clock.time(logsnr)).tolist()
    return low, high


class TimeDensity(abc.ABC):
    """A distribution of logsnr within the schedule's range. One that learns from the losses overrides the last five
    members."""

    @abc.abstractmethod
    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        """The quantile function: uniform u in (0, 1) gives logsnr, decreasing in u (u = 0 is data)."""

    @abc.abstractmethod
    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """p(logsnr), integrating to 1 over the range."""

    def levels(self, seed: int, index: Tensor | Sequence[int], role: int) -> Tensor:
        """The uniform numbers u in (0, 1) of samples `index`, float64 (B,), independent of each other."""
        return noise.uniform(seed, index, (), role, dtype=torch.float64)

    def observe(self, logsnr: Tensor, losses: Tensor) -> None:
        """Learn from the losses w |eps - eps_hat|^2 / p, (B,), at the drawn levels logsnr (B,); by default nothing."""
        return None

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that `observe` trains."""
        return []

    def tensors(self) -> dict[str, Tensor]:
        """The state for a checkpoint."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        return None

    @property
    def moves(self) -> bool:
        """Whether p changes during training: the loss then needs a weight, so that it divides by p."""
        return False
