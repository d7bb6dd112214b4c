"""Networks by name, and the network that suits a shape."""

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SfumatoError
from .dit import DiT
from .mlp import MLP
from .unet import UNet

NETS: dict[str, type[MLP] | type[UNet] | type[DiT]] = {"MLP": MLP, "UNet": UNet, "DiT": DiT}
SIZES = ("auto", "tiny", "small", "base")

# Widths by size: (width, depth) of an MLP; the channels of a U-Net's levels, and the blocks of each.
MLPS = {"tiny": (128, 3), "small": (256, 4), "base": (512, 6)}
UNETS = {"tiny": ((32, 64), 1), "small": ((64, 128), 1), "base": ((128, 256, 256), 2)}
FINEST = {"tiny": 256, "small": 256, "base": 1024}  # places of the finest grid that a patch aims at
ATTENDED = 512  # places that attention may span: beyond, it costs more than the convolutions around it


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def from_config(config: Mapping[str, Any]) -> MLP | UNet | DiT:
    """The network that `net.config` describes, with fresh weights: `from_config(net.config).config == net.config`.

    `config` is {"name": "MLP" | "UNet" | "DiT", "args": {...}}; arguments left out take their defaults.
    Raises SfumatoError for an unknown name or argument, a missing one, or a value that the network refuses.
    """
    if set(config) != {"name", "args"} or not isinstance(config["args"], Mapping):
        raise SfumatoError(f'a network is described by {{"name": ..., "args": {{...}}}}; got the keys {sorted(config)}')
    name, args = config["name"], config["args"]
    if name not in NETS:
        raise SfumatoError(f"unknown network {name!r}: {_suggest(str(name), list(NETS))}")
    parameters = inspect.signature(NETS[name]).parameters
    for key in args:
        if key not in parameters:
            raise SfumatoError(f"{name} has no argument {key!r}: {_suggest(str(key), list(parameters))}")
    missing = [key for key, p in parameters.items() if p.default is p.empty and key not in args]
    if missing:
        raise SfumatoError(f"{name} needs the argument {missing[0]!r}")
    return NETS[name](**args)


def build(shape: Sequence[int], classes: int = 0, size: str = "auto", samples: int | None = None) -> MLP | UNet:
    """A network for samples of `shape`: (D,) gives an MLP; (C, L), (C, H, W) and (C, D, H, W) give a U-Net.

    Args: `classes`, 0 for none; `size` "tiny", "small", "base", or "auto", which learns within minutes on a laptop's
    processor: small, or tiny for fewer than 500 `samples` and for volumes.
    Raises SfumatoError for a shape of another rank or an unknown size.
    """
    if size not in SIZES:
        raise SfumatoError(f"unknown network size {size!r}: {_suggest(size, SIZES)}")
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise SfumatoError(f"no network for samples of shape {tuple(shape)}: give (D,) or (C, *spatial), 1 to 3 axes")
    if size == "auto":
        size = "tiny" if len(shape) == 4 or (samples is not None and samples < 500) else "small"
    if len(shape) == 1:
        width, depth = MLPS[size]
        return MLP(shape[0], width, depth, classes)
    channels, blocks = UNETS[size]
    spatial = shape[1:]
    patch = _patch(spatial, FINEST[size])
    places = math.prod(-(-n // min(patch, n)) for n in spatial)
    levels = range(len(channels))
    attention = [i for i in levels if i > 0 and places / 2 ** (i * len(spatial)) <= ATTENDED]
    return UNet(shape, channels, blocks, attention, patch=patch, classes=classes)


def _patch(spatial: Sequence[int], finest: int) -> int:
    """1, 2 or 4: the smallest that leaves at most about `finest` places."""
    for patch in (1, 2):
        if math.prod(-(-n // min(patch, n)) for n in spatial) <= 1.2 * finest:
            return patch
    return 4
