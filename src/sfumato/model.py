"""A denoiser: a network and a process that together turn a noisy state into a belief about the data.

    belief = process.read(net(*process.inputs(z, t), **conditions), z, t)

The network receives the noise level, not the time, so that it works under any schedule (`compose.Rescheduled`). The
process defines the network's inputs, its prediction target and how the output is interpreted.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sfumato.belief import Belief, Estimate
from sfumato.conditions import CARRIED, PREVIOUS, network_inputs, present
from sfumato.errors import SfumatoError, an
from sfumato.process import Discrete, Embedded, Gaussian, Process, Product, given, heard
from sfumato.process.protocol import noise_level as noise_level
from sfumato.registry import register
from sfumato.schedule import Time
from sfumato.state import Shape, State


@runtime_checkable
class AnyModel(Protocol):
    """Anything that maps a state to a belief."""

    @property
    def process(self) -> Process: ...

    def __call__(self, z: State, t: Time, /, **cond: Any) -> Belief: ...


@runtime_checkable
class Model(Protocol):
    """A model of real numbers: its belief is an `Estimate`."""

    @property
    def process(self) -> Gaussian: ...

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate: ...


def usable(model: Any, what: str) -> Any:
    """The model itself. Raises SfumatoError, naming `what`, for anything else."""
    if not callable(model) or not hasattr(model, "process"):
        raise SfumatoError(
            f"{what} takes a model, such as sf.load(path) or sf.Denoiser(net, process) gives, not "
            f"{an(type(model).__name__)}."
        )
    if getattr(getattr(model, "device", None), "type", "") == "meta":
        raise SfumatoError(f"{what} needs numbers, and this model is on the meta device: load it on another one.")
    return model


def hears(model: Any, name: str) -> bool:
    """Whether the network of a model hears a condition of this name."""
    return name in (getattr(getattr(model, "net", None), "given", None) or {})


def unordered(model: Any) -> bool:
    """Whether the network of a model says the same of each order of a set of points, as `nets.SetTransformer` does."""
    return bool(getattr(getattr(model, "net", None), "unordered", False))


def compute_dtype(model: Any) -> torch.dtype:
    """The dtype of a model's states: that of its parameters, float64 if it has none."""
    parameters = getattr(model, "parameters", None)
    return next((p.dtype for p in parameters()), torch.float64) if parameters else torch.float64


def running_in(low: torch.dtype | None, device: torch.device) -> torch.autocast:
    """Autocast to `low`; None switches autocast off.

    Weights are cast anew each time: torch would keep their casts until the outermost autocast ends, which may be the
    caller's and last longer than a step, and the network would go on with the weights of its first call.
    """
    return torch.autocast(device.type, low or torch.bfloat16, enabled=low is not None, cache_enabled=False)


@register("model", "Denoiser")
class Denoiser(nn.Module):
    """denoiser(z, t, **cond) -> the belief about z: `Estimate`, `Logits`, or one for each part of a product.

    net: called as net(input, noise_level (B,), **values), where the process computes input from z (`process.inputs`),
    and the output has the same shape; a network whose forward takes `present` also receives present={name: bool (B,)},
    where each condition is known. Of symbols, a network with `takes_symbols` is given z itself, int64 (B, *shape), and
    returns logits (B, *shape, K). process: `Gaussian(schedule, target)`, `Masked`, `Uniform`, `Embedded` or `Product`;
    target, sigma_data and variance, if not None, replace those of a Gaussian one. spec: the data's contract
    (`data.DataSpec`), which holds the user's units; None for plain tensors.
    noise_levels: (lowest, highest) of training; the network's input is clamped to this range.
    compute_dtype: torch.bfloat16 runs the network under autocast; scaling and belief stay in float32 or better.
    """

    def __init__(
        self,
        net: nn.Module,
        process: Process,
        target: str | None = None,
        sigma_data: float | None = None,
        spec: Any = None,
        plans: dict[str, Any] | None = None,
        variance: str | None = None,
        noise_levels: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        changes = {"target": target, "sigma_data": sigma_data, "variance": variance}
        if not callable(net):
            raise SfumatoError(f"The network of a denoiser is called as net(input, noise_level), not {net!r:.80}.")
        if not hasattr(process, "check_net"):
            raise SfumatoError(f"The process of a denoiser is one such as sf.Gaussian(schedule), not {process!r:.80}.")
        self.net = net
        self.process = _with(process, {k: v for k, v in changes.items() if v is not None})
        self._process.check_net(net)
        self.spec = spec
        self.plans = dict(plans or {})
        self.noise_levels = noise_levels
        self.compute_dtype: torch.dtype | None = None
        self.provenance: dict[str, Any] = {}

    @property
    def process(self) -> Any:
        """The process; where the vectors of symbols are learned, with those of the network."""
        return self._process.of(self.net) if isinstance(self._process, Embedded) else self._process

    @process.setter
    def process(self, process: Any) -> None:
        self._process = process

    @property
    def spec(self) -> Any:
        """The data's contract, adapted to the process: symbols are not scaled."""
        return self._spec

    @spec.setter
    def spec(self, spec: Any) -> None:
        self._spec = None if spec is None else self.process.contract(spec)

    @property
    def noise_levels(self) -> tuple[float, float] | None:
        """(lowest, highest) noise level of training; None if unknown."""
        return self._noise_levels

    @noise_levels.setter
    def noise_levels(self, levels: Sequence[float] | None) -> None:
        if levels is not None:
            low, high = (float(level) for level in levels)
            if not -math.inf < low < high < math.inf:
                raise SfumatoError(f"noise_levels must be two finite numbers, the lower first, not {levels!r:.80}.")
            levels = (low, high)
        self._noise_levels: tuple[float, float] | None = levels

    def _within(self, level: Tensor) -> Tensor:
        return level if self._noise_levels is None else level.clamp(*self._noise_levels)

    @property
    def shape(self) -> Shape | None:
        """Shape of one sample, None if unknown; a dict of shapes for a product."""
        if isinstance(self.process, Product):
            return dict(self.process.shapes)
        own, heard = getattr(self.spec, "shape", None), getattr(self.net, "shape", None)
        if own is not None:
            return tuple(own)
        return None if heard is None else self.process.sample_shape(tuple(heard))

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    @property
    def remembers(self) -> bool:
        """Whether the network is self-conditioned: a walk then tells it the clean signal of the call before."""
        return hears(self, PREVIOUS)

    @property
    def carries(self) -> bool:
        """Whether the network has latents for its next call in a walk, as `nets.RIN` has."""
        return bool(getattr(self.net, "carries", False))

    def config(self) -> dict[str, Any]:
        """The arguments to store in a file; target, sigma_data and variance are part of the process."""
        own = {"net": self.net, "process": self.process, "spec": self.spec, "plans": self.plans}
        return own | {"noise_levels": self.noise_levels}

    # Only a Gaussian process has these attributes.

    @property
    def target(self) -> str:
        """What the network predicts, one of x, eps, score, v, velocity, F."""
        name: str = self.process.target
        return name

    @property
    def sigma_data(self) -> float:
        """The standard deviation of the normalised data."""
        value: float = self.process.sigma_data
        return value

    @property
    def variance(self) -> str:
        """The variance of an ancestral step: fixed or learned."""
        name: str = self.process.variance
        return name

    def scaling(self, t: Time, device: torch.device) -> tuple[Tensor, Tensor]:
        """(c_in, noise level) of a Gaussian process: the network is called with (c_in z, noise level)."""
        c_in, level = self.process.scaling(t, device)
        return c_in, self._within(level)

    def predict(self, z: State, t: Time, /, **cond: Any) -> Tensor:
        """The network's prediction of the target, shaped like z; for symbols (B, *shape, K)."""
        found: Tensor = self.process.prediction(self.raw(z, t, **cond), z)
        return found

    def raw(self, z: State, t: Time, where: Tensor | None = None, /, **cond: Any) -> Tensor:
        """The network's raw output, in the dtype of its input (at least float32).

        where: bool, like z: of a network that can leave out the others (`selects`), the logits there alone, (n, K).
        """
        return self._called(z, t, cond, {} if where is None else {"where": where})[0]

    def _called(self, z: State, t: Time, cond: dict[str, Any], asked: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """(the network's raw output, what it carries to its next call if `asked` for it by `carry`)."""
        x, level = self._inputs(z, t, cond)
        dtype = x.dtype
        if not (isinstance(z, Tensor) and z.is_floating_point()):  # symbols use the precision of the weights
            dtype = next((p.dtype for p in self.net.parameters()), torch.float32)
            x = x.to(dtype) if x.is_floating_point() else x
        here = present(cond)
        if here is not None and getattr(self.spec, "lengths", None) is not None:  # noise beyond an end says nothing
            x = x * here.to(x)
        level = self._within(level).expand(len(x))
        deaf = {name for name, hears in ((PREVIOUS, self.remembers), (CARRIED, self.carries)) if not hears}
        told = {name: value for name, value in cond.items() if name not in deaf}
        low, values = self.compute_dtype, network_inputs(heard(self.process, told), self.net) | asked
        plain = low is None and not torch.is_autocast_enabled(x.device.type)
        with nullcontext() if plain else running_in(low, x.device):
            y = self.net(x, level, **values)
        y, carried = y if "carry" in asked else (y, None)
        return y.to(dtype), carried

    def _inputs(self, z: State, t: Time, cond: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The network's inputs, of which the first are the symbols themselves where it takes them."""
        if isinstance(self.process, Discrete) and getattr(self.net, "takes_symbols", False):
            assert isinstance(z, Tensor)
            return z, self.process.noise_level(t).to(z.device)
        return given(self.process, cond).inputs(z, t)

    def forward(self, z: State, t: Time, /, **cond: Any) -> Any:
        y, carried = self._called(z, t, cond, {"carry": True} if self.carries else {})
        belief = self.process.read(y, z, t)
        if carried is not None and isinstance(belief, Estimate):
            belief.carried = carried
        return belief


def _with(process: Process, changes: dict[str, Any]) -> Process:
    """The process with arguments of a Gaussian one replaced."""
    if not changes:
        return process
    if not isinstance(process, Gaussian):
        raise SfumatoError(
            f"{', '.join(changes)} belong to a Gaussian process, and this one is {type(process).__name__}: leave them "
            "out."
        )
    return dataclasses.replace(process, **changes)


def with_net(model: Any, net: nn.Module) -> Any:
    """The same model with another network of the same kind instead of its own; nothing is copied."""
    made = copy.copy(model)
    if isinstance(model, nn.Module) and "net" in model._modules:
        made._modules = {**model._modules, "net": net}
    elif isinstance(model, nn.Module):
        made._modules = {**model._modules, "inner": with_net(model.inner, net)}
    else:
        made.inner = with_net(model.inner, net)
    return made
