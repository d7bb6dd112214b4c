"""What all processes of whole numbers share: survival with probability alpha_t, inputs of networks, the loss, files.

The level is logit alpha_t. `Symbols` change each by itself, `Deletion` shortens strings.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from sfumato.belief import drawn_symbols
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError, whole
from sfumato.noise import Noise
from sfumato.process import alphabet
from sfumato.process.protocol import Density, noise_level
from sfumato.schedule import Schedule, Time, as_time, schedule_of
from sfumato.schedules import Kept

_LEFT = 1e-3  # largest alpha(1) of a schedule that is treated as 0, where the prior lacks symbols of the data


@dataclasses.dataclass(frozen=True)
class Discrete(abc.ABC):
    """Whole numbers 0 .. states - 1, int64 of any shape (B, *shape).

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
        if self._all_replaced and stop > _LEFT:
            raise SfumatoError(
                f"{curve} keeps {stop:.3g} of the symbols at t = 1, where a {name.lower()} process must replace all: "
                "use a schedule that ends at alpha = 0, such as Flow or Cosine."
            )

    # -- defined by subclasses ---------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The number of symbols that can occur in a noisy state."""

    @property
    @abc.abstractmethod
    def _all_replaced(self) -> bool:
        """Whether nothing of the data may be left at t = 1, because the prior excludes some symbols."""

    @abc.abstractmethod
    def rate(self, belief: Any, x: Tensor) -> Tensor:
        """The integrand of the path KL, in nats per unit of the level, for each symbol (B, *shape)."""

    # -- survival ----------------------------------------------------------------------------------------------------

    @final
    def keep(self, t: Time) -> Tensor:
        """alpha_t, float64; 1 at t = 0. SfumatoError for times outside [0, 1] (not checked on a GPU)."""
        t = as_time(t)
        if t.device.type == "cpu" and t.numel():
            low, high = t.aminmax()  # NaN where any is
            if not (low.item() >= 0 and high.item() <= 1):
                raise SfumatoError(f"Times must lie in [0, 1]; got {t.reshape(-1)[:8].tolist()}.")
        kept = self.schedule.alpha(t).masked_fill(t == 0, 1.0)
        return kept.masked_fill(t == 1, 0.0) if self._all_replaced else kept

    @property
    def clock(self) -> Schedule:
        """The curve (sqrt alpha, sqrt(1 - alpha)), with logsnr = logit alpha."""
        return Kept(self.schedule)

    @final
    def level(self, t: Time) -> Tensor:
        """logit alpha_t, float64."""
        return torch.logit(self.keep(t))

    @final
    def draw(self, prob: Tensor, noise: Noise | Tensor) -> Tensor:
        """Draw a symbol from each distribution prob (B, *shape, n): its quantile at u = Phi(noise)."""
        return drawn_symbols(prob, noise)

    @final
    def hot(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The one-hot code, (B, *shape, size)."""
        return torch.nn.functional.one_hot(x, self.size).to(dtype)

    @final
    def rescheduled(self, schedule: Schedule) -> Any:
        """The same process under another schedule."""
        return dataclasses.replace(self, schedule=schedule)

    @final
    def same_level(self, z: Tensor, t: Time, other: Discrete) -> tuple[Tensor, Tensor]:
        """(z, t') at the same level under another process of these symbols."""
        return z, other.clock.time(self.level(t))

    # -- inputs and outputs of a network -----------------------------------------------------------------------------

    @final
    def noise_level(self, t: Time) -> Tensor:
        """The noise level of logsnr = 2 logit alpha, as for `schedules.Flow`."""
        return noise_level(2 * torch.logit(self.keep(t)))

    @final
    def inputs(self, z: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """The code of the symbols (`_code`) as channels, (B, K C, ..), of K = 2 the last alone, and the noise level."""
        code = self._code(z)
        level = self.noise_level(t).to(z.device)
        return (code[..., 1] if self.states == 2 else alphabet.as_channels(code)), level

    def _code(self, z: Tensor) -> Tensor:
        """(K 1[z = k] - 1) / sqrt(K - 1), float32 (B, *shape, K): -1 and 1 for K = 2; masks are 0."""
        hot = self.hot(z, torch.float32)[..., : self.states]
        return (self.states * hot - hot.sum(-1, keepdim=True)) / math.sqrt(self.states - 1)

    @final
    def prediction(self, y: Tensor, z: Tensor) -> Tensor:
        """A network's output (B, K C, ..), or (B, C, ..) of log-odds for K = 2, as (B, *shape, K)."""
        if y.ndim == z.ndim + 1:
            return y
        if self.states == 2:
            return torch.stack((torch.zeros_like(y), y), -1)
        return alphabet.by_symbol(y, self.states)

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

    # -- the loss ----------------------------------------------------------------------------------------------------

    @final
    def loss(
        self,
        belief: Any,
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

    # -- data and files ----------------------------------------------------------------------------------------------

    @final
    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a state: that of a sample."""
        return tuple(shape)

    def data(self, x: Tensor) -> Tensor:
        """Data as symbols, int64; SfumatoError if they are not integers in 0 .. states - 1."""
        return alphabet.symbols(x, self.states)

    @final
    def table(self, x: Tensor) -> Tensor:
        """The symbols as numbers."""
        return x

    @final
    def contract(self, spec: DataSpec) -> DataSpec:
        """The spec of data that are symbols, with the identity as normaliser."""
        return self.unscaled(spec, range(len(spec.normaliser.mean)))

    @final
    def unscaled(self, spec: DataSpec, channels: Sequence[int]) -> DataSpec:
        """The spec with these channels left unscaled; SfumatoError if they do not hold symbols."""
        return alphabet.unscaled(spec, channels, self.states)

    def config(self) -> dict[str, Any]:
        args = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"name": type(self).__name__, "args": {**args, "schedule": self.schedule.config()}}


def divergence(true: Tensor, model: Tensor) -> Tensor:
    """true log(true / model) - true + model of rates of at least 0, precise where they are close."""
    tiny = torch.finfo(true.dtype).tiny
    true, model = true.clamp_min(tiny), model.clamp_min(tiny)
    gap = model.log() - true.log()
    near = true * (torch.expm1(gap.clamp_max(1.0)) - gap)
    return torch.where(gap > 1, model - true - true * gap, near)
