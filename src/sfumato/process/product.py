"""A product of processes: a state is a dict, and each part is corrupted by its own process at a common time.

    q(z_t | x) = prod_n q_n(z_t^n | x^n),   loss = sum_n loss_n,   reverse steps act on each part separately

The network's belief about one part may depend on all parts: for an exact belief the sum of the losses bounds the
joint log-likelihood. Data are a table (B, D) of real numbers, the parts concatenated along the first axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from sfumato.belief import Beliefs
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.process.discrete import Discrete
from sfumato.process.embedded import Embedded
from sfumato.process.protocol import Density, Process
from sfumato.registry import register
from sfumato.schedule import Schedule, Time
from sfumato.state import State


@final
@dataclasses.dataclass(frozen=True)
class _Along:
    """A density of the product's level, transformed to the level of a part at the same t: p(t) is the same."""

    times: Density
    clock: Schedule

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        if schedule == self.clock:
            return self.times.density(logsnr, schedule)
        t = schedule.time(logsnr)
        level, rate = self.clock.logsnr(t), self.clock.dlogsnr(t) / schedule.dlogsnr(t)
        return self.times.density(level, self.clock) * rate.abs()


@register("process", "product")
@final
@dataclasses.dataclass(frozen=True)
class Product:
    """Product({"height": Gaussian(Flow()), "kind": Masked(Flow(), 3)}): a state is {"height": .., "kind": ..}.

    shapes: the shape of one sample of each part, default (1,). Levels, weights and densities refer to the clock of the
    first part; the other parts are at the same t.
    """

    processes: Mapping[str, Process]
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    default_solver = "bridge"

    def __post_init__(self) -> None:
        if not self.processes or not isinstance(self.processes, Mapping):
            raise SfumatoError("A product needs a dict, part name -> process, of at least one part.")
        unknown = next((name for name in self.shapes if name not in self.processes), None)
        if unknown is not None:
            raise SfumatoError(f"This product has no part {unknown!r}: it has {', '.join(self.processes)}.")
        shapes = {name: tuple(self.shapes.get(name, (1,))) for name in self.processes}
        if not all(shapes.values()) or len({shape[1:] for shape in shapes.values()}) > 1:
            raise SfumatoError(f"The parts of a product must have a first axis, and agree in all others, not {shapes}.")
        wrong = next((name for name, process in self.processes.items() if not hasattr(process, "clock")), None)
        wrong = next((name for name, part in self.processes.items() if isinstance(part, Product)), wrong)
        if wrong is not None:
            raise SfumatoError(
                f"The part {wrong!r} of a product is not a process of numbers or symbols, such as Gaussian or Masked."
            )
        learned = next((name for name, p in self.processes.items() if getattr(p, "codebook", "") == "learned"), None)
        if learned is not None:
            raise SfumatoError(
                f"The part {learned!r} of a product has learned vectors, for which its network has no place: take "
                "codebook='bits', 'simplex' or 'random'."
            )
        object.__setattr__(self, "processes", dict(self.processes))
        object.__setattr__(self, "shapes", shapes)

    def __hash__(self) -> int:
        return hash((*self.processes.items(), *self.shapes.items()))

    @property
    def clock(self) -> Schedule:
        """The clock of the first part."""
        return next(iter(self.processes.values())).clock

    def level(self, t: Time) -> Tensor:
        """The level of the first part at times t."""
        return next(iter(self.processes.values())).level(t)

    def _each(self, f: Callable[[Process, str], Any]) -> dict[str, Any]:
        return {name: f(process, name) for name, process in self.processes.items()}

    def prior(self, noise: State) -> State:
        """z_1 of every part."""
        return self._each(lambda process, name: process.prior(noise[name]))

    def corrupt(self, x: State, t: Time, noise: Noise | State) -> State:
        """z_t of every part, with independent noise."""
        return self._each(lambda process, name: process.corrupt(x[name], t, _own(noise, name)))

    def noise_level(self, t: Time) -> Tensor:
        """The network's noise level of the first part."""
        return next(iter(self.processes.values())).noise_level(t)

    def inputs(self, z: State, t: Time) -> tuple[Tensor, Tensor]:
        """The network inputs of the parts, concatenated along the channels, and the noise level of the first part."""
        inputs = [process.inputs(z[name], t) for name, process in self.processes.items()]
        dtype = torch.float32
        for part, _ in inputs:
            dtype = torch.promote_types(dtype, part.dtype)
        return torch.cat([part.to(dtype) for part, _ in inputs], 1), inputs[0][1]

    def prediction(self, y: Tensor, z: State) -> Tensor:
        """The output itself, the parts' channels concatenated."""
        return y

    def read(self, y: Tensor, z: State, t: Time) -> Beliefs:
        """A belief for each part, from its channels of y."""
        widths = [self._width(name) for name in self.processes]
        if y.shape[1] != sum(widths):
            parts = ", ".join(f"{name} {width}" for name, width in zip(self.processes, widths, strict=True))
            raise SfumatoError(
                f"A network for this product needs {sum(widths)} outputs along the first axis ({parts}), not "
                f"{y.shape[1]}."
            )
        outputs = dict(zip(self.processes, y.split(widths, 1), strict=True))
        return Beliefs(self._each(lambda process, name: process.read(outputs[name], z[name], t)))

    def _width(self, name: str) -> int:
        process = self.processes[name]
        outputs = getattr(process, "outputs", 2 if getattr(process, "variance", "fixed") == "learned" else 1)
        return outputs * process.net_shape(self.shapes[name])[0]

    def check_net(self, net: Any) -> None:
        """Raise SfumatoError if a part's target is undefined at its schedule's end."""
        for process in self.processes.values():
            process.check_net(None)

    def loss(
        self,
        belief: Beliefs,
        x: State,
        noise: Noise | State,
        weight: Callable[[Tensor], Tensor] | None,
        times: Density,
    ) -> Tensor:
        """The sum of the parts' losses, (B,), each at its own level at the common time."""
        density = _Along(times, self.clock)
        losses = [
            process.loss(belief[name], x[name], _own(noise, name), weight, density)
            for name, process in self.processes.items()
        ]
        return torch.stack(losses).sum(0)

    def prior_kl(self, x: State) -> Tensor:
        """The sum of the parts' prior KLs, float64 (B,)."""
        return torch.stack([*self._each(lambda process, name: process.prior_kl(x[name])).values()]).sum(0)

    def state_shape(self, shape: Any) -> Any:
        """The shapes of the parts' states."""
        return self._each(lambda process, name: process.state_shape(shape[name]))

    def net_shape(self, shape: Any = None) -> tuple[int, ...]:
        """The shape of the network's input: the channels of all parts concatenated."""
        shapes = [process.net_shape(self.shapes[name]) for name, process in self.processes.items()]
        return (sum(part[0] for part in shapes), *shapes[0][1:])

    def sample_shape(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes of the parts; the network's `shape` does not matter."""
        return dict(self.shapes)

    def data(self, x: State) -> State:
        """Split a table (B, D, ..) into the parts along its first axis."""
        if isinstance(x, Mapping):
            return self._each(lambda process, name: process.data(x[name]))
        widths = [shape[0] for shape in self.shapes.values()]
        if x.ndim < 2 or x.shape[1] != sum(widths):
            raise SfumatoError(
                f"The data of this product need {sum(widths)} columns along the first axis; got the shape "
                f"{tuple(x.shape)}."
            )
        parts = dict(zip(self.processes, x.split(widths, 1), strict=True))
        return self._each(lambda process, name: process.data(parts[name]))

    def table(self, x: State) -> Tensor:
        """The parts concatenated as real numbers (B, D, ..)."""
        parts = [process.table(x[name]) for name, process in self.processes.items()]
        dtype = next((part.dtype for part in parts if part.is_floating_point()), torch.float32)
        return torch.cat([part.to(dtype) for part in parts], 1)

    def contract(self, spec: DataSpec) -> DataSpec:
        """The spec of the table with the columns of symbols left unscaled."""
        first = 0
        for name, process in self.processes.items():
            width = self.shapes[name][0]
            if isinstance(process, Discrete | Embedded):
                spec = process.unscaled(spec, range(first, first + width))
            first += width
        return spec

    def config(self) -> dict[str, Any]:
        parts = {name: process.config() for name, process in self.processes.items()}
        return {"name": "Product", "args": {"processes": parts, "shapes": {k: list(v) for k, v in self.shapes.items()}}}


def _own(noise: Noise | State, name: str) -> Noise | State:
    """The noise of one part."""
    return noise.fold(name) if isinstance(noise, Noise) else noise[name]
