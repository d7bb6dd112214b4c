"""Build networks from their names or configs, and choose one for a sample shape."""

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from torch import nn

from .. import registry, trees
from ..errors import SfumatoError, suggest
from ..registry import register
from .blocks import halved
from .captioned import Captioned, behind, canvas_shape, captions
from .dit import DiT
from .energy import Energy
from .fields import per_axis_patch
from .mlp import MLP
from .painted import Painted, with_canvas
from .transformer import Transformer
from .unet import UNet

# By size: (width, depth) of an MLP; for a U-Net the channels of levels of up to 100, up to 300 and more positions, the
# blocks per level, and the number of levels with attention.
MLPS = {"tiny": (128, 3), "small": (256, 4), "base": (512, 6)}
UNETS = {"tiny": ((64, 32, 16), 1, 1), "small": ((128, 64, 32), 1, 1), "base": ((256, 128, 64), 2, 2)}
TRANSFORMERS = {"tiny": (64, 2), "small": (128, 4), "base": (384, 8)}  # (width, depth)
OF_TABLES = 64  # most elements of the vector that tells the level: a longer one would take half of a step's time
SIZES = ("auto", *MLPS)
FINEST = 1200  # most positions of the finest level: larger inputs are patched
COARSEST = 100  # most positions of the coarsest level: levels are added until it is this small
PAINTED = ("UNet", "DiT", "UViT", "RIN")  # networks for whose captions a canvas is painted
ATTENDED = 512  # most positions that attend: beyond, attention costs more than the convolutions around it


def from_config(config: Mapping[str, Any]) -> nn.Module:
    """The network that `net.config` describes, with fresh weights: `from_config(net.config).config == net.config`.

    `config` is {"name": "MLP" | "UNet" | .., "args": {...}}; arguments left out take their defaults, and an argument
    that is itself a network is a nested config.
    Raises SfumatoError for an unknown name, an unknown or missing argument, or a value that the network refuses.
    """
    net: nn.Module = trees.build(config, "network")
    return net


def named(
    word: Any,
    shape: Sequence[int],
    classes: int = 0,
    samples: int | None = None,
    outputs: int = 1,
    conditions: Mapping[str, Mapping[str, Any]] | None = None,
    symbols: bool = False,
    mask: str = "full",
    vocabulary: int = 0,
    numbers: int = 0,
    vectors: Sequence[str] = (),
) -> nn.Module:
    """The network for samples of `shape` from a name or expression: "auto", "DiT(depth=8)" or any registered name.

    `shape`, `dim` (D of vectors), `classes`, `samples`, `outputs`, `conditions`, `symbols`, `mask`, `vocabulary` and
    `numbers` fill those of the network's arguments that the expression leaves out. Captions are read in front of the
    network (`Captioned`): of vectors as one vector, of fields also as tokens and, by ours, as a canvas. The conditions
    `vectors` are painted on a canvas too, by ours for fields (`Painted`).
    """
    if vectors and len(shape) > 1 and not symbols and isinstance(word, str) and registry.bare(word) in PAINTED + SIZES:
        known, sides = dict(conditions or {}), canvas_shape(shape)
        seen, sizes = with_canvas(known, vectors, sides), {name: known[name]["size"] for name in vectors}
        inner = named(word, shape, classes, samples, outputs, seen, symbols, mask, vocabulary, numbers)
        return Painted(inner, sizes, sides)
    defaults: dict[str, Any] = {
        "shape": tuple(shape), "classes": classes, "samples": samples, "outputs": outputs, "symbols": symbols,
        "mask": mask, "vocabulary": vocabulary, "numbers": numbers,
    }  # fmt: skip
    if conditions is not None:
        defaults["conditions"] = conditions
    if len(shape) == 1:
        defaults["dim"] = shape[0]
    elif isinstance(word, str) and registry.bare(word) == "MLP":
        raise SfumatoError(
            f"An MLP takes vectors (D,), and the samples have the shape {tuple(shape)}: flatten them, or take another "
            "network, such as UNet."
        )
    if captions(conditions) and _hears(word):
        tokens = len(shape) > 1
        able = tokens and not symbols and registry.bare(word) in PAINTED + SIZES
        painted = canvas_shape(shape) if able else None
        defaults["conditions"] = behind(conditions or {}, tokens, painted)
        return Captioned(registry.make("network", word, defaults), captions(conditions), tokens, painted)
    net: nn.Module = registry.make("network", word, defaults)
    return net


def _hears(word: Any) -> bool:
    """Whether a network is told its conditions; one that is not is called with captions as they are encoded."""
    return isinstance(word, str) and "conditions" in signature(registry.get("network", registry.bare(word))).parameters


@register("network", "auto", size="auto")
@register("network", "tiny", size="tiny")
@register("network", "small", size="small")
@register("network", "base", size="base")
def build(
    shape: Sequence[int],
    classes: int = 0,
    size: str = "auto",
    samples: int | None = None,
    outputs: int = 1,
    energy: bool = False,
    conditions: Mapping[str, Mapping[str, Any]] | None = None,
    symbols: bool = False,
    mask: str = "full",
    vocabulary: int = 0,
    neighbours: bool = True,
    checkpoint: bool = False,
    numbers: int = 0,
) -> MLP | UNet | Transformer | Energy | Captioned:
    """A network for samples of `shape`: (D,) gives an MLP; (C, L), (C, H, W) and (C, D, H, W) give a U-Net.

    symbols: L symbols of K kinds, as text is, of which `shape` (K, L) gives a Transformer with this `mask` and, unless
    `neighbours` is False, tables of pairs of neighbours; with `vocabulary` K they are given as vectors, `shape` (d, L).
    numbers: of the rows of a table, whose levels need a shorter vector than pictures do.

    Args: `classes`, 0 for none; `size` "tiny", "small", "base", or "auto", which trains within minutes on a laptop's
    CPU: small, or tiny for fewer than 500 `samples`; `outputs`, 2 for a network that also learns a variance; `energy`:
    make the output the gradient of a scalar (`Energy`); `conditions`, name -> description as from
    `conditions.Condition.network`; `checkpoint`: compute the blocks again in the backward pass instead of storing their
    activations.
    Raises SfumatoError for a shape of another rank or an unknown size.
    """
    if read := captions(conditions):
        tokens = len(shape) > 1
        painted = canvas_shape(shape) if tokens and not symbols else None
        seen = behind(conditions or {}, tokens, painted)
        more = (symbols, mask, vocabulary, neighbours, checkpoint, numbers)
        inner = build(shape, classes, size, samples, outputs, energy, seen, *more)
        return Captioned(inner, read, tokens, painted)
    if size not in SIZES:
        raise SfumatoError(f"unknown network size {size!r}: {suggest(size, SIZES)}")
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise SfumatoError(f"no network for samples of shape {tuple(shape)}: use (D,) or (C, *spatial), 1 to 3 axes")
    if size == "auto":
        size = "tiny" if samples is not None and samples < 500 else "small"
    net: MLP | UNet | Transformer
    if symbols:
        width, depth = TRANSFORMERS[size]
        net = Transformer(
            shape, width, depth, mask=mask, classes=classes, conditions=conditions, vocabulary=vocabulary,
            neighbours=neighbours and not vocabulary, checkpoint=checkpoint,
        )  # fmt: skip
    elif len(shape) == 1:
        width, depth = MLPS[size]
        embed_dim = min(width, OF_TABLES) if numbers else None
        net = MLP(
            shape[0], width, depth, classes, embed_dim, outputs=outputs, conditions=conditions, checkpoint=checkpoint,
            numbers=numbers,
        )  # fmt: skip
    else:
        net = _unet(tuple(shape), size, classes=classes, outputs=outputs, conditions=conditions, checkpoint=checkpoint)
    return Energy(net) if energy else net


@register("network", "SetTransformer")
def set_transformer(
    shape: Sequence[int],
    width: int = 128,
    depth: int = 4,
    heads: int | None = None,
    classes: int = 0,
    outputs: int = 1,
    conditions: Mapping[str, Mapping[str, Any]] | None = None,
) -> DiT:
    """A `DiT` without positions for sets of points x (B, C, L): f(P x) = P f(x) for permutations P of the L points.

    Points that are missing, as in sets of several sizes, are not attended to. Source: Lee et al. 2019, "Set
    Transformer" (1810.00825), its blocks of self-attention.
    """
    if len(shape) != 2:
        raise SfumatoError(
            f"a SetTransformer takes sets of points (C, L), and the samples have the shape {tuple(shape)}"
        )
    return DiT(shape, 1, width, depth, heads, classes, "none", outputs=outputs, conditions=conditions)


def _unet(shape: tuple[int, ...], size: str, **more: Any) -> UNet:
    """Choose patch size and levels so that each level's number of positions, and so its cost, suits its channels."""
    widths, blocks, attending = UNETS[size]
    spatial = shape[1:]

    def values(patch: int) -> int:
        return shape[0] * math.prod(per_axis_patch(patch, spatial))

    def grid(patch: int) -> tuple[int, ...]:
        return tuple(-(-n // p) for n, p in zip(spatial, per_axis_patch(patch, spatial), strict=True))

    fitting = [p for p in (1, 2, 4) if p == 1 or values(p) <= widths[-1]]  # patches that fit the first level's channels
    patch = next((p for p in fitting if math.prod(grid(p)) <= FINEST), fitting[-1])
    grids = [grid(patch), halved(grid(patch))]
    while math.prod(grids[-1]) > COARSEST:
        grids.append(halved(grids[-1]))
    positions = [math.prod(g) for g in grids]
    least = 64 * min(4, math.ceil(values(patch) / 64)) if values(patch) > widths[-1] else 1
    channels = [max(least, widths[(n > 100) + (n > 300)]) for n in positions]
    attention = [level for level in range(len(grids))[-attending:] if level and positions[level] <= ATTENDED]
    # no middle blocks: encoder and decoder both have blocks and attention on the coarsest level
    return UNet(shape, channels, blocks, attention, patch=patch, embed_dim=2 * widths[0], middle=0, **more)
