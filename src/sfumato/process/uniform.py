"""The uniform process on K symbols: each is kept with probability alpha_t, or else replaced by a uniform one.

    q(z_t | x) = alpha_t 1[z = x] + (1 - alpha_t) / K
    rate       = (1 - alpha) / (K q(z | x)) [KL(q(. | x) || q(. | h)) + d - 1 - log d],   d = q(z | x) / q(z | h)

in nats a unit of the level, with q(. | h) = sum_k h(k) q(. | k) and h(k) ~ p(x = k | z) / q(z | k), what the other
symbols say of one. K = 2 is the binomial kernel of Sohl-Dickstein et al. 2015 (1503.03585, Table App. 1, beta_t = 1 -
a), and alpha_t = 1 - t (`schedules.Flow`) is its schedule, beta_i = 1 / (T - i + 1) at t = i / T, which erases one T-th
of the signal in each step (Section 2.4.1). Any K: Hoogeboom et al. 2021 (2102.05379), Eq. 11-15; the rate: von Ruette
et al. 2025 (2503.04482), Eq. 8, which for this law is that of Schiff et al. 2024 (2412.10193).
"""

from __future__ import annotations

import dataclasses
from typing import final

import torch
from torch import Tensor

from sfumato.belief import Logits, broadcast
from sfumato.process.symbols import Symbols
from sfumato.registry import register


@register("process", "uniform")
@final
@dataclasses.dataclass(frozen=True)
class Uniform(Symbols):
    """Symbols 0 .. states - 1, kept with probability alpha(t) of the schedule, or else uniform."""

    @property
    def size(self) -> int:
        return self.states

    @property
    def law(self) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)

    def replaced(self, u: Tensor) -> Tensor:
        return (u * self.states).long().clamp(0, self.states - 1)

    def rate(self, belief: Logits, x: Tensor) -> Tensor:
        dtype = torch.promote_types(belief.logits.dtype, torch.float32)
        z, t = belief.z, belief.t
        others = (belief.logits.to(dtype) - self.evidence(z, t, dtype)).softmax(-1)
        keep = broadcast(self.keep(t).to(dtype), others)
        ours = keep * others + (1 - keep) / self.states  # q(. | h)
        true = self.marginal(x, t, dtype)
        tiny = torch.finfo(dtype).tiny
        log_ratio = true.clamp_min(tiny).log() - ours.clamp_min(tiny).log()
        own = z[..., None]
        log_d, at = log_ratio.gather(-1, own)[..., 0], true.gather(-1, own)[..., 0]
        apart = (true * log_ratio).sum(-1) + torch.expm1(log_d) - log_d
        return (1 - broadcast(self.keep(t), at)) / (self.states * at).clamp_min(tiny) * apart
