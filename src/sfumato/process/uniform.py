"""The uniform process on K symbols: each symbol is kept with probability alpha_t, or else replaced by a uniform one.

    marginal   q(z_t | x)        = alpha_t 1[z = x] + (1 - alpha_t) / K
    jump       q(z_t | z_s)      = a 1[z_t = z_s] + (1 - a) / K,   a = alpha_t / alpha_s
    posterior  q(z_s | z_t, x)   = q(z_t | z_s) q(z_s | x) / q(z_t | x)
    bridge     p(z_s | z_t)      = sum_x p(x | z_t) q(z_s | z_t, x)

all for each symbol by itself. K = 2 is the binomial kernel of Sohl-Dickstein et al. 2015 (1503.03585, Table App. 1,
beta_t = 1 - a), and alpha_t = 1 - t (`schedules.Flow`) is its schedule, beta_i = 1 / (T - i + 1) at t = i / T, which
erases one T-th of the signal in each step (Section 2.4.1). Any K: Hoogeboom et al. 2021 (2102.05379), Eq. 11-15.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from sfumato.belief import Logits, broadcast
from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.schedule import Schedule, Time, as_time


@register("process", "Uniform")
@dataclasses.dataclass(frozen=True)
class Uniform:
    """The uniform process for symbols 0 .. states - 1, int64 of any shape (B, *shape).

    Of the schedule only alpha is used, as the probability to be kept; t = 0 is the data itself. Randomness comes as
    standard normal numbers, as for the Gaussian process: a symbol is drawn at u = Phi(noise).
    """

    schedule: Schedule
    states: int = 2

    def __post_init__(self) -> None:
        if self.states < 2:
            raise SfumatoError(f"A uniform process needs at least 2 states, not {self.states}.")
        start, stop = (float(self.schedule.alpha(t)) for t in (0.0, 1.0))
        if not 0 <= stop < start <= 1:
            raise SfumatoError(
                f"{type(self.schedule).__name__} keeps a symbol with probability {start:g} at t = 0 and {stop:g} at "
                "t = 1: a uniform process needs a schedule whose alpha falls within [0, 1], such as Flow or Cosine."
            )

    def keep(self, t: Time) -> Tensor:
        """alpha_t, float64; 1 at t = 0."""
        t = as_time(t)
        return torch.where(t == 0, 1.0, self.schedule.alpha(t))

    def prior(self, noise: Tensor) -> Tensor:
        """z_1 of a uniform law, one symbol for each number of `noise`."""
        return self._symbol(torch.special.ndtr(noise.double()))

    def corrupt(self, x: Tensor, t: Time, noise: Tensor) -> Tensor:
        """z_t ~ q(z_t | x); x and noise (B, *shape), t a number or (B,)."""
        u = torch.special.ndtr(noise.double())
        keep = broadcast(self.keep(t), u)
        return torch.where(u < keep, x, self._symbol((u - keep) / (1 - keep).clamp_min(1e-300)))

    def marginal(self, x: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(z_t | x), (B, *shape, K)."""
        hot = self._hot(x, dtype)
        return self._mixed(hot, broadcast(self.keep(t), hot))

    def evidence(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log q(z_t | x = k) for every k, (B, *shape, K): what a symbol says of itself; -inf where it is impossible."""
        return self.marginal(z, t, dtype).log()

    def read(self, y: Tensor, z: Tensor, t: Time) -> Logits:
        """The belief p(x_i | z) ~ exp(y_i) q(z_i | x_i), where y (B, *shape, K) is what the other symbols say."""
        return Logits(y + self.evidence(z, t, y.dtype), z, t)

    def bridge(self, belief: Logits, s: Time) -> Tensor:
        """p(z_s | z_t) of each symbol under the belief about z_t, s <= t: (B, *shape, K)."""
        return self._between(belief.prob, belief.z, s, belief.t)

    def posterior(self, z: Tensor, x: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(z_s | z_t = z, x) by Bayes' rule, s <= t: (B, *shape, K)."""
        return self._between(self._hot(x, dtype), z, s, t)

    def _between(self, prob: Tensor, z: Tensor, s: Time, t: Time) -> Tensor:
        """sum_x p(x) q(z_t | z_s) q(z_s | x) / q(z_t | x), in K operations a symbol."""
        at, above = self.keep(s), self.keep(t)
        hot = self._hot(z, prob.dtype)
        # q(z_t | x) is zero only where x is impossible, and prob with it
        weight = prob / self._mixed(hot, broadcast(above, prob)).clamp_min(torch.finfo(prob.dtype).tiny)
        return self._mixed(hot, broadcast(above / at, prob)) * self._mixed(weight, broadcast(at, prob))

    def draw(self, prob: Tensor, noise: Tensor) -> Tensor:
        """A symbol of each law prob (B, *shape, K), by the inverse of its distribution function at u = Phi(noise)."""
        steps = prob.double().cumsum(-1)
        u = torch.special.ndtr(noise.double()) * steps[..., -1]
        return (u[..., None] >= steps).sum(-1).clamp_max(self.states - 1)

    def _symbol(self, u: Tensor) -> Tensor:
        return (u * self.states).long().clamp(0, self.states - 1)

    def _hot(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.nn.functional.one_hot(x, self.states).to(dtype)

    def _mixed(self, weight: Tensor, keep: Tensor) -> Tensor:
        """The kernel applied to K weights: keep w_k + (1 - keep) mean(w)."""
        return keep * weight + (1 - keep) * weight.mean(-1, keepdim=True)

    def config(self) -> dict[str, Any]:
        return {"name": "Uniform", "args": {"schedule": self.schedule.config(), "states": self.states}}
