"""Importance sampling of the noise level by loss history.

    p(t) / T = (1 - floor) sqrt(E[L_k^2]) / sum_j sqrt(E[L_j^2]) + floor / T     in the k-th of T equal parts of (0, 1)

E[L_k^2] is the mean over the latest `length` values of the level; p is uniform until every level has that many.
Source: Nichol and Dhariwal 2021 (2102.09672), Eq. 18; the floor is from its code.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.objectives.density import TimeDensity
from sfumato.schedule import Schedule


@final
class LossHistory(TimeDensity):
    """p(t) proportional to the root mean square of the latest losses at each of T levels.

    levels: T. length: values stored per level. floor: the share of the draws that stays uniform in t.
    State: `values` (T, length), newest first, and `counts` (T,) of all values so far. `observe` adds the losses of each
    batch; the loss divides by the p that its sample was drawn from, and so stays unbiased.
    """

    def __init__(self, levels: int = 1000, length: int = 10, floor: float = 1e-3) -> None:
        if levels < 1 or length < 1 or not 0 < floor <= 1:
            raise SfumatoError(
                f"LossHistory needs levels and length >= 1 and 0 < floor <= 1; got {levels}, {length} and {floor:g}."
            )
        self.count, self.length, self.floor = levels, length, floor
        self.values = torch.zeros(levels, length, dtype=torch.float64)
        self.counts = torch.zeros(levels, dtype=torch.float64)
        self._schedule: Schedule | None = None

    @property
    def full(self) -> bool:
        """Whether every level has `length` values."""
        return bool((self.counts >= self.length).all())

    @property
    def mass(self) -> Tensor:
        """P(level k), float64 (T,)."""
        even = torch.full((self.count,), 1 / self.count, dtype=torch.float64)
        size = self.values.square().mean(1).sqrt()
        if not self.full or float(size.sum()) == 0:
            return even
        return (1 - self.floor) * size / size.sum() + self.floor * even

    def _level(self, t: Tensor) -> Tensor:
        return (t * self.count - 1e-9).ceil().long().sub(1).clamp(0, self.count - 1)

    def logsnr(self, u: Tensor, schedule: Schedule) -> Tensor:
        self._schedule = schedule
        mass = self.mass.to(u.device)
        above = torch.cat((mass.new_zeros(1), mass.cumsum(0)))
        k = torch.searchsorted(above, u.contiguous() * above[-1], right=True).sub(1).clamp(0, self.count - 1)
        part = ((u * above[-1] - above[k]) / mass[k]).clamp(0, 1)
        return schedule.logsnr((k + part) / self.count)

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        t = schedule.time(logsnr)
        return self.count * self.mass.to(t.device)[self._level(t)] / schedule.dlogsnr(t).abs()

    # -- learning ------------------------------------------------------------------------------------------------

    def observe(self, logsnr: Tensor, losses: Tensor) -> None:
        """Learn from a batch: its levels (B,) and losses L(t) / p(t), (B,), drawn since the last call; in any unit."""
        if self._schedule is None:
            raise SfumatoError("A loss history must draw the noise levels itself before it learns from them.")
        level = self._level(self._schedule.time(logsnr.detach().cpu()))
        values = losses.detach().to("cpu", torch.float64) * self.count * self.mass[level]
        for k, value in zip(level.tolist(), values.tolist(), strict=True):
            self.values[k] = torch.cat((self.values.new_tensor([value]), self.values[k, :-1]))
            self.counts[k] += 1

    @property
    def moves(self) -> bool:
        return True

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "counts": self.counts}

    def load(self, tensors: dict[str, Tensor]) -> None:
        values, counts = tensors["values"], tensors["counts"]
        if values.shape != self.values.shape:
            raise SfumatoError(
                f"The history has shape {tuple(self.values.shape)}, but its checkpoint {tuple(values.shape)}."
            )
        self.values, self.counts = (v.detach().to("cpu", torch.float64, copy=True) for v in (values, counts))
