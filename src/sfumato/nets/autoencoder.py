"""An encoder, a bottleneck and a decoder, for vectors and for fields (images, sequences, volumes).

    code = encode(x),   mean of x = decode(y),   p(x | y) = N(decode(y), exp(log_variance) I)

Kingma and Welling 2013 (1312.6114) with a KL bottleneck, van den Oord et al. 2017 (1711.00937) with a VQ bottleneck;
the convolutional architecture follows 2112.10752 (App. E), without its attention; residual: Chen et al. 2024
(2410.10733), Fig. 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError, suggest
from ..registry import register
from .blocks import Block, Grid, Pointwise, conv, group_norm, halved
from .codes import GaussianCode, QuantisedCode, VectorQuantiser
from .fields import check_input, field_shape

BOTTLENECKS = ("kl", "vq")


@register("network", "Autoencoder")
class Autoencoder(nn.Module):
    """encode(x) -> GaussianCode or QuantisedCode; decode(y) -> the mean of x; x (B, *shape), y (B, *latent_shape).

    Args: `shape` (D,) or (C, *spatial); `latent`, the length of a code, for fields at each position of the coarsest
    level; `channels`: for fields the channels of each level, finest first, for vectors the widths of the hidden layers
    (none: the linear model); `blocks` per level and side; `bottleneck` "kl" or "vq", the latter with `codes` vectors;
    `variance` of the decoder's distribution, None to learn it (one number, initially 1); `residual`, of pictures: what
    a level changes is learned beside the rearranged pixels themselves, for codes of many channels and few positions.
    Raises SfumatoError for impossible sizes or an x of another shape.
    """

    log_variance: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        latent: int = 4,
        channels: Sequence[int] = (32, 64, 64),
        blocks: int = 1,
        bottleneck: str = "kl",
        codes: int = 256,
        variance: float | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        _check(shape, latent, channels, blocks, bottleneck, variance)
        self.shape = tuple(shape) if len(shape) == 1 else field_shape(shape, "Autoencoder")
        self.config = {
            "name": "Autoencoder",
            "args": {
                "shape": list(self.shape), "latent": latent, "channels": list(channels), "blocks": blocks,
                "bottleneck": bottleneck, "codes": codes, "variance": variance,
                **({"residual": True} if residual else {}),
            },
        }  # fmt: skip
        numbers = 2 * latent if bottleneck == "kl" else latent
        if len(self.shape) == 1:
            self.encoder: nn.Module = VectorMap(self.shape[0], numbers, channels)
            self.decoder: nn.Module = VectorMap(latent, self.shape[0], channels[::-1])
            self.latent_shape: tuple[int, ...] = (latent,)
        else:
            grids = _grids(self.shape, len(channels))
            if residual:
                _require_residual(channels, grids)
            self.encoder = FieldEncoder(self.shape[0], numbers, channels, blocks, grids, residual)
            self.decoder = FieldDecoder(latent, self.shape[0], channels, blocks, grids, residual)
            self.latent_shape = (latent, *grids[-1][-len(self.shape[1:]) :])
        self.quantiser = VectorQuantiser(codes, latent) if bottleneck == "vq" else None
        if variance is None:
            self.log_variance = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("log_variance", torch.tensor(math.log(variance)))

    def encode(self, x: Tensor) -> GaussianCode | QuantisedCode:
        check_input(x, self.shape)
        h = self._field(self.encoder, x)
        return GaussianCode.split(h) if self.quantiser is None else self.quantiser(h)

    def decode(self, y: Tensor) -> Tensor:
        check_input(y, self.latent_shape)
        return self._field(self.decoder, y)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction, decoded from the mean of the code (KL) or from the nearest codebook vectors (VQ)."""
        code = self.encode(x)
        return self.decode(code.mean if isinstance(code, GaussianCode) else code.value)

    def _field(self, net: nn.Module, x: Tensor) -> Tensor:
        """net(x) in the dtype of the weights; sequences run through as images of height one."""
        h = x.to(self.log_variance.dtype)
        return net(h.unsqueeze(2)).squeeze(2) if x.ndim == 3 else net(h)


def _check(
    shape: Sequence[int], latent: int, channels: Sequence[int], blocks: int, bottleneck: str, variance: float | None
) -> None:
    if bottleneck not in BOTTLENECKS:
        raise SfumatoError(f"unknown bottleneck {bottleneck!r}: {suggest(str(bottleneck), BOTTLENECKS)}")
    if min([*shape, latent, blocks, *channels], default=0) < 1 or not shape:
        raise SfumatoError(
            f"Autoencoder needs positive sizes; got shape {tuple(shape)}, latent {latent}, channels {tuple(channels)}"
        )
    if len(shape) > 1 and not channels:
        raise SfumatoError("Autoencoder needs at least one level of channels for fields")
    if variance is not None and not 0 < variance < math.inf:
        raise SfumatoError(f"the variance of the decoder must be above 0, or None to be learned; got {variance}")


def _grids(shape: tuple[int, ...], levels: int) -> list[Grid]:
    """The grid size of each level, finest first."""
    grids = [shape[1:] if len(shape) > 2 else (1, *shape[1:])]
    while len(grids) < levels:
        grids.append(halved(grids[-1]))
    return grids


def _require_residual(channels: Sequence[int], grids: list[Grid]) -> None:
    """Raise SfumatoError unless each level has half the positions of the one before along both axes of a picture, and
    a number of channels that those rearranged from it are divided among."""
    halves = all(len(a) == 2 and a == tuple(2 * n for n in b) for a, b in zip(grids[:-1], grids[1:], strict=True))
    divided = all(not 4 * a % b for a, b in zip(channels[:-1], channels[1:], strict=True))
    if not (halves and divided):
        raise SfumatoError(
            f"A residual autoencoder halves pictures of even sizes, here {grids}, and divides 4 C channels among those "
            f"of the next level, here {tuple(channels)}: pick other sizes, or leave residual out."
        )


def _gathered(h: Tensor, channels: int) -> Tensor:
    """(B, C, H, W) -> (B, channels, H / 2, W / 2): each 2 x 2 pixels become 4 C channels, which are averaged."""
    parts = F.pixel_unshuffle(h, 2)
    return parts.reshape(len(h), channels, -1, *parts.shape[2:]).mean(2)


def _spread(h: Tensor, channels: int) -> Tensor:
    """(B, C, H, W) -> (B, channels, 2 H, 2 W): channels are repeated, and four of them become 2 x 2 pixels."""
    return F.pixel_shuffle(h.repeat_interleave(4 * channels // h.shape[1], 1), 2)


class VectorMap(nn.Module):
    """Linear layers with silu between them: (B, inputs) -> (B, outputs)."""

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, widths[0]) if widths else nn.Identity()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.output = nn.Linear(widths[-1] if widths else inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.input(x)
        for layer in self.layers:
            h = layer(F.silu(h))
        return self.output(h if isinstance(self.input, nn.Identity) else F.silu(h))


class FieldEncoder(nn.Module):
    """(B, C, *finest) -> (B, outputs, *coarsest): residual blocks at each level, strided convolutions in between."""

    def __init__(
        self, inputs: int, outputs: int, channels: Sequence[int], blocks: int, grids: list[Grid], residual: bool = False
    ) -> None:
        super().__init__()
        self.channels, self.residual = tuple(channels), residual
        self.input = conv(inputs, channels[0], grids[0])
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(c, c, grid, 0.0) for _ in range(blocks))
            for c, grid in zip(channels, grids, strict=True)
        )
        self.downs = nn.ModuleList(
            conv(channels[i], channels[i + 1], grids[i], grids[i + 1]) for i in range(len(grids) - 1)
        )
        self.norm = group_norm(channels[-1])
        self.output = conv(channels[-1], outputs, grids[-1])

    def forward(self, x: Tensor) -> Tensor:
        h = self.input(x)
        for level, blocks in enumerate(self.blocks):
            if level:
                kept = _gathered(h, self.channels[level]) if self.residual else 0.0
                h = self.downs[level - 1](h) + kept
            for block in blocks.children():
                h = block(h)
        return self.output(F.silu(self.norm(h)))


class FieldDecoder(nn.Module):
    """(B, L, *coarsest) -> (B, outputs, *finest): the encoder mirrored, with nearest-neighbour up-sampling."""

    def __init__(
        self, inputs: int, outputs: int, channels: Sequence[int], blocks: int, grids: list[Grid], residual: bool = False
    ) -> None:
        super().__init__()
        self.grids = grids[::-1]
        self.channels, self.residual = tuple(channels[::-1]), residual
        widths = list(self.channels)
        self.input = conv(inputs, widths[0], self.grids[0])
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(c, c, grid, 0.0) for _ in range(blocks))
            for c, grid in zip(widths, self.grids, strict=True)
        )
        self.ups = nn.ModuleList(Pointwise(widths[i], widths[i + 1]) for i in range(len(widths) - 1))
        self.norm = group_norm(widths[-1])
        self.output = conv(widths[-1], outputs, self.grids[-1])

    def forward(self, y: Tensor) -> Tensor:
        h = self.input(y)
        for level, blocks in enumerate(self.blocks):
            if level:
                kept = _spread(h, self.channels[level]) if self.residual else 0.0
                h = F.interpolate(self.ups[level - 1](h), size=self.grids[level]) + kept
            for block in blocks.children():
                h = block(h)
        return self.output(F.silu(self.norm(h)))
