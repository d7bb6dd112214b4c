"""Several processes at once: a state is a dict, and each part is corrupted by its own process under one time.

    q(z_t | x) = prod_n q_n(z_t^n | x^n),   loss = sum_n loss_n,   a bridge takes every part by itself

What a network believes of one part may depend on all: an exact belief makes the sum of the losses a bound on the joint
law. Data are a table (B, D): the parts lie side by side along the first axis, and are written in real numbers.
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
from sfumato.process.protocol import Density, Process
from sfumato.process.symbols import Symbols
from sfumato.registry import register
from sfumato.schedule import Schedule, Time
from sfumato.state import State


@final
@dataclasses.dataclass(frozen=True)
class _Along:
    """A density of levels under the clock of the whole, as that of a part: p(t) is the same."""

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

    shapes: of one sample of each part, (1,) where not given. Levels, weights and densities are stated in the clock of
    the first part; the others stand at the same t.
    """

    processes: Mapping[str, Process]
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    default_solver = "bridge"

    def __post_init__(self) -> None:
        if not self.processes or not isinstance(self.processes, Mapping):
            raise SfumatoError("A product is a dict of at least one process, by the names of its parts.")
        stranger = next((name for name in self.shapes if name not in self.processes), None)
        if stranger is not None:
            raise SfumatoError(f"A product has no part {stranger!r}: it has {', '.join(self.processes)}.")
        shapes = {name: tuple(self.shapes.get(name, (1,))) for name in self.processes}
        if len({shape[1:] for shape in shapes.values()}) > 1:
            raise SfumatoError(f"The parts of a product have one shape but for their first axis, not {shapes}.")
        inner = next((name for name, process in self.processes.items() if not hasattr(process, "clock")), None)
        inner = next((name for name, part in self.processes.items() if isinstance(part, Product)), inner)
        if inner is not None:
            raise SfumatoError(
                f"The part {inner!r} of a product is no process of numbers or symbols, such as Gaussian."
            )
        object.__setattr__(self, "processes", dict(self.processes))
        object.__setattr__(self, "shapes", shapes)

    def __hash__(self) -> int:
        return hash((*self.processes.items(), *self.shapes.items()))

    @property
    def clock(self) -> Schedule:
        """That of the first part."""
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
        """z_t of every part, each with noise of its own."""
        return self._each(lambda process, name: process.corrupt(x[name], t, _own(noise, name)))

    def noise_level(self, t: Time) -> Tensor:
        """That of the first part."""
        return next(iter(self.processes.values())).noise_level(t)

    def inputs(self, z: State, t: Time) -> tuple[Tensor, Tensor]:
        """The inputs of the parts' networks side by side along the channels, and the noise level of the first."""
        heard = [process.inputs(z[name], t) for name, process in self.processes.items()]
        dtype = torch.float32
        for part, _ in heard:
            dtype = torch.promote_types(dtype, part.dtype)
        return torch.cat([part.to(dtype) for part, _ in heard], 1), heard[0][1]

    def prediction(self, y: Tensor, z: State) -> Tensor:
        """The answer as it is, the parts' channels side by side."""
        return y

    def read(self, y: Tensor, z: State, t: Time) -> Beliefs:
        """A belief for each part, out of its channels of y."""
        widths = [self._width(name) for name in self.processes]
        if y.shape[1] != sum(widths):
            parts = ", ".join(f"{name} {width}" for name, width in zip(self.processes, widths, strict=True))
            raise SfumatoError(
                f"A network of this product answers with {sum(widths)} numbers along the first axis ({parts}), not "
                f"{y.shape[1]}."
            )
        answers = dict(zip(self.processes, y.split(widths, 1), strict=True))
        return Beliefs(self._each(lambda process, name: process.read(answers[name], z[name], t)))

    def _width(self, name: str) -> int:
        process = self.processes[name]
        outputs = 2 if getattr(process, "variance", "fixed") == "learned" else 1
        return outputs * process.net_shape(self.shapes[name])[0]

    def check_net(self, net: Any) -> None:
        """Refuse a part that no network can be read by."""
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
        """The sum of the parts' losses, (B,), each at its own level of the one time."""
        seen = _Along(times, self.clock)
        losses = self._each(lambda process, name: process.loss(belief[name], x[name], _own(noise, name), weight, seen))
        return torch.stack([*losses.values()]).sum(0)

    def prior_kl(self, x: State) -> Tensor:
        """The sum over the parts, float64 (B,)."""
        return torch.stack([*self._each(lambda process, name: process.prior_kl(x[name])).values()]).sum(0)

    def net_shape(self, shape: Any = None) -> tuple[int, ...]:
        """The channels of all parts side by side."""
        inner = [process.net_shape(self.shapes[name]) for name, process in self.processes.items()]
        return (sum(part[0] for part in inner), *inner[0][1:])

    def sample_shape(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes of the parts, whatever the network."""
        return dict(self.shapes)

    def data(self, x: State) -> State:
        """A table (B, D, ..) as the parts that lie side by side in it."""
        if isinstance(x, Mapping):
            return self._each(lambda process, name: process.data(x[name]))
        widths = [shape[0] for shape in self.shapes.values()]
        if x.ndim < 2 or x.shape[1] != sum(widths):
            raise SfumatoError(
                f"The data of this product have {sum(widths)} numbers along the first axis, not the shape "
                f"{tuple(x.shape)}."
            )
        parts = dict(zip(self.processes, x.split(widths, 1), strict=True))
        return self._each(lambda process, name: process.data(parts[name]))

    def table(self, x: State) -> Tensor:
        """The parts side by side, as real numbers (B, D, ..)."""
        parts = [process.table(x[name]) for name, process in self.processes.items()]
        dtype = next((part.dtype for part in parts if part.is_floating_point()), torch.float32)
        return torch.cat([part.to(dtype) for part in parts], 1)

    def contract(self, spec: DataSpec) -> DataSpec:
        """The contract of data that are a table: symbols in it are not scaled."""
        first = 0
        for name, process in self.processes.items():
            width = self.shapes[name][0]
            if isinstance(process, Symbols):
                spec = process.unscaled(spec, range(first, first + width))
            first += width
        return spec

    def config(self) -> dict[str, Any]:
        parts = {name: process.config() for name, process in self.processes.items()}
        return {"name": "Product", "args": {"processes": parts, "shapes": {k: list(v) for k, v in self.shapes.items()}}}


def _own(noise: Noise | State, name: str) -> Noise | State:
    """The noise of one part."""
    return noise.fold(name) if isinstance(noise, Noise) else noise[name]
