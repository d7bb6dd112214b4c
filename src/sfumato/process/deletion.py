"""Strings of any length that lose their symbols one by one, and get them back by insertions.

    marginal   q(z_t | x) = N(z, x) alpha^|z| (1 - alpha)^(|x| - |z|),   N(z, x) the number of embeddings of z in x
    missing    n(g, k)    = the mean number of symbols k that x has in gap g of z, over all embeddings
                          = N(z with k inserted at g, x) / N(z, x)
    path KL    alpha sum over (g, k) of [n log(n / mu) - n + mu] per unit of the level,   mu = E[n | z],
               so that -log p(x) <= int -alpha' / (1 - alpha) E[sum of n log(n / mu) - n + mu] dt
    step       in each gap the symbol k with probability rho mu(k), rho = (alpha_s - alpha_t) / (1 - alpha_t), or none;
               of several in a gap rho mu of all symbols together, up or down to a whole number, each by mu(k) / mu

The rate at which z becomes z with k at g is -alpha' / (1 - alpha) mu(g, k); where several insertions give one string,
their n are equal, so that the bound is an equality for the exact belief. All embeddings are counted by a table of |z| x
|x|, not drawn. Relatives: Havasi et al. 2025 (2506.09018, Edit Flows), Kim et al. 2025 (2509.01025, FlexMDM).
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from sfumato.belief import Insertions, broadcast
from sfumato.errors import SfumatoError, whole
from sfumato.noise import Noise
from sfumato.process.discrete import Discrete, divergence
from sfumato.registry import register
from sfumato.schedule import Time, as_time
from sfumato.state import numbers_like

_LONGEST = 1000  # of strings: the numbers of embeddings, up to 2^L, must be finite in float64


@register("process", "deletion")
@final
@dataclasses.dataclass(frozen=True)
class Deletion(Discrete):
    """Strings of the symbols 0 .. states - 2 along the last axis, each filled up behind its end with states - 1.

    Each symbol survives with probability alpha(t) of the schedule; the prior is the empty string. A network says
    log mu(g, k) / (1 - alpha) of the gap before each position, against the logit of the filling (`Insertions`); what
    stands behind the end never enters the loss. Strings have up to 1,000 symbols. insertions: the most in one gap and
    step; more than one are drawn independently of each other, so that few steps leave fewer symbols out.
    """

    insertions: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "insertions", whole("The insertions in a gap", self.insertions, 1))

    @property
    def size(self) -> int:
        return self.states

    @property
    def end(self) -> int:
        """What fills a string behind its end."""
        return self.states - 1

    @property
    def _all_replaced(self) -> bool:
        return True

    # -- the distribution of z ---------------------------------------------------------------------------------------

    def prior(self, noise: Tensor) -> Tensor:
        """The empty string."""
        return torch.full_like(noise, self.end, dtype=torch.int64)

    def corrupt(self, x: Tensor, t: Time, noise: Noise | Tensor) -> Tensor:
        """z_t ~ q(z_t | x); x and noise (B, *shape), t a number or (B,)."""
        u = torch.special.ndtr(numbers_like(noise, x).double())
        return self._joined(torch.where(u < broadcast(self.keep(t), u), x, self.end))

    def log_marginal(self, z: Tensor, x: Tensor, t: Time) -> Tensor:
        """log q(z_t = z | x), float64 (B, *lead) for strings (B, *lead, L)."""
        ways, (kept, of) = self._ways(z, x)[..., -1, -1], ((each != self.end).sum(-1) for each in (z, x))
        keep = broadcast(self.keep(t), ways)
        return ways.log() + torch.xlogy(kept, keep) + torch.special.xlog1py((of - kept).clamp_min(0), -keep)

    def prior_kl(self, x: Tensor) -> Tensor:
        """0, float64 (B,): nothing is left at t = 1."""
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def missing(self, x: Tensor, z: Tensor) -> Tensor:
        """n(g, k), float64 (*lead, L, K): how many symbols k of x stand in the gap before each position of z, as a mean
        over all embeddings; 0 where z has no gap, or is not part of x."""
        before, behind = self._ways(z, x), self._ways(z.flip(-1), x.flip(-1)).flip(-1, -2)
        ways = before[..., :-1, :-1] * behind[..., :-1, 1:] * self._gaps(z)[..., None]
        return ways @ one_hot(x, self.states)[..., :-1].double() / before[..., -1:, -1:].clamp_min(1.0)

    def _ways(self, z: Tensor, x: Tensor) -> Tensor:
        """The number of embeddings of z[:i] in x[:j], float64 (*lead, L + 1, L + 1)."""
        way = torch.ones(*torch.broadcast_shapes(z.shape[:-1], x.shape[:-1]), x.shape[-1] + 1, device=x.device).double()
        ways = [way]
        for symbol in z.split(1, -1):
            longer = pad(((x == symbol) * way[..., :-1]).cumsum(-1), (1, 0))
            way = torch.where(symbol == self.end, way, longer)
            ways.append(way)
        return torch.stack(ways, -2)

    def _gaps(self, z: Tensor) -> Tensor:
        """Whether there is a gap before a position: that of a symbol, or the first behind the end."""
        return pad(z[..., :-1] != self.end, (1, 0), value=True)

    def _joined(self, x: Tensor) -> Tensor:
        """The symbols in their order, and the filling behind them."""
        return x.gather(-1, (x == self.end).byte().argsort(dim=-1, stable=True))

    # -- the belief --------------------------------------------------------------------------------------------------

    def read(self, y: Tensor, z: Tensor, t: Time) -> Insertions:
        """The belief with log mean = y_k - y_end + log(1 - alpha), from a network's y (B, *shape, states)."""
        y = self.prediction(y, z)
        log_mean = y[..., :-1] - y[..., -1:] + broadcast((1 - self.keep(t)).log(), y)
        return Insertions(torch.where(self._gaps(z)[..., None], log_mean, -torch.inf), z, t, self)

    def law(self, belief: Insertions, s: Time) -> Tensor:
        """The probability of each insertion in each gap on the way to s, (B, *shape, states), the last that of none."""
        total = belief.mean.sum(-1, keepdim=True)
        some = (broadcast(self._share(belief, s), total) * total).clamp_max(1)
        return torch.cat((belief.mean * (some / total.clamp_min(torch.finfo(total.dtype).tiny)), 1 - some), -1)

    def _share(self, belief: Insertions, s: Time) -> Tensor:
        """rho, the share of what is missing that comes back on the way to s."""
        if bool((as_time(s) > belief.t).any()):
            raise SfumatoError("A sampling step must go towards the data: s must not exceed t.")
        keep_s, keep_t = self.keep(s), self.keep(belief.t)
        return (keep_s - keep_t) / (1 - keep_t).clamp_min(1e-300)

    def inserted(self, belief: Insertions, s: Time, noise: Noise | Tensor) -> Tensor:
        """z_s by at most `insertions` in each gap; what is then longer than L symbols is cut."""
        if self.insertions == 1:
            symbols = self.draw(self.law(belief, s), noise)[..., None]
        else:
            symbols = self._several(belief, s, noise)
        return self._joined(torch.cat((symbols, belief.z[..., None]), -1).flatten(-2))[..., : belief.z.shape[-1]]

    def _several(self, belief: Insertions, s: Time, noise: Noise | Tensor) -> Tensor:
        """The insertions in each gap, (B, *shape, insertions), filled up behind their number."""
        if not isinstance(noise, Noise):
            raise SfumatoError(
                "Several insertions need several numbers a gap: pass the noise as sf.Noise(seed, index)."
            )
        total, shape = belief.mean.sum(-1), tuple(belief.z.shape[1:])
        wanted = broadcast(self._share(belief, s), total) * total
        u = noise.fold("count").uniform(shape, total.device, torch.float64)
        count = wanted.floor() + (u < wanted - wanted.floor())
        place = torch.arange(self.insertions, device=total.device)
        law = belief.mean[..., None, :].expand(*total.shape, self.insertions, -1)
        symbols = self.draw(law, noise.normal((*shape, self.insertions), total.device))
        return torch.where(place < count[..., None], symbols, self.end)

    def rate(self, belief: Any, x: Tensor) -> Tensor:
        """alpha times the sum over symbols of n log(n / mu) - n + mu, for the gap before each position (B, *shape)."""
        mean = belief.mean
        nats = divergence(self.missing(x, belief.z).to(mean), mean).sum(-1)
        return broadcast(self.keep(belief.t), nats) * nats

    def data(self, x: Tensor) -> Tensor:
        """Data as strings, int64; SfumatoError if they are none."""
        x = super().data(x)
        if x.shape[-1] > _LONGEST or not torch.equal(x, self._joined(x)):
            raise SfumatoError(
                f"The data of a deletion process are strings of up to {_LONGEST:,} symbols below {self.end}, with "
                f"{self.end} behind their end alone."
            )
        return x
