"""Symbols that are independently kept with probability alpha, or else replaced by a draw from a distribution pi_alpha.

    marginal   q(z_t | x)   = alpha 1[z = x] + rest(z),   rest = (1 - alpha) pi_alpha
    jump       q(z_t | z_s) = a 1[z_t = z_s] + rest_t(z_t) - a rest_s(z_t),   a = alpha_t / alpha_s
    rate       y -> z       = (1 - alpha) [pi(z) - (1 - alpha) dpi(z) / dlog alpha]   per unit of the level, for all y

Nothing needs a matrix: K operations per symbol. With this rate the path KL of `Symbols` is, for each symbol,

    R(z) / q(z | x) [KL(q(. | x) || q(. | h)) + d - 1 - log d],   d = q(z | x) / q(z | h),

with q(. | h) = sum_k h(k) q(. | k), and for masks alpha sum over masks of -log p(x_i | z), so that -log p(x) <=
int -alpha' / (1 - alpha) E[..] dt.
Sources: Austin et al. 2021 (2107.03006) for uniform and absorbing; Hoogeboom et al. 2021 (2102.05379), Eq. 11-15; K = 2
is the binomial kernel of Sohl-Dickstein et al. 2015 (1503.03585, Table App. 1), with alpha_t = 1 - t its schedule
(Section 2.4.1); Sahoo et al. 2024 (2406.07524), Eq. 10, and Shi et al. 2024 (2406.04329), Eq. 5, for masks; von Ruette
et al. 2025 (2503.04482), Eq. 8, for a pi that moves, and the rate.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from sfumato.belief import Logits, broadcast
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.process.symbols import Symbols, quantile, require_step
from sfumato.registry import register
from sfumato.schedule import Time, as_time
from sfumato.state import numbers_like

_CHECKED = 129  # values of alpha at which a moving law is checked
_TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class Mixing(Symbols):
    """The base class: `pi` alone if the distribution of replacements is fixed, else also `law` and `drift`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self).law is Mixing.law:  # a fixed pi always gives a process
            return
        keep = torch.linspace(1, 0, _CHECKED, dtype=torch.float64)
        rest, ratio = self._rest(keep), (keep[1:] / keep[:-1])[:, None]
        least, at = (rest[1:] - ratio * rest[:-1]).amin(1).min(0)
        if float(least) < -1e-12:
            raise SfumatoError(
                f"{self} is no process: just below alpha = {float(keep[at]):.3g} a symbol would be replaced by another "
                "with negative probability. Let pi change more slowly."
            )

    # -- defined by subclasses whose distribution moves --------------------------------------------------------------

    def law(self, keep: Tensor) -> Tensor:
        """pi at alpha = keep (...), float64 (..., size), or (size,) if it is the same for all."""
        return self.pi.to(keep.device)

    def drift(self, keep: Tensor) -> Tensor:
        """dpi / dlog alpha at alpha = keep (...), float64 (..., size)."""
        return torch.zeros_like(self.pi, device=keep.device)

    # -- the kernels -------------------------------------------------------------------------------------------------

    def _rest(self, keep: Tensor) -> Tensor:
        """(1 - alpha) pi_alpha, float64 (..., size): small near the data, so never formed in float32."""
        return (1 - keep)[..., None] * self.law(keep)

    def corrupt(self, x: Tensor, t: Time, noise: Noise | Tensor) -> Tensor:
        u = torch.special.ndtr(numbers_like(noise, x).double())
        keep = self.keep(t).to(x.device)
        kept = broadcast(keep, u)
        return torch.where(u < kept, x, quantile(self.law(keep), (u - kept) / (1 - kept).clamp_min(_TINY)))

    def spread(self, prob: Tensor, t: Time) -> Tensor:
        keep = self.keep(t).to(prob.device)
        kept = broadcast(keep, prob) * pad(prob, (0, self.size - self.states))
        return kept + _beside(self._rest(keep), prob[..., 0]).to(prob) * prob.sum(-1, keepdim=True)

    def unspread(self, zeta: Tensor, t: Time) -> Tensor:
        keep = self.keep(t).to(zeta.device).clamp_min(1e-30)  # the limit at alpha = 0 exists if pi has no data symbol
        rest = self._rest(keep)[..., : self.states]
        share = rest / (keep[..., None] + rest.sum(-1, keepdim=True))
        return zeta - _beside(share, zeta[..., 0]).to(zeta)

    def likelihood(self, z: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        keep_s, keep_t = self.keep(s).to(z.device), self.keep(t).to(z.device)
        a = keep_t / keep_s.clamp_min(_TINY)
        rest = (self._rest(keep_t) - a[..., None] * self._rest(keep_s)).clamp_min(0)
        hot = self.hot(z, dtype)
        return broadcast(a, hot) * hot + _at(rest, z).to(dtype)[..., None]

    def into(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        keep = self.keep(t).to(z.device)
        rate = (1 - keep)[..., None] * (self.law(keep) - (1 - keep)[..., None] * self.drift(keep))
        return _at(rate.clamp_min(0), z).to(dtype)[..., None]

    def _fewest(self, prob: Tensor, z: Tensor, s: Time, t: Time) -> Tensor:
        """By q_s(y | k) - q_t(y | k) = more 1[y = k] + gain(y), more = alpha_s - alpha_t, gain = rest_s - rest_t."""
        keep_s, keep_t = self.keep(s).to(z.device), self.keep(t).to(z.device)
        rest, gain = self._rest(keep_t), self._rest(keep_s) - self._rest(keep_t)
        more, was = (keep_s - keep_t)[..., None], keep_t[..., None] + rest
        # the probability to leave z_t = z if x is another symbol, and if x = z
        other, own = -gain.clamp_max(0) / rest.clamp_min(_TINY), -(gain + more).clamp_max(0) / was.clamp_min(_TINY)
        hot = self.hot(z, prob.dtype)
        other, own = (_at(each.expand_as(gain), z).to(prob.dtype)[..., None] for each in (other, own))
        leaving = prob * (other + (own - other) * hot[..., : self.states])
        # where to: all symbols that gain, and k by `more` beyond that
        up, top = gain.clamp_min(0), (gain + more).clamp_min(0)[..., : self.states]
        total = up.sum(-1, keepdim=True) - up[..., : self.states] + top
        up, top, total = (_beside(each, z).to(prob.dtype) for each in (up, top, total.clamp_min(_TINY)))
        each = leaving / total.clamp_min(torch.finfo(prob.dtype).tiny)
        here = pad(each, (0, self.size - self.states))
        moved = up * (each.sum(-1, keepdim=True) - here) + pad(each * top, (0, self.size - self.states))
        return hot * (1 - leaving.sum(-1, keepdim=True)) + moved


def _beside(table: Tensor, z: Tensor) -> Tensor:
    """Numbers of each symbol, (S,) or (B, S), so that they broadcast beside (*z.shape, S)."""
    return table if table.ndim == 1 else table.reshape(len(table), *[1] * (z.ndim - 1), -1)


def _at(table: Tensor, z: Tensor) -> Tensor:
    """table[z], from numbers of each symbol (S,) or (B, S)."""
    return table[z] if table.ndim == 1 else table.gather(1, z.flatten(1)).reshape(z.shape)


@register("process", "uniform")
@final
@dataclasses.dataclass(frozen=True)
class Uniform(Mixing):
    """Symbols 0 .. states - 1, kept with probability alpha(t) of the schedule, or else redrawn uniformly."""

    @functools.cached_property
    def pi(self) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64)


@register("process", "masked")
@final
@dataclasses.dataclass(frozen=True)
class Masked(Mixing):
    """Symbols 0 .. states - 1, kept with probability alpha(t) of the schedule, or else masked: z = states."""

    @property
    def mask(self) -> int:
        """The mask symbol."""
        return self.states

    @functools.cached_property
    def pi(self) -> Tensor:
        return one_hot(torch.tensor(self.states), self.states + 1).double()

    def time(self, share: Tensor) -> Tensor:
        """t with 1 - alpha_t = share, the expected share of masks, float64."""
        inner = self.clock.time(torch.logit(1 - share.double().clamp(1e-12, 1 - 1e-12)))
        return torch.where(share == 1, 1.0, torch.where(share == 0, 0.0, inner))

    def rate(self, belief: Logits, x: Tensor) -> Tensor:
        """alpha times -log p(x_i | z) at masks: the path KL, which does not ask what the others say of a visible
        symbol."""
        nats = -belief.log_prob.gather(-1, x[..., None])[..., 0]
        return broadcast(self.keep(belief.t), nats) * torch.where(belief.z == self.mask, nats, 0.0)

    def step(self, belief: Logits, s: Time, eta: float, restart: float, noise: Noise | Tensor) -> Tensor:
        """A mask is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t), at any eta; what is drawn is that of
        the quantile of p(z_s | z_t), at the cost of the symbols that are revealed."""
        if restart:
            return super().step(belief, s, eta, restart, noise)
        require_step(belief, s, eta, restart)
        z, u = belief.z, torch.special.ndtr(numbers_like(noise, belief.z).double())
        keep_s, keep_t = self.keep(torch.stack(torch.broadcast_tensors(as_time(s).to(belief.t), belief.t))).to(z.device)
        share = broadcast((keep_s - keep_t) / (1 - keep_t).clamp_min(_TINY), u).expand_as(u)
        shown = (z == self.mask) & (u < share)
        cdf = belief.of_masks(shown).double().softmax(-1).cumsum(-1)
        place = (u / share.clamp_min(_TINY))[shown][:, None] * cdf[:, -1:]
        return z.masked_scatter(shown, (place >= cdf).sum(-1).clamp_max(self.states - 1))


@functools.lru_cache(maxsize=16)
def mask_times(process: Masked, size: int) -> Tensor:
    """The times at which 0 .. size of as many symbols are masked, float64 (size + 1,)."""
    return process.time(torch.arange(size + 1, dtype=torch.float64) / size)


@register("process", "marginal")
@final
@dataclasses.dataclass(frozen=True)
class Marginal(Mixing):
    """Symbols 0 .. states - 1, kept with probability alpha(t) of the schedule, or else redrawn from a distribution.

    weights: the probability of each symbol, up to a factor, such as its count in the data
    (Vignac et al. 2022, 2209.14734).
    """

    weights: Sequence[float] = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", weights_of(self.weights, self.states))
        super().__post_init__()

    @functools.cached_property
    def pi(self) -> Tensor:
        pi = torch.tensor(self.weights, dtype=torch.float64)
        return pi / pi.sum()


@register("process", "hybrid")
@final
@dataclasses.dataclass(frozen=True)
class Hybrid(Mixing):
    """Symbols kept with probability alpha, or else redrawn uniformly with probability w, or else masked: z = states.

    w = share alpha^power: near the data most of the noise is in visible symbols, so a network learns to correct its own
    errors, and with power > 0 the prior is all masks (2503.04482). power: at most 1, or it would be no process.
    """

    share: float = 0.8
    power: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and self.power >= 0):
            raise SfumatoError(
                f"A hybrid process needs a share between 0 and 1 and a power of at least 0, not share={self.share:g} "
                f"and power={self.power:g}."
            )
        super().__post_init__()

    @property
    def mask(self) -> int:
        """The mask symbol."""
        return self.states

    @functools.cached_property
    def pi(self) -> Tensor:
        return self.law(torch.zeros((), dtype=torch.float64))

    def law(self, keep: Tensor) -> Tensor:
        return self._mixture(self.share * keep**self.power, 1.0)

    def drift(self, keep: Tensor) -> Tensor:
        return self._mixture(self.power * self.share * keep**self.power, 0.0)

    def _mixture(self, w: Tensor, total: float) -> Tensor:
        """w / K for each symbol, and the rest of the total for the mask, (..., K + 1)."""
        each = (w / self.states)[..., None].expand(*w.shape, self.states)
        return torch.cat((each, (total - w)[..., None]), -1)


def weights_of(weights: Sequence[float], states: int) -> tuple[float, ...]:
    """The weights of symbols as a tuple; SfumatoError unless there is one for each, none negative, some positive."""
    found = tuple(map(float, weights))
    if len(found) != states or not all(0 <= each < math.inf for each in found) or sum(found) <= 0:
        raise SfumatoError(
            f"The weights of {states} symbols are as many numbers of at least 0, not all 0, and these are "
            f"{len(found)}: {found[:4]}."
        )
    return found
