"""Symbols that are independently kept with probability alpha_t, or else replaced by a draw from a fixed pi.

    marginal   q(z_t | x)        = alpha_t 1[z = x] + (1 - alpha_t) pi(z)
    jump       q(z_t | z_s)      = a 1[z_t = z_s] + (1 - a) pi(z_t),   a = alpha_t / alpha_s
    posterior  q(z_s | z_t, x)   = q(z_t | z_s) q(z_s | x) / q(z_t | x)
    bridge     p(z_s | z_t)      = sum_x p(x | z_t) C(z_s | z_t, x)
               eta 1: C is the posterior;   eta 0: C keeps z_t, or with probability rho takes x, which gives the right
               marginal q(z_s | x): rho = (alpha_s - alpha_t) / (1 - alpha_t);   else their mixture
    network    p(x_i | z) ~ exp(y_i) q(z_i | x_i): y_i is the evidence on x_i from all other symbols

`Uniform` (pi uniform) and `Masked` (pi on one additional symbol) are the two cases. The level is logit alpha_t.
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

    Only alpha of the schedule is used, as the keep probability; t = 0 is the data itself. As for the Gaussian process,
    all randomness comes from standard normal numbers: a symbol is the quantile at u = Phi(noise).
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
                "process needs a schedule with alpha decreasing within [0, 1], such as Flow or Cosine."
            )

    # -- defined by subclasses ---------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The number of symbols that can occur in a noisy state."""

    @property
    @abc.abstractmethod
    def law(self) -> Tensor:
        """pi, float64 (size,)."""

    @abc.abstractmethod
    def replaced(self, u: Tensor) -> Tensor:
        """The quantile of pi at u in (0, 1), int64."""

    def rate(self, belief: Logits, x: Tensor) -> Tensor:
        """The integrand of the path KL, in nats per unit of the level, for each symbol (B, *shape):

        (1 - alpha) pi(z) / q(z) sum_k q(k) (log r_k - 1 + 1 / r_k),   r = (q / q(z)) / (p / p(z))

        with the true marginal q of the symbol given x, and p its marginal predicted from the other symbols.
        """
        dtype = torch.promote_types(belief.logits.dtype, torch.float32)
        keep, law, own = self.keep(belief.t), self.law.to(x.device), belief.z[..., None]
        rest = (broadcast(1 - keep, belief.logits).double() * law).to(dtype)  # small near the data: float64 first
        kept, tiny = broadcast(keep, rest).to(dtype), torch.finfo(dtype).tiny
        p = kept * self._padded(belief.other.to(dtype).softmax(-1)) + rest
        q = kept * self.hot(x, dtype) + rest
        log_ratio = q.clamp_min(tiny).log() - p.clamp_min(tiny).log()
        log_d, q_z = log_ratio.gather(-1, own)[..., 0], q.gather(-1, own)[..., 0]
        divergence = (q * log_ratio).sum(-1) + torch.expm1(log_d) - log_d
        replaced = rest.expand_as(q).gather(-1, own)[..., 0]
        return replaced / q_z.clamp_min(tiny) * divergence

    # -- the distribution of z ---------------------------------------------------------------------------------------

    @final
    def keep(self, t: Time) -> Tensor:
        """alpha_t, float64; 1 at t = 0. SfumatoError for times outside [0, 1] (not checked on a GPU)."""
        t = as_time(t)
        if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
            raise SfumatoError(f"Times must lie in [0, 1]; got {t.reshape(-1)[:8].tolist()}.")
        return torch.where(t == 0, 1.0, self._kept(t))

    def _kept(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(t)

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
        """log q(z_t | x = k) for every k, (B, *shape, K): the evidence of a symbol's own z; -inf if impossible."""
        hot, keep = self.hot(z, dtype)[..., : self.states], self.keep(t)
        rest = broadcast(1 - keep, z.double()) * self.law.to(z.device)[z]  # small near the data: float64 first
        return (broadcast(keep, hot) * hot + rest.to(dtype)[..., None]).log()

    @final
    def bridge(self, belief: Logits, s: Time, eta: float = 1.0) -> Tensor:
        """p(z_s | z_t) of each symbol under the belief about z_t, s <= t: (B, *shape, size)."""
        if not 0 <= eta <= 1:
            raise SfumatoError(f"A step of symbols needs eta between 0 and 1, not {eta:g}.")
        if bool((as_time(s) > belief.t).any()):
            raise SfumatoError("A sampling step must go towards the data: s must not exceed t.")
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
        """sum_x p(x) q(z_t | z_s) q(z_s | x) / q(z_t | x), in K operations per symbol."""
        keep_s, keep_t = self.keep(s), self.keep(t)
        hot = self.hot(z, prob.dtype)
        law = self.law.to(prob)
        own = law[z][..., None]  # pi(z_t)
        # q(z_t | x) is zero only for impossible x, where prob is zero too
        marginal = broadcast(keep_t, prob) * hot[..., : self.states] + (1 - broadcast(keep_t, prob)) * own
        weight = prob / marginal.clamp_min(torch.finfo(prob.dtype).tiny)
        keep, last = broadcast(keep_t / keep_s, prob), broadcast(keep_s, prob)
        jump = keep * hot + (1 - keep) * own  # q(z_t | z_s)
        return jump * (last * self._padded(weight) + (1 - last) * law * weight.sum(-1, keepdim=True))

    def _revealed(self, prob: Tensor, z: Tensor, s: Time, t: Time) -> Tensor:
        """(1 - rho) 1[z_s = z_t] + rho p(z_s)."""
        keep_s, keep_t = self.keep(s), self.keep(t)
        rho = broadcast((keep_s - keep_t) / (1 - keep_t).clamp_min(1e-300), prob)
        return (1 - rho) * self.hot(z, prob.dtype) + rho * self._padded(prob)

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

    def _padded(self, prob: Tensor) -> Tensor:
        return torch.nn.functional.pad(prob, (0, self.size - self.states))

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
        """The belief p(x_i | z) ~ exp(y_i) q(z_i | x_i); y (B, *shape, K) or a network's output (`prediction`)."""
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
        end, law = self.marginal(x, 1.0), self.law.to(x.device)
        ratio = torch.where(end > 0, end.log() - law.log(), 0.0)
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
        return {"name": type(self).__name__, "args": {"schedule": self.schedule.config(), "states": self.states}}
