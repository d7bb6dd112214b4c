"""Symbols that are kept with probability alpha_t, or else replaced by one of a fixed law pi, each by itself.

    marginal   q(z_t | x)        = alpha_t 1[z = x] + (1 - alpha_t) pi(z)
    jump       q(z_t | z_s)      = a 1[z_t = z_s] + (1 - a) pi(z_t),   a = alpha_t / alpha_s
    posterior  q(z_s | z_t, x)   = q(z_t | z_s) q(z_s | x) / q(z_t | x)
    bridge     p(z_s | z_t)      = sum_x p(x | z_t) C(z_s | z_t, x)
               eta 1: C the posterior;   eta 0: C = 1[z_s = z_t], or x with the chance rho that leaves q(z_s | x) right,
               rho = (alpha_s - alpha_t) / (1 - alpha_t);   between, their mixture
    network    p(x_i | z) ~ exp(y_i) q(z_i | x_i): y is the evidence of the other symbols on one

`Uniform` (pi even) and `Masked` (pi on one more symbol) are of this kind. The level is logit alpha_t.
Sources: Austin et al. 2021 (2107.03006); Hoogeboom et al. 2021 (2102.05379), Eq. 11-15; Song et al. 2020 (2010.02502),
App. A, for eta 0.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

from sfumato.belief import Logits, broadcast
from sfumato.data import DataSpec, Normaliser
from sfumato.errors import SfumatoError, whole
from sfumato.noise import Noise
from sfumato.process.protocol import Density, noise_level
from sfumato.schedule import Schedule, Time, as_time, schedule_of
from sfumato.schedules import Kept
from sfumato.state import numbers_like


@dataclasses.dataclass(frozen=True)
class Symbols(abc.ABC):
    """Symbols 0 .. states - 1, int64 of any shape (B, *shape); noisy ones 0 .. size - 1.

    Of the schedule only alpha is used, as the probability to be kept; t = 0 is the data itself. Randomness comes as
    standard normal numbers, as for the Gaussian process: a symbol is drawn at u = Phi(noise).
    """

    schedule: Schedule
    states: int = 2

    default_solver = "ancestral"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", schedule_of(self.schedule))
        name, curve = type(self).__name__, type(self.schedule).__name__
        object.__setattr__(self, "states", whole(f"The number of states of a {name.lower()} process", self.states, 2))
        start, stop = (float(self.schedule.alpha(t)) for t in (0.0, 1.0))
        if not 0 <= stop < start <= 1 + 1e-12:
            raise SfumatoError(
                f"{curve} keeps a symbol with probability {start:g} at t = 0 and {stop:g} at t = 1: a {name.lower()} "
                "process needs a schedule whose alpha falls within [0, 1], such as Flow or Cosine."
            )

    # -- what tells the kinds apart ----------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many symbols a noisy state may hold."""

    @property
    @abc.abstractmethod
    def law(self) -> Tensor:
        """pi, float64 (size,)."""

    @abc.abstractmethod
    def replaced(self, u: Tensor) -> Tensor:
        """The symbol of pi at the place u in (0, 1), int64."""

    def rate(self, belief: Logits, x: Tensor) -> Tensor:
        """What the belief loses a unit of the level, in nats, one a symbol (B, *shape): the path KL's integrand,

        (1 - alpha) pi(z) / q(z) sum_k q(k) (log r_k - 1 + 1 / r_k),   r = (q / q(z)) / (p / p(z))

        for the true marginal q of the symbol given x and p of the belief of the others.
        """
        dtype = torch.promote_types(belief.logits.dtype, torch.float32)
        keep, law, own = self.keep(belief.t), self.law.to(x.device), belief.z[..., None]
        rest = (broadcast(1 - keep, belief.logits).double() * law).to(dtype)  # small and precise near the data
        kept, tiny = broadcast(keep, rest).to(dtype), torch.finfo(dtype).tiny
        ours = kept * self._padded(belief.other.to(dtype).softmax(-1)) + rest  # p
        true = kept * self.hot(x, dtype) + rest
        log_ratio = true.clamp_min(tiny).log() - ours.clamp_min(tiny).log()
        log_d, at = log_ratio.gather(-1, own)[..., 0], true.gather(-1, own)[..., 0]
        apart = (true * log_ratio).sum(-1) + torch.expm1(log_d) - log_d
        replaced = rest.expand_as(true).gather(-1, own)[..., 0]
        return replaced / at.clamp_min(tiny) * apart

    # -- the law of z ------------------------------------------------------------------------------------------------

    @final
    def keep(self, t: Time) -> Tensor:
        """alpha_t, float64; 1 at t = 0. SfumatoError for times outside [0, 1] (not checked on a GPU)."""
        t = as_time(t)
        if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
            raise SfumatoError(f"Times run from 0, the data, to 1: {float(t.reshape(-1)[0]):g} is among these.")
        return torch.where(t == 0, 1.0, self._kept(t))

    def _kept(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(t)

    @property
    def clock(self) -> Schedule:
        """The curve (sqrt alpha, sqrt(1 - alpha)), whose logsnr is logit alpha."""
        return Kept(self.schedule)

    @final
    def level(self, t: Time) -> Tensor:
        """logit alpha_t, float64."""
        return torch.logit(self.keep(t))

    @final
    def prior(self, noise: Tensor) -> Tensor:
        """z_1 of the law pi, one symbol for each number of `noise`."""
        return self.replaced(torch.special.ndtr(noise.double()))

    @final
    def corrupt(self, x: Tensor, t: Time, noise: Noise | Tensor) -> Tensor:
        """z_t ~ q(z_t | x); x and noise (B, *shape), t a number or (B,)."""
        u = torch.special.ndtr(numbers_like(noise, x).double())
        keep = broadcast(self.keep(t), u)
        return torch.where(u < keep, x, self.replaced((u - keep) / (1 - keep).clamp_min(1e-300)))

    @final
    def marginal(self, x: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(z_t | x), (B, *shape, size)."""
        hot = self.hot(x, dtype)
        keep = broadcast(self.keep(t), hot)
        return keep * hot + (1 - keep) * self.law.to(hot)

    @final
    def evidence(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log q(z_t | x = k) for every k, (B, *shape, K): a symbol's own evidence; -inf where it is impossible."""
        hot, keep = self.hot(z, dtype)[..., : self.states], self.keep(t)
        rest = broadcast(1 - keep, z.double()) * self.law.to(z.device)[z]  # small and precise near the data
        return (broadcast(keep, hot) * hot + rest.to(dtype)[..., None]).log()

    @final
    def bridge(self, belief: Logits, s: Time, eta: float = 1.0) -> Tensor:
        """p(z_s | z_t) of each symbol under the belief about z_t, s <= t: (B, *shape, size)."""
        if not 0 <= eta <= 1:
            raise SfumatoError(f"A step between states of symbols needs eta from 0 to 1, not {eta:g}.")
        if bool((as_time(s) > belief.t).any()):
            raise SfumatoError("A step leads towards the data: s may not lie above t.")
        parts = []
        if eta > 0:
            parts.append((eta, self._between(belief.prob, belief.z, s, belief.t)))
        if eta < 1:
            parts.append((1 - eta, self._revealed(belief.prob, belief.z, s, belief.t)))
        first = parts[0][0] * parts[0][1] if len(parts) > 1 else parts[0][1]
        return first if len(parts) == 1 else first + parts[1][0] * parts[1][1]

    @final
    def posterior(self, z: Tensor, x: Tensor, s: Time, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(z_s | z_t = z, x) by Bayes' rule, s <= t: (B, *shape, size)."""
        return self._between(self.hot(x, dtype)[..., : self.states], z, s, t)

    def _between(self, prob: Tensor, z: Tensor, s: Time, t: Time) -> Tensor:
        """sum_x p(x) q(z_t | z_s) q(z_s | x) / q(z_t | x), in K operations a symbol."""
        at, above = self.keep(s), self.keep(t)
        here = self.hot(z, prob.dtype)
        law = self.law.to(prob)
        own = law[z][..., None]  # pi of the noisy symbol
        # q(z_t | x) is zero only where x is impossible, and prob with it
        known = broadcast(above, prob) * here[..., : self.states] + (1 - broadcast(above, prob)) * own
        weight = prob / known.clamp_min(torch.finfo(prob.dtype).tiny)
        keep, last = broadcast(above / at, prob), broadcast(at, prob)
        first = keep * here + (1 - keep) * own
        return first * (last * self._padded(weight) + (1 - last) * law * weight.sum(-1, keepdim=True))

    def _revealed(self, prob: Tensor, z: Tensor, s: Time, t: Time) -> Tensor:
        """(1 - rho) 1[z_s = z_t] + rho p(z_s)."""
        at, above = self.keep(s), self.keep(t)
        rho = broadcast((at - above) / (1 - above).clamp_min(1e-300), prob)
        return (1 - rho) * self.hot(z, prob.dtype) + rho * self._padded(prob)

    @final
    def draw(self, prob: Tensor, noise: Noise | Tensor) -> Tensor:
        """A symbol of each law prob (B, *shape, n), by the inverse of its distribution function at u = Phi(noise)."""
        steps = prob.double().cumsum(-1)
        u = torch.special.ndtr(numbers_like(noise, prob[..., 0]).double()) * steps[..., -1]
        return (u[..., None] >= steps).sum(-1).clamp_max(prob.shape[-1] - 1)

    @final
    def hot(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The one-hot code, (B, *shape, size)."""
        return torch.nn.functional.one_hot(x, self.size).to(dtype)

    def _padded(self, prob: Tensor) -> Tensor:
        return torch.nn.functional.pad(prob, (0, self.size - self.states))

    @final
    def rescheduled(self, schedule: Schedule) -> Any:
        """The same process under another schedule."""
        return dataclasses.replace(self, schedule=schedule)

    @final
    def same_level(self, z: Tensor, t: Time, other: Symbols) -> tuple[Tensor, Tensor]:
        """(z, t') with the level of (z, t) under another process of these symbols."""
        return z, other.clock.time(self.level(t))

    # -- inputs and outputs of a network -----------------------------------------------------------------------------

    @final
    def noise_level(self, t: Time) -> Tensor:
        """That of logsnr = 2 logit alpha, which `schedules.Flow` has."""
        return noise_level(2 * torch.logit(self.keep(t)))

    @final
    def inputs(self, z: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """The code (K 1[z = k] - 1) / sqrt(K - 1) as channels (B, K C, ..), -1 and 1 for K = 2; a mask is 0, and the
        noise level."""
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
        """The belief p(x_i | z) ~ exp(y_i) q(z_i | x_i); y (B, *shape, K), or as a network gives it (`prediction`)."""
        y = self.prediction(y, z)
        return Logits(y + self.evidence(z, t, y.dtype), z, t, self, y)

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
        """w / p times what the belief loses at its level, (B,): with w = 1 (and without a weight) its integral over all
        levels is the negative bound -log p(x) <= NELBO of a prior pi, in nats (2107.03006; 2406.07524, Eq. 10)."""
        nats = self.rate(belief, x).flatten(1).sum(1)
        level, clock = self.level(belief.t).expand(len(x)), self.clock
        scale = 1 / times.density(level, clock)
        if weight is not None:
            scale = weight(level) * scale
        return scale.to(nats) * nats

    @final
    def prior_kl(self, x: Tensor) -> Tensor:
        """KL(q(z_1 | x) || pi), float64 (B,): zero where the schedule ends at alpha = 0."""
        end, law = self.marginal(x, 1.0), self.law.to(x.device)
        ratio = torch.where(end > 0, end.log() - law.log(), 0.0)
        return (end * ratio).flatten(1).sum(1)

    # -- data and files ----------------------------------------------------------------------------------------------

    @final
    def check_net(self, net: Any) -> None:
        """Refuse a network whose shape cannot tell so many symbols."""
        shape = getattr(net, "shape", None)
        if shape is not None:
            self.sample_shape(tuple(shape))

    @final
    def net_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, ..) for K = 2, else (K C, ..), for samples (C, ..)."""
        return (shape[0] * (1 if self.states == 2 else self.states), *shape[1:])

    @final
    def sample_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of samples for a network of `shape`: the inverse of `net_shape`."""
        if self.states == 2:
            return tuple(shape)
        if shape[0] % self.states:
            raise SfumatoError(
                f"A network of shape {tuple(shape)} cannot tell {self.states} symbols: build it for "
                "process.net_shape(shape)."
            )
        return (shape[0] // self.states, *shape[1:])

    @final
    def data(self, x: Tensor) -> Tensor:
        """Data as symbols, int64, or SfumatoError where it is none."""
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
        """The contract of data that are symbols: as it is, with a normaliser that leaves them so."""
        return self.unscaled(spec, range(len(spec.normaliser.mean)))

    @final
    def unscaled(self, spec: DataSpec, channels: Iterable[int]) -> DataSpec:
        """A contract whose normaliser leaves these channels as they are: SfumatoError where they are no symbols."""
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
            f"The data of a process of {self.states} symbols are the whole numbers 0 to {self.states - 1}; these run "
            f"from {low:g} to {high:g} (of real numbers the process is gaussian)."
        )

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "args": {"schedule": self.schedule.config(), "states": self.states}}
