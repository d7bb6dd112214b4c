"""Adapters: few trained weights beside the fixed ones of a network.

    LoRA          W = W_0 + (alpha / r) U D,   U (out, r) = 0 initially,   D (r, in)
    convolution   the same with D a kernel (r, in, taps) and U of one tap: r channels between the two
    new rows      W = W_0, plus trained numbers (0 initially) at some places of one axis, as new classes have them

At the start the network's output is that of W_0, bit for bit, and merging the adapters into W changes nothing.
Source: Hu et al. 2021 (2106.09685).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import register_parametrization

from ..errors import SfumatoError
from ..registry import register
from ..trees import tree
from .around import Around
from .build import from_config


class LowRank(nn.Module):
    """W -> W + (alpha / r) U D for a weight (out, in, *taps), with U (out, r) and D (r, in, *taps).

    The rank is at most that of the matrix (out, in taps); alpha / r is that of the rank asked for.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        rank = min(rank, len(weight), weight[0].numel())
        self.down = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # small changes of W would be rounded away
            return weight + (self.scale * (self.up @ self.down.flatten(1))).view(weight.shape)


class Places(nn.Module):
    """W -> W with trained numbers, 0 initially, added at the places `index` of an axis."""

    def __init__(self, weight: Tensor, axis: int, index: Sequence[int]) -> None:
        super().__init__()
        self.axis = axis
        self.index: Tensor
        self.register_buffer("index", torch.tensor(index, device=weight.device), persistent=False)
        self.delta = nn.Parameter(torch.zeros_like(weight.index_select(axis, self.index)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight.index_add(self.axis, self.index, self.delta)


@register("network", "Adapted")
class Adapted(Around):
    """The network `net` with fixed weights and adapters, which alone are trained.

    Args: `rank` r of the adapters of all linear maps and convolutions, 0 for none; `alpha` (default: r) scales them by
    alpha / r; `new`: names of the parameters of `net` that are trained whole, as those of a new condition are; `parts`:
    name of a parameter -> (axis, places) that are trained in it, as the rows of new classes; `base`: the fingerprint of
    the network before, by which a file of the adapters alone knows it.
    """

    def __init__(
        self,
        net: nn.Module,
        rank: int = 0,
        alpha: float | None = None,
        new: Sequence[str] = (),
        parts: Mapping[str, Any] | None = None,
        base: str = "",
    ) -> None:
        super().__init__(net)
        alpha, parts = float(rank if alpha is None else alpha), dict(parts or {})
        if rank < 0 or not math.isfinite(alpha):
            raise SfumatoError(
                f"adapters need a rank of 1 or more (0 for none) and a finite alpha, not {rank}, {alpha}"
            )
        self.config: dict[str, Any]
        with suppress(SfumatoError):  # a network without a config leaves this one without a config too
            args = {"net": tree(net), "rank": rank, "alpha": alpha, "new": list(new), "parts": parts, "base": base}
            self.config = {"name": "Adapted", "args": args}
        self.rank, self.alpha, self.new, self.parts, self.base = rank, alpha, tuple(new), parts, base
        known = dict(net.named_parameters())
        if unknown := next((name for name in (*self.new, *parts) if name not in known), None):
            raise SfumatoError(f"the network has no parameter {unknown!r} to adapt")
        for name, (axis, index) in parts.items():
            module, key = _owner(net, name)
            register_parametrization(module, key, Places(known[name], axis, index))
        for name, module in list(net.named_modules()) if rank else ():
            if isinstance(module, nn.Linear | _ConvNd) and f"{name}.weight".removeprefix(".") not in self.new:
                register_parametrization(module, "weight", LowRank(module.weight, rank, alpha))
        self.freeze()

    def own(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by their names in this network."""
        adapters = {id(p) for m in self.modules() if isinstance(m, LowRank | Places) for p in m.parameters()}
        whole = {f"net.{name}" for name in self.new}
        return {name: p for name, p in self.named_parameters() if id(p) in adapters or name in whole}

    def freeze(self) -> None:
        """Let the parameters of `own` alone have gradients."""
        own = self.own()
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in own)

    def merged(self) -> nn.Module:
        """A copy of `net` with the adapters merged into its weights: a plain network again, of the same output."""
        with torch.random.fork_rng(devices=[]):  # its first weights are overwritten
            made = from_config(self.config["args"]["net"])
        made.to(next(self.parameters()))
        made.load_state_dict(self.plain())
        return made.train(self.training).requires_grad_(True)

    def plain(self, adapted: bool = True) -> dict[str, Tensor]:
        """The state dict of `net` as it was without adapters: with them merged into the weights, or without them."""
        found = {}
        for name, value in self.net.state_dict().items():
            owner, mark, rest = name.partition(".parametrizations.")
            key, _, place = rest.partition(".")
            if not mark:
                found[name] = value
            elif place == "original":
                full = getattr(self.net.get_submodule(owner), key).detach() if adapted else value
                found[f"{owner}.{key}".removeprefix(".")] = full
        return found


def _owner(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    """(the module that has a parameter, its name there)."""
    path, _, key = name.rpartition(".")
    return net.get_submodule(path), key


def unadapted(net: nn.Module) -> nn.Module:
    """The network inside adapters, or the network itself."""
    return net.net if isinstance(net, Adapted) else net


def trained_names(net: nn.Module) -> set[str]:
    """The names of the tensors of a network that training changes: of an adapted one, those of its adapters."""
    return set(net.own()) if isinstance(net, Adapted) else set(net.state_dict())


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network, with its adapters merged into the weights."""
    return net.plain() if isinstance(net, Adapted) else net.state_dict()


def trainable(model: nn.Module) -> tuple[int, int]:
    """(number of parameters, number of those that are trained) of a model."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
