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
(`Ladder`). The level is logit alpha_t.
Sources: Austin et al. 2021 (2107.03006); Campbell et al. 2022 (2205.14987) for rates and their bound; Song et al. 2020
(2010.02502), App. A, and Gat et al. 2024 (2407.15595) for eta 0; Wang et al. 2025 (2503.00307) for restarts.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

from sfumato import registry
from sfumato.belief import Logits
from sfumato.data import DataSpec, Normaliser
from sfumato.errors import SfumatoError, whole
from sfumato.noise import Noise
from sfumato.process import rows
from sfumato.process.protocol import Density, noise_level
from sfumato.schedule import Schedule, Time, as_time, schedule_of
from sfumato.schedules import Kept
from sfumato.state import numbers_like

_LEFT = 1e-3  # largest alpha(1) of a schedule that is treated as 0, where the prior lacks symbols of the data


@dataclasses.dataclass(frozen=True)
class Symbols(abc.ABC):
    """Symbols 0 .. states - 1, int64 of any shape (B, *shape); noisy ones 0 .. size - 1.

    Only alpha of the schedule is used, as the keep probability; t = 0 is the data itself. row: what a network says of
    each symbol, one of `rows` (other, x, z, ratio, rate). As for the Gaussian process, all randomness comes from
    standard normal numbers: a symbol is the quantile at u = Phi(noise).
    """

    schedule: Schedule
    states: int = 2
    row: str = dataclasses.field(default="other", kw_only=True)

    default_solver = "ancestral"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", schedule_of(self.schedule))
        name, curve = type(self).__name__, type(self.schedule).__name__
        object.__setattr__(self, "states", whole(f"The number of states of a {name.lower()} process", self.states, 2))
        start, stop = (float(self.schedule.alpha(t)) for t in (0.0, 1.0))
        if not 0 <= stop < start <= 1 + 1e-12:
            raise SfumatoError(
                f"{curve} keeps a symbol with probability {start:g} at t = 0 and {stop:g} at t = 1: a {name.lower()} "
                "process needs a schedule with alpha decreasing within [0, 1], such as Flow or Cosine."
            )
        if self._all_replaced and stop > _LEFT:
            raise SfumatoError(
                f"{curve} keeps {stop:.3g} of the symbols at t = 1, where a {name.lower()} process must replace all: "
                "use a schedule that ends at alpha = 0, such as Flow or Cosine."
            )
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
        """The number of symbols that can occur in a noisy state."""
        return len(self.pi)

    @functools.cached_property
    def _all_replaced(self) -> bool:
        """Whether nothing of the data may be left at t = 1, because the prior excludes some symbols."""
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
        tiny = torch.finfo(ratio.dtype).tiny
        q = self.marginal(x, t, ratio.dtype).clamp_min(tiny)
        true, model = q / q.gather(-1, z[..., None]), ratio.clamp_min(tiny)
        gap = model.log() - true.log()
        near = true * (torch.expm1(gap.clamp_max(1.0)) - gap)  # precise for small gaps
        excess = torch.where(gap > 1, model - true - true * gap, near)
        return (self.into(z, t, ratio.dtype) * excess).sum(-1)

    # -- the distribution of z ---------------------------------------------------------------------------------------

    @final
    def keep(self, t: Time) -> Tensor:
        """alpha_t, float64; 1 at t = 0. SfumatoError for times outside [0, 1] (not checked on a GPU)."""
        t = as_time(t)
        if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
            raise SfumatoError(f"Times must lie in [0, 1]; got {t.reshape(-1)[:8].tolist()}.")
        kept = torch.where(t == 0, 1.0, self.schedule.alpha(t))
        return torch.where(t == 1, 0.0, kept) if self._all_replaced else kept

    @property
    def clock(self) -> Schedule:
        """The curve (sqrt alpha, sqrt(1 - alpha)), with logsnr = logit alpha."""
        return Kept(self.schedule)

    @final
    def level(self, t: Time) -> Tensor:
        """logit alpha_t, float64."""
        return torch.logit(self.keep(t))

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

    @final
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

    @final
    def draw(self, prob: Tensor, noise: Noise | Tensor) -> Tensor:
        """Draw a symbol from each distribution prob (B, *shape, n): its quantile at u = Phi(noise)."""
        cdf = prob.double().cumsum(-1)
        u = torch.special.ndtr(numbers_like(noise, prob[..., 0]).double()) * cdf[..., -1]
        return (u[..., None] >= cdf).sum(-1).clamp_max(prob.shape[-1] - 1)

    @final
    def hot(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The one-hot code, (B, *shape, size)."""
        return torch.nn.functional.one_hot(x, self.size).to(dtype)

    @final
    def rescheduled(self, schedule: Schedule) -> Any:
        """The same process under another schedule."""
        return dataclasses.replace(self, schedule=schedule)

    @final
    def same_level(self, z: Tensor, t: Time, other: Symbols) -> tuple[Tensor, Tensor]:
        """(z, t') at the same level under another process of these symbols."""
        return z, other.clock.time(self.level(t))

    # -- inputs and outputs of a network -----------------------------------------------------------------------------

    @final
    def noise_level(self, t: Time) -> Tensor:
        """The noise level of logsnr = 2 logit alpha, as for `schedules.Flow`."""
        return noise_level(2 * torch.logit(self.keep(t)))

    @final
    def inputs(self, z: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """The symbols as channels (K 1[z = k] - 1) / sqrt(K - 1), (B, K C, ..), and the noise level. For K = 2 one
        channel of -1 and 1; masks are 0."""
        level = self.noise_level(t).to(z.device)
        hot = self.hot(z, torch.float32)[..., : self.states]
        known = hot.sum(-1, keepdim=True)
        if self.states == 2:
            return (hot[..., 1:] * 2 - known).squeeze(-1), level
        code = (self.states * hot - known) / math.sqrt(self.states - 1)
        return code.movedim(-1, 1).flatten(1, 2), level

    @final
    def prediction(self, y: Tensor, z: Tensor) -> Tensor:
        """A network's output (B, K C, ..), or (B, C, ..) of log-odds for K = 2, as (B, *shape, K)."""
        if y.ndim == z.ndim + 1:
            return y
        if self.states == 2:
            return torch.stack((torch.zeros_like(y), y), -1)
        return y.unflatten(1, (self.states, -1)).movedim(1, -1)

    @final
    def read(self, y: Tensor, z: Tensor, t: Time) -> Logits:
        """The belief p(x_i | z) ~ h(x_i) q(z_i | x_i), with log h(x_i) from the network's row, y (B, *shape, K) or as
        the network lays it out (`prediction`): the evidence of all other symbols."""
        y = self.prediction(y, z)
        log_h = registry.get("row", self.row)(self, y, z, t)
        return Logits(log_h + self.evidence(z, t, y.dtype), z, t, self, log_h)

    # -- the loss ----------------------------------------------------------------------------------------------------

    @final
    def loss(
        self,
        belief: Logits,
        x: Tensor,
        noise: Noise | Tensor,
        weight: Callable[[Tensor], Tensor] | None,
        times: Density,
    ) -> Tensor:
        """w / p times the path-KL rate at the belief's level, (B,). With w = 1 (or no weight) its integral over all
        levels is the NELBO of the prior pi, -log p(x) <= NELBO, in nats (2107.03006; 2406.07524, Eq. 10)."""
        nats = self.rate(belief, x).flatten(1).sum(1)
        level, clock = self.level(belief.t).expand(len(x)), self.clock
        scale = 1 / times.density(level, clock)
        if weight is not None:
            scale = weight(level) * scale
        return scale.to(nats) * nats

    @final
    def prior_kl(self, x: Tensor) -> Tensor:
        """KL(q(z_1 | x) || pi), float64 (B,): zero if the schedule ends at alpha = 0."""
        end, prior = self.marginal(x, 1.0), self.pi.to(x.device)
        ratio = torch.where(end > 0, end.log() - prior.log(), 0.0)
        return (end * ratio).flatten(1).sum(1)

    # -- data and files ----------------------------------------------------------------------------------------------

    @final
    def check_net(self, net: Any) -> None:
        """Raise SfumatoError if the network's channels do not match the number of symbols."""
        shape = getattr(net, "shape", None)
        if shape is not None:
            self.sample_shape(tuple(shape))

    @final
    def net_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the network's input for samples (C, ..): (C, ..) for K = 2, else (K C, ..)."""
        return (shape[0] * (1 if self.states == 2 else self.states), *shape[1:])

    @final
    def sample_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of samples for a network of `shape`: the inverse of `net_shape`."""
        if self.states == 2:
            return tuple(shape)
        if shape[0] % self.states:
            raise SfumatoError(
                f"A network of shape {tuple(shape)} cannot represent {self.states} symbols: its first axis must be a "
                "multiple of their number; build it for process.net_shape(shape)."
            )
        return (shape[0] // self.states, *shape[1:])

    @final
    def data(self, x: Tensor) -> Tensor:
        """Data as symbols, int64; SfumatoError if they are not integers in 0 .. states - 1."""
        whole = x.round().long() if x.is_floating_point() else x.long()
        last = self.states - 1
        if bool(((whole < 0) | (whole > last)).any()) or bool((whole != x).any()):
            raise self._foreign(float(x.min()), float(x.max()))
        return whole

    @final
    def table(self, x: Tensor) -> Tensor:
        """The symbols as numbers."""
        return x

    @final
    def contract(self, spec: DataSpec) -> DataSpec:
        """The spec of data that are symbols, with the identity as normaliser."""
        return self.unscaled(spec, range(len(spec.normaliser.mean)))

    @final
    def unscaled(self, spec: DataSpec, channels: Iterable[int]) -> DataSpec:
        """The spec with these channels left unscaled; SfumatoError if they do not hold symbols."""
        mean, std, own = list(spec.normaliser.mean), list(spec.normaliser.std), list(channels)
        low = min(spec.statistics.low[channel] for channel in own)
        high = max(spec.statistics.high[channel] for channel in own)
        if low < 0 or high > self.states - 1:
            raise self._foreign(low, high)
        for channel in own:
            mean[channel], std[channel] = 0.0, 1.0
        return dataclasses.replace(spec, normaliser=Normaliser(tuple(mean), tuple(std)))

    def _foreign(self, low: float, high: float) -> SfumatoError:
        return SfumatoError(
            f"The data of a process of {self.states} symbols must be integers from 0 to {self.states - 1}; these range "
            f"from {low:g} to {high:g} (use the gaussian process for real numbers)."
        )

    def config(self) -> dict[str, Any]:
        args = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"name": type(self).__name__, "args": {**args, "schedule": self.schedule.config()}}


def quantile(prob: Tensor, u: Tensor) -> Tensor:
    """The symbol at u in (0, 1), int64 like u (B, *shape), of one distribution (S,) or one for each sample (B, S)."""
    cdf = prob.cumsum(-1)
    place = torch.searchsorted(cdf, (u.reshape(len(u), -1) * cdf[..., -1:]).contiguous(), right=True)
    return place.clamp_max(prob.shape[-1] - 1).reshape(u.shape)
