"""A network with more conditions or classes than before, whose output is at first that of before.

    new class        E[new + 1] = E[0], the row of no class
    new condition    its last layer and its null are 0, or where it is channels beside x its weights in the first layer

Zeros are added to the conditioning vector, so that the output is the same bit for bit; with new channels as far as the
sums of the first layer are rounded alike with zeros in them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import trees
from ..errors import SfumatoError
from .build import from_config
from .conditions import Described, arguments, places_beside

Places = tuple[int, list[int]]


class Grown(NamedTuple):
    """net: the larger network; new: names of its parameters that are new; parts: of those that have grown, the axis and
    the places that are new."""

    net: nn.Module
    new: tuple[str, ...]
    parts: dict[str, Places]


def core(net: nn.Module) -> nn.Module | None:
    """The network of this package that says its conditions (`given`), perhaps within wrappers; None for others."""
    return next((part for part in net.modules() if {"given", "config"} <= vars(part).keys()), None)


def grown(net: nn.Module, given: Mapping[str, Mapping[str, Any]]) -> Grown:
    """A copy of a network with these conditions, name -> description: all that it has, some perhaps of more classes.

    New embeddings draw from torch's generator. Raises SfumatoError for a network that is not of this package and for
    conditions that would change its output, as tokens to attend to do.
    """
    inner = core(net)
    if inner is None:
        raise SfumatoError(
            f"{trees.name_of(net)} cannot be given new conditions by itself: give it an argument for each, and train "
            "it from the start."
        )
    made = from_config(_with(trees.tree(net), {name: dict(each) for name, each in given.items()}))
    first: Any = next(iter(net.parameters()))
    made.to(first)
    found = Grown(made.train(net.training), *difference(net, made))
    old, state = _renamed(net, made), made.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if name in found.new:
                _begin(made, name, value)
            elif name in found.parts:
                _extend(value, old[name], *found.parts[name])
            else:
                value.copy_(old[name])
    return found


def difference(net: nn.Module, made: nn.Module) -> tuple[tuple[str, ...], dict[str, Places]]:
    """(names of the parameters that only `made` has, name -> (axis, new places) of those that have grown).

    made: the network with more conditions. Raises SfumatoError if they differ in anything else.
    """
    old, state = _renamed(net, made), made.state_dict()
    new = tuple(name for name in state if name not in old)
    parts = {
        name: _places(net, made, name) for name in state if name not in new and state[name].shape != old[name].shape
    }
    wrong = [name for name in new if not _embeds(name)] + [name for name in old if name not in state]
    if wrong:
        raise SfumatoError(
            "a condition of this kind would change what the network says from the start, by new weights "
            f"({wrong[0]}): train a new network"
        )
    return new, parts


def _embeds(name: str) -> bool:
    return any(part in f".{name}" for part in (".conditioning.label.", ".conditioning.others."))


def _with(config: Mapping[str, Any], given: Described) -> dict[str, Any]:
    """The config of a network, or of one within others, with these conditions."""
    args = dict(config["args"])
    if trees.is_tree(args.get("net")):
        return {**config, "args": args | {"net": _with(args["net"], given)}}
    args.pop("conditions", None)
    return {**config, "args": args | arguments(given)}


def _renamed(net: nn.Module, made: nn.Module) -> dict[str, Tensor]:
    """The weights of `net` by their names in `made`, where the other conditions may have other numbers."""
    old, new = (getattr(getattr(core(each), "conditioning", None), "names", ()) for each in (net, made))
    place = {f"conditioning.others.{i}.": f"conditioning.others.{new.index(name)}." for i, name in enumerate(old)}

    def name_of(name: str) -> str:
        return next((name.replace(was, now) for was, now in place.items() if was in name), name)

    return {name_of(name): value for name, value in net.state_dict().items()}


def _places(net: nn.Module, made: nn.Module, name: str) -> Places:
    """The axis and the places that are new in a parameter that has grown."""
    size = made.state_dict()[name].shape
    if _embeds(name):  # rows of a table, or columns of the map of several labels
        before = _renamed(net, made)[name].shape
        axis = next(i for i, n in enumerate(size) if n != before[i])
        return axis, list(range(before[axis], size[axis]))
    old, new = (places_beside(inner.given, inner.shape) for inner in (core(net), core(made)) if inner is not None)  # type: ignore[arg-type]
    inside = size[1] // len(new)  # places of a channel: the pixels of a patch
    return 1, [i * inside + k for i, place in enumerate(new) if place not in old for k in range(inside)]


def _begin(made: nn.Module, name: str, value: Tensor) -> None:
    """Set a new parameter of an embedding to 0 if it is of the last layer, a null or a row."""
    path, _, layer = name.rpartition(".")[0].rpartition(".")
    if layer != "first" or made.get_submodule(path).second is None:
        value.zero_()


def _extend(value: Tensor, old: Tensor, axis: int, index: list[int]) -> None:
    """Set a grown parameter to the old one and, at its new places, to 0, or for a table to the row of no class."""
    kept = sorted(set(range(value.shape[axis])) - set(index))
    value.zero_().index_copy_(axis, torch.tensor(kept, device=value.device), old)
    if axis == 0:
        value[index] = old[0]
