"""Counts that lose each of their units independently, and are born again from nothing: Blackout diffusion.

    marginal   q(z_t | x)       = Binomial(z_t; x, alpha_t),   each of x units being alive with probability alpha_t
    posterior  q(z_s | z_t, x)  : z_s = z_t + Binomial(x - z_t, rho),   rho = (alpha_s - alpha_t) / (1 - alpha_t)
    path KL    alpha [m log(m / mu) - m + mu] per unit of the level,   m = x - z,   mu = E[x - z | z],
               so that -log p(x) <= int -alpha' / (1 - alpha) E[m log(m / mu) - m + mu] dt

They are the `Generator` in which a count z falls to z - 1 at the rate z, with all these forms closed. Of counts 0 and
1, one for each symbol that a site may have, it is `Masked`, which reveals symbols with the same probability rho.
Source: Santos et al. 2023 (2305.11089).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import final

import torch
from torch import Tensor

from sfumato.belief import Logits, broadcast
from sfumato.process.discrete import divergence
from sfumato.process.generator import Generator, column, times
from sfumato.registry import register
from sfumato.schedule import Time


@register("process", "counts")
@final
@dataclasses.dataclass(frozen=True)
class Counts(Generator):
    """Counts 0 .. states - 1, each of whose units survives with probability alpha(t) of the schedule; the prior is 0.

    The belief is a law of the whole count, so of the missing m = x - z too, and a step draws exactly those that it
    brings back: Poisson counts are sampled exactly in one step. A network hears a count as K channels, 1 up to it and
    -1 beyond, and says what the other counts know of it (row "other"), or its law itself ("x").
    """

    @functools.cached_property
    def pi(self) -> Tensor:
        return self.hot(torch.tensor(0), torch.float64)

    @property
    def size(self) -> int:
        return self.states

    @property
    def jump_rates(self) -> Tensor:
        return torch.diag(self._decay[1:], -1)

    @functools.cached_property
    def _decay(self) -> Tensor:
        return torch.arange(self.states, dtype=torch.float64)

    def _log_kernel(self, a: Tensor) -> Tensor:
        """log Binomial(z; x, a), float64 (K, K) or (B, K, K): rows x, columns z."""
        z = torch.arange(self.states, dtype=torch.float64, device=a.device)
        x, a = z[:, None], a[..., None, None]
        choose = torch.lgamma(x + 1) - torch.lgamma(z + 1) - torch.lgamma(x - z + 1)  # -inf for z > x
        return choose + torch.xlogy(z, a) + torch.special.xlog1py((x - z).clamp_min(0), -a)

    def _kernel(self, a: Tensor, like: Tensor) -> Tensor:
        return self._log_kernel(a.to(like.device)).exp()

    def evidence(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        keep = self.keep(t).to(z.device).clamp_min(1e-300)  # at alpha = 0 the limit of impossible counts
        return column(self._log_kernel(keep), z).to(dtype)

    def rate(self, belief: Logits, x: Tensor) -> Tensor:
        """alpha [m log(m / mu) - m + mu], m = x - z, mu = E[x - z | z]: the path KL, which asks for mu alone."""
        prob = belief.prob.to(torch.promote_types(belief.logits.dtype, torch.float32))
        missing = (torch.arange(self.states, device=x.device) - belief.z[..., None]).clamp_min(0)
        nats = divergence((x - belief.z).to(prob), (prob * missing).sum(-1))
        return broadcast(self.keep(belief.t), nats) * nats

    def _between(self, prob: Tensor, z: Tensor, s: Time, t: Time) -> Tensor:
        """sum_m p(x - z = m) Binomial(z_s - z; m, rho)."""
        keep_s, keep_t = self.keep(s), self.keep(t)
        rho = (keep_s - keep_t) / (1 - keep_t).clamp_min(1e-300)
        return _shifted(times(_shifted(prob, z), self._kernel(rho, prob)), -z)

    def _code(self, z: Tensor) -> Tensor:
        return torch.where(z[..., None] >= torch.arange(self.states, device=z.device), 1.0, -1.0)


def _shifted(prob: Tensor, by: Tensor) -> Tensor:
    """prob(. + by) along the last axis, 0 beyond its ends."""
    at, last = torch.arange(prob.shape[-1], device=prob.device) + by[..., None], prob.shape[-1] - 1
    return torch.where((at >= 0) & (at <= last), prob.gather(-1, at.clamp(0, last)), 0.0)
