"""Zero terminal SNR: rescale a schedule so that no signal is left at t = 1.

    alpha'(t) = (alpha(t) - alpha(1)) alpha(k) / (alpha(k) - alpha(1)):   alpha'(1) = 0 and alpha'(k) = alpha(k)

If alpha(1) > 0, sampling starts from pure noise that the network never saw in training, where z_1 still carried the
mean of the data; samples then lose it (the brightness of images). Source: Lin et al. 2023 (2305.08891), Algorithm 1.
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
    """`base` with alpha shifted and scaled so that alpha(1) = 0 and alpha(kept) is unchanged.

    A variance-preserving base stays variance-preserving, sigma = sqrt(1 - alpha^2); any other keeps its sigma. kept:
    the time of the first entry if the base is a table (`zero_terminal_snr` sets it), else 0. Use target v, x or F: at
    alpha = 0 a prediction of eps or the score carries no information on x.
    """

    base: Schedule
    kept: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.kept < 1, self, f"a kept time in [0, 1), got {self.kept:g}")
        if not 0 < self._last < self._first:
            raise SfumatoError(
                f"{type(self.base).__name__} goes from alpha = {self._first:g} to {self._last:g} and cannot be "
                "rescaled to zero terminal SNR: alpha must decrease, to a value above 0."
            )

    @cached_property
    def _first(self) -> float:
        return float(self.base.alpha(self.kept))

    @cached_property
    def _last(self) -> float:
        return float(self.base.alpha(1.0))

    @cached_property
    def _start(self) -> float:
        """1 - alpha(kept) of a variance-preserving base."""
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
        # compute 1 - alpha' from 1 - alpha, which is known to full precision from sigma near the data
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
    """Rescale a schedule to alpha(1) = 0 (2305.08891, Algorithm 1); unchanged if it already ends there.

    As published, a table of betas keeps its first entry, at t = 1/N; any other schedule keeps alpha(0). Raises
    SfumatoError if alpha does not decrease (variance exploding).
    """
    if float(schedule.alpha(1.0)) == 0:
        return schedule
    return ZeroTerminalSNR(schedule, 1 / len(schedule.betas) if isinstance(schedule, FromBetas) else 0.0)
