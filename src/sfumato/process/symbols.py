"""Symbols under a Markov chain that acts on each of them independently, in the keep probability alpha_t.

    marginal   q(z_t | x)        from one symbol to each, S x S numbers at most: `spread`, `likelihood`
    posterior  q(z_s | z_t, x)   = q(z_t | z_s) q(z_s | x) / q(z_t | x)
    bridge     p(z_s | z_t)      = sum_x p(x | z_t) C(z_s | z_t, x)
               eta 1: C is the posterior;   eta 0: C keeps z_t as often as the marginals allow, with probability
               min(1, q(z_s = z | x) / q(z_t = z | x)), or else draws from (q(z_s | x) - q(z_t | x))_+, normalised;
               restart: C = q(z_s | x), noise that is fresh;   else a mixture of the three
    path KL    sum_y R(y -> z) [r_y log(r_y / r'_y) - r_y + r'_y],   r_y = q(y | x) / q(z | x), r' of the belief's own
    network    p(x_i | z) ~ exp(y_i) q(z_i | x_i): y_i is the evidence on x_i from all other symbols (`rows` has others)

`Mixing` replaces symbols by draws from a distribution (`Masked`, `Uniform`, ..), `Generator` has any matrix of rates
(`Ladder`).
Sources: Austin et al. 2021 (2107.03006); Campbell et al. 2022 (2205.14987) for rates and their bound; Song et al. 2020
(2010.02502), App. A, and Gat et al. 2024 (2407.15595) for eta 0; Wang et al. 2025 (2503.00307) for restarts.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from sfumato import registry
from sfumato.belief import Logits
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.process import rows
from sfumato.process.discrete import Discrete, divergence
from sfumato.schedule import Time, as_time


@dataclasses.dataclass(frozen=True)
class Symbols(Discrete):
    """Symbols 0 .. states - 1, int64 of any shape (B, *shape); noisy ones 0 .. size - 1.

    row: what a network says of each symbol, one of `rows` (other, x, z, ratio, rate).
    """

    row: str = dataclasses.field(default="other", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        rows.check(self)

    # -- defined by subclasses ---------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def pi(self) -> Tensor:
        """The prior of a symbol, its distribution at alpha = 0, float64 (size,)."""

    @abc.abstractmethod
    def spread(self, prob: Tensor, t: Time) -> Tensor:
        """sum_k p(k) q(z_t | x = k), (B, *shape, size), for p (B, *shape, K)."""

    @abc.abstractmethod
    def unspread(self, zeta: Tensor, t: Time) -> Tensor:
        """p up to a factor, (B, *shape, K), given the distribution `spread` among the K symbols of the data, of sum 1:
        the inverse of `spread`."""

    @abc.abstractmethod
    def likelihood(self, z: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(z_t = z | z_s = y) for every y, (B, *shape, size), s <= t."""

    @abc.abstractmethod
    def into(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """The rate of jumps y -> z per unit of the level, (B, *shape, size), or (B, *shape, 1) if all y share it."""

    @abc.abstractmethod
    def _fewest(self, prob: Tensor, z: Tensor, s: Time, t: Time) -> Tensor:
        """sum_x p(x) C(z_s | z_t, x) for eta = 0, (B, *shape, size)."""

    @property
    def size(self) -> int:
        return len(self.pi)

    @functools.cached_property
    def _all_replaced(self) -> bool:
        return bool((self.pi == 0).any())

    # -- the loss rate -----------------------------------------------------------------------------------------------

    def rate(self, belief: Logits, x: Tensor) -> Tensor:
        """The integrand of the path KL, in nats per unit of the level, for each symbol (B, *shape):

        sum_y R(y -> z) [r_y log(r_y / r'_y) - r_y + r'_y],   r = q / q(z),   r' = p / p(z)

        with the true marginal q of the symbol given x, and p its marginal predicted from the other symbols.
        """
        zeta = self.spread(
            belief.other.to(torch.promote_types(belief.logits.dtype, torch.float32)).softmax(-1), belief.t
        )
        zeta = zeta.clamp_min(torch.finfo(zeta.dtype).tiny)
        return self.score_entropy(zeta / zeta.gather(-1, belief.z[..., None]), x, belief.z, belief.t)

    def score_entropy(self, ratio: Tensor, x: Tensor, z: Tensor, t: Time) -> Tensor:
        """The same for any ratios r' (B, *shape, size), of a distribution or not: SEDD's loss (2310.16834, Eq. 9)."""
        q = self.marginal(x, t, ratio.dtype).clamp_min(torch.finfo(ratio.dtype).tiny)
        excess = divergence(q / q.gather(-1, z[..., None]), ratio)
        return (self.into(z, t, ratio.dtype) * excess).sum(-1)

    # -- the distribution of z ---------------------------------------------------------------------------------------

    @final
    def prior(self, noise: Tensor) -> Tensor:
        """z_1 ~ pi, one symbol for each number of `noise`."""
        return quantile(self.pi.to(noise.device), torch.special.ndtr(noise.double()))

    def corrupt(self, x: Tensor, t: Time, noise: Noise | Tensor) -> Tensor:
        """z_t ~ q(z_t | x); x and noise (B, *shape), t a number or (B,)."""
        return self.draw(self.marginal(x, t), noise)

    @final
    def marginal(self, x: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(z_t | x), (B, *shape, size)."""
        return self.spread(self.hot(x, dtype)[..., : self.states], t)

    @final
    def away(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """The rate of jumps z -> y for every y per unit of the level, (B, *shape, size); 0 at y = z."""
        own = z[..., None]
        into = self.into(torch.arange(self.size, device=z.device).expand(*z.shape, self.size), t, dtype)  # (.., y, z)
        into = into.expand(*into.shape[:-1], self.size).gather(-1, own[..., None].expand(*own.shape[:-1], self.size, 1))
        return into[..., 0].scatter(-1, own, 0.0)

    @final
    def matrix(self, s: Time, t: Time) -> Tensor:
        """q(z_t | z_s) for all pairs at two numbers s <= t, float64 (size, size): rows z_s, columns z_t."""
        return self.likelihood(torch.arange(self.size), s, t).mT

    def evidence(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log q(z_t | x = k) for every k, (B, *shape, K): the evidence of a symbol's own z; -inf if impossible."""
        return self.likelihood(z, 0.0, t, dtype)[..., : self.states].log()

    @final
    def bridge(self, belief: Logits, s: Time, eta: float = 1.0, restart: float = 0.0) -> Tensor:
        """p(z_s | z_t) of each symbol under the belief about z_t, s <= t: (B, *shape, size)."""
        if not (0 <= eta <= 1 and 0 <= restart <= 1):
            raise SfumatoError(f"A step of symbols needs eta and restart between 0 and 1, not {eta:g} and {restart:g}.")
        if bool((as_time(s) > belief.t).any()):
            raise SfumatoError("A sampling step must go towards the data: s must not exceed t.")
        prob, z, t = belief.prob, belief.z, belief.t
        couplings: list[tuple[float, Callable[[], Tensor]]] = [
            ((1 - restart) * eta, lambda: self._between(prob, z, s, t)),
            ((1 - restart) * (1 - eta), lambda: self._fewest(prob, z, s, t)),
            (restart, lambda: self.spread(prob, s)),
        ]
        return functools.reduce(torch.add, [share * law() for share, law in couplings if share])

    @final
    def posterior(self, z: Tensor, x: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(z_s | z_t = z, x) by Bayes' rule, s <= t: (B, *shape, size)."""
        return self._between(self.hot(x, dtype)[..., : self.states], z, s, t)

    def _between(self, prob: Tensor, z: Tensor, s: Time, t: Time) -> Tensor:
        """sum_x p(x) q(z_t | z_s) q(z_s | x) / q(z_t | x)."""
        # q(z_t | x) is zero only for impossible x, where prob is zero too
        marginal = self.likelihood(z, 0.0, t, prob.dtype)[..., : self.states]
        weight = prob / marginal.clamp_min(torch.finfo(prob.dtype).tiny)
        return self.likelihood(z, s, t, prob.dtype) * self.spread(weight, s)

    # -- the belief --------------------------------------------------------------------------------------------------

    @final
    def read(self, y: Tensor, z: Tensor, t: Time) -> Logits:
        """The belief p(x_i | z) ~ h(x_i) q(z_i | x_i), with log h(x_i) from the network's row, y (B, *shape, K) or as
        the network lays it out (`prediction`): the evidence of all other symbols."""
        y = self.prediction(y, z)
        log_h = registry.get("row", self.row)(self, y, z, t)
        return self.belief(log_h, z, t)

    @final
    def belief(self, log_h: Tensor, z: Tensor, t: Time) -> Logits:
        """p(x_i | z) ~ h(x_i) q(z_i | x_i) from log h, (B, *shape, K)."""
        return Logits(None, z, t, self, log_h)

    @final
    def prior_kl(self, x: Tensor) -> Tensor:
        """KL(q(z_1 | x) || pi), float64 (B,): zero if the schedule ends at alpha = 0."""
        end, prior = self.marginal(x, 1.0), self.pi.to(x.device)
        ratio = torch.where(end > 0, end.log() - prior.log(), 0.0)
        return (end * ratio).flatten(1).sum(1)


def quantile(prob: Tensor, u: Tensor) -> Tensor:
    """The symbol at u in (0, 1), int64 like u (B, *shape), of one distribution (S,) or one for each sample (B, S)."""
    cdf = prob.cumsum(-1)
    place = torch.searchsorted(cdf, (u.reshape(len(u), -1) * cdf[..., -1:]).contiguous(), right=True)
    return place.clamp_max(prob.shape[-1] - 1).reshape(u.shape)
