"""Zero terminal SNR: a schedule moved so that nothing of the data is left at t = 1.

    alpha'(t) = (alpha(t) - alpha(1)) alpha(k) / (alpha(k) - alpha(1)):   alpha'(1) = 0 and alpha'(k) = alpha(k)

With alpha(1) > 0 the network never saw the pure noise that sampling starts from, and what z_1 still knew, its mean
first of all (the brightness of an image), is lost. Source: Lin et al. 2023 (2305.08891), Algorithm 1.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.schedule import Schedule, require
from sfumato.schedules.derived import FromBetas, bisected


@register("schedule", "zero-terminal-snr")
@dataclasses.dataclass(frozen=True)
class ZeroTerminalSNR(Schedule):
    """`base` with alpha shifted and scaled until alpha(1) = 0 and alpha(kept) is what it was.

    A variance-preserving base stays so, sigma = sqrt(1 - alpha^2); any other keeps its sigma. kept: the time of the
    first entry where the base is a table (`zero_terminal_snr` sets it), else 0. eps and the score cannot be predicted
    at alpha = 0: targets v, x and F can.
    """

    base: Schedule
    kept: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.kept < 1, self, f"a kept time in [0, 1), got {self.kept:g}")
        if not 0 < self._last < self._first:
            raise SfumatoError(
                f"{type(self.base).__name__} goes from alpha = {self._first:g} to {self._last:g}, of which no zero "
                "terminal SNR can be made: alpha must fall, and not be 0 already."
            )

    @cached_property
    def _first(self) -> float:
        return float(self.base.alpha(self.kept))

    @cached_property
    def _last(self) -> float:
        return float(self.base.alpha(1.0))

    @cached_property
    def _start(self) -> float:
        """1 - alpha(kept), of a variance-preserving base."""
        return float(_lack(*self.base(self.kept)))

    @cached_property
    def _preserving(self) -> bool:
        alpha, sigma = self.base(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
        return bool(((alpha**2 + sigma**2 - 1).abs() < 1e-12).all())

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), (first, last) = self.base.curve(t), (self._first, self._last)
        moved = torch.where(t >= 1, 0.0, ((alpha - last) * (first / (first - last))).clamp_min(0.0))
        if not self._preserving:
            return moved, sigma
        # 1 - alpha' by way of 1 - alpha, which sigma knows to full precision near the data
        lack = _lack(alpha, sigma)
        lack = lack + last / (first - last) * (lack - self._start)
        return moved, torch.where(t >= 1, 1.0, (lack * (1 + moved)).clamp_min(0.0).sqrt())

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        da, ds = self.base.curve_rates(t)
        da = da * (self._first / (self._first - self._last))
        if not self._preserving:
            return da, ds
        alpha, sigma = self.curve(t)
        return da, -alpha * da / sigma

    def curve_time(self, logsnr: Tensor) -> Tensor:
        if not self._preserving:
            return bisected(self, logsnr)
        moved, share = torch.sigmoid(logsnr).sqrt(), self._last / self._first
        lack = torch.sigmoid(-logsnr) / (1 + moved)
        lack = lack - share * (lack - self._start)  # 1 - alpha of the base
        alpha = moved * (1 - share) + self._last
        return self.base.curve_time(2 * alpha.log() - (lack * (1 + alpha)).clamp_min(0.0).log())


def _lack(alpha: Tensor, sigma: Tensor) -> Tensor:
    """1 - alpha of a variance-preserving pair, without cancellation."""
    return sigma**2 / (1 + alpha)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The schedule with alpha(1) = 0: rescaled as in 2305.08891, Algorithm 1, or itself where it ends there already.

    A table of betas keeps its first entry, at t = 1/N, as published; any other schedule its data end. Raises for a
    schedule whose alpha does not fall (variance exploding), which has no such form.
    """
    if float(schedule.alpha(1.0)) == 0:
        return schedule
    return ZeroTerminalSNR(schedule, 1 / len(schedule.betas) if isinstance(schedule, FromBetas) else 0.0)
