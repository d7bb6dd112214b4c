"""The uniform process on K symbols: each is kept with probability alpha_t, or else replaced by a uniform draw.

    q(z_t | x) = alpha_t 1[z = x] + (1 - alpha_t) / K
    rate       = (1 - alpha) / (K q(z | x)) [KL(q(. | x) || q(. | h)) + d - 1 - log d],   d = q(z | x) / q(z | h)

in nats per unit of the level, with q(. | h) = sum_k h(k) q(. | k) and h(k) ~ p(x = k | z) / q(z | k), the evidence of
the other symbols on one. K = 2 is the binomial kernel of Sohl-Dickstein et al. 2015 (1503.03585, Table App. 1, beta_t =
1 - a), and alpha_t = 1 - t (`schedules.Flow`) is its schedule, beta_i = 1 / (T - i + 1) at t = i / T, which erases one
T-th of the signal in each step (Section 2.4.1). Any K: Hoogeboom et al. 2021 (2102.05379), Eq. 11-15; the rate: von
Ruette et al. 2025 (2503.04482), Eq. 8, which for uniform pi reduces to Schiff et al. 2024 (2412.10193).
"""

from __future__ import annotations

import dataclasses
from typing import final

import torch
from torch import Tensor

from sfumato.process.symbols import Symbols
from sfumato.registry import register


@register("process", "uniform")
@final
@dataclasses.dataclass(frozen=True)
class Uniform(Symbols):
    """Symbols 0 .. states - 1, kept with probability alpha(t) of the schedule, or else redrawn uniformly."""

    @property
    def size(self) -> int:
        return self.states

    @property
    def law(self) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)

    def replaced(self, u: Tensor) -> Tensor:
        return (u * self.states).long().clamp(0, self.states - 1)
