"""A U-Net for sequences, images and volumes of any size (Ronneberger et al. 2015; Ho et al. 2020; Dhariwal 2021), with
the options of ADM (2105.05233), EDM (2206.00364) and the efficient U-Net of Imagen (2205.11487).

Sequences are handled as images of height one, so only two and three spatial axes occur inside. Memory is always
channels-last, which convolutions, norms and attention share without copies.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError
from ..registry import register
from .attention import Tokens
from .blocks import Attention, Block, Grid, Pointwise, Stage, conv, group_norm, halved, scaled, zero
from .conditions import Conditioning, Context, arguments, beside, described, named, of_kind, refuse, width_beside
from .fields import check_input, depth_to_space, field_shape, per_axis_patch, space_to_depth
from .recompute import call
from .resample import Resample


@register("network", "UNet")
class UNet(nn.Module):
    """net(x, noise_level, label) -> y for fields: x and y (B, *shape), noise_level (B,), label int64 (B,) or None.

    Args: `shape` (C, *spatial) with one to three spatial axes of any size; `channels` of each level, finest first;
    `blocks` per level and side, one number or one per level, 0 for levels that only change the resolution;
    `attention`, the levels (0 the finest) with attention;
    `middle`, the number of further blocks at the coarsest level, the first with attention if that level has it;
    `patch`: space-to-depth before the first convolution and its inverse after the last, one number or one per axis,
    which trades resolution for width and speed; `embed_dim`, the length of the conditioning vector (default: 4 x the
    first channels); `classes`, 0 for none; `dropout` inside the blocks; `outputs`:
    the number of fields stacked along the channels of y (B, outputs C, *spatial), 2 to learn a variance too;
    `conditions`, name -> description as from `conditions.Condition.network`: fields become channels next to x, tokens
    are attended to at the levels of `attention`, and refused where that is empty; `scale_shift`: False for a modulation
    that is added before the norm instead of scaling and shifting after it; `residual_scale`, 0.7071 in EDM, multiplies
    the sums of residual blocks and attention, `skip_scale`, 0.7071 in Imagen, what the decoder gets of the encoder;
    `resample`: "conv" for a convolution of stride 2, upwards the nearest place, or "block" for residual blocks that
    change the resolution by the filter `taps` (BigGAN, ADM), (1, 1) or (1, 3, 3, 1); `checkpoint`: compute the blocks
    again in the backward pass instead of storing their activations.
    UNet(shape, (64, 128, 256), (0, 2, 4), skip_scale=0.7071) is Imagen's: most blocks at low resolution, and the
    resolution falls before them and rises behind them.
    Each level halves the axes of size 4 or more, rounding up, so that only patches need padding.
    The output convolution, and so the output, is zero at initialisation. Samples of a batch do not interact.
    Raises SfumatoError for impossible sizes, an x of another shape, or an unknown label.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: Sequence[int] = (64, 128),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (),
        head_dim: int = 64,
        patch: int | Sequence[int] = 1,
        embed_dim: int | None = None,
        classes: int = 0,
        dropout: float = 0.0,
        middle: int = 1,
        outputs: int = 1,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
        scale_shift: bool = True,
        residual_scale: float = 1.0,
        skip_scale: float = 1.0,
        resample: str = "conv",
        taps: Sequence[float] = (1, 1),
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.outputs = field_shape(shape, "UNet"), int(outputs)
        depths = [blocks] * len(channels) if isinstance(blocks, int) else list(blocks)
        self._check(channels, depths, attention, outputs, resample, taps)
        self.skip_scale, self.checkpoint = skip_scale, checkpoint
        embed_dim = 4 * channels[0] if embed_dim is None else embed_dim
        given = self.given = described(classes, conditions)
        if not attention:
            refuse(given, "tokens", "a U-Net without attention cannot use them; name its levels in `attention`")
        self.config = {
            "name": "UNet",
            "args": {
                "shape": list(self.shape), "channels": list(channels),
                "blocks": blocks if isinstance(blocks, int) else depths, "attention": list(attention),
                "head_dim": head_dim, "patch": patch if isinstance(patch, int) else list(patch),
                "embed_dim": embed_dim, **arguments(given), "dropout": dropout, "middle": middle,
                "outputs": outputs, "scale_shift": scale_shift, "residual_scale": residual_scale,
                "skip_scale": skip_scale, "resample": resample, "taps": list(taps), "checkpoint": checkpoint,
            },
        }  # fmt: skip
        patches = per_axis_patch(patch, self.shape[1:])
        self.patch = patches if len(patches) > 1 else (1, *patches)
        context = embed_dim if of_kind(given, "tokens") else 0
        block = partial(Block, dropout=dropout, scale_shift=scale_shift, residual_scale=residual_scale)
        mixing = partial(Attention, head_dim=head_dim, context=context, residual_scale=residual_scale)
        moving = partial(Resample, taps=taps) if resample == "block" else None
        self._build(list(channels), depths, set(attention), middle, block, mixing, moving)
        self.conditioning = Conditioning(embed_dim, given)
        self.widths = [each.modulated for each in self._blocks()]
        self.modulation = nn.Linear(embed_dim, sum(self.widths))  # one product for all blocks
        self.context = Context(given, context) if context else None

    @staticmethod
    def _check(
        channels: Sequence[int], depths: list[int], attention: Sequence[int], outputs: int, resample: str,
        taps: Sequence[float],
    ) -> None:  # fmt: skip
        if not channels or min(channels) < 1 or min(depths) < 0 or depths[-1] < 1:
            raise SfumatoError(
                f"UNet needs channels at each level, and blocks at the coarsest: got {channels} and {depths}"
            )
        if resample not in ("conv", "block") or (resample == "conv" and tuple(taps) != (1, 1)):
            raise SfumatoError(
                f'UNet resamples by "conv", which has no filter, or by "block"; got {resample!r} with taps {list(taps)}'
            )
        if outputs < 1:
            raise SfumatoError(f"UNet needs at least one output, got {outputs}")
        if len(depths) != len(channels):
            raise SfumatoError(f"UNet has {len(channels)} levels of channels but {len(depths)} of blocks")
        if any(not 0 <= level < len(channels) for level in attention):
            raise SfumatoError(f"UNet has levels 0 to {len(channels) - 1}; no attention at {list(attention)}")

    def _build(
        self, channels: list[int], depths: list[int], attend: set[int], middle: int, block: Callable[..., Block],
        mixing: Callable[..., Attention], moving: Callable[..., Resample] | None,
    ) -> None:  # fmt: skip
        self.grids, last = self._grids(len(channels)), len(channels) - 1
        grids = self.grids
        outer, extra = (n * math.prod(self.patch) for n in (self.shape[0], width_beside(self.given, self.shape)))

        def stage(inputs: int, level: int, attention: bool) -> Stage:
            mixed = mixing(channels[level]) if attention else nn.Identity()
            return Stage(block(inputs, channels[level], grids[level]), mixed)

        def stages(inputs: list[int], level: int) -> nn.ModuleList:
            return nn.ModuleList(stage(n, level, level in attend) for n in inputs)

        def down(width: int, level: int) -> nn.Module:
            fine, coarse = grids[level : level + 2]
            if moving is None:
                return conv(width, width, fine, coarse)
            return block(width, width, coarse, resample=moving(fine, coarse, up=False))

        def up(inputs: int, level: int) -> nn.Module:
            if moving is None:  # reduce the channels before up-sampling, where the product is cheaper
                return Pointwise(inputs, channels[level])
            fine, coarse = grids[level : level + 2]
            return block(inputs, channels[level], fine, resample=moving(fine, coarse, up=True))

        # Both in the order of their calls: `encoder` runs from fine to coarse, `decoder` from coarse to fine.
        above = [channels[0]]  # the channels that come into each level
        for width, depth in zip(channels, depths, strict=True):
            above.append(width if depth else above[-1])
        self.input = conv(outer + extra, channels[0], grids[0])
        self.encoder = nn.ModuleList(
            stages(([above[i]] + [c] * depths[i])[: depths[i]], i) for i, c in enumerate(channels)
        )
        self.downs = nn.ModuleList(down(above[i + 1], i) for i in range(last))
        self.middle = nn.ModuleList(stage(channels[-1], last, k == 0 and last in attend) for k in range(middle))
        self.ups = nn.ModuleList(up(channels[i + 1], i) for i in reversed(range(last)))
        self.decoder = nn.ModuleList(stages([2 * channels[i]] * depths[i], i) for i in reversed(range(len(channels))))
        self.norm = group_norm(channels[0])
        self.output = zero(conv(channels[0], self.outputs * outer, grids[0]))

    def _grids(self, levels: int) -> list[Grid]:
        """The grid size of each level, finest first."""
        spatial = self.shape[1:] if len(self.shape) > 2 else (1, *self.shape[1:])
        grids = [tuple(-(-n // p) for n, p in zip(spatial, self.patch, strict=True))]
        while len(grids) < levels:
            grids.append(halved(grids[-1]))
        return grids

    def forward(
        self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        check_input(x, self.shape)
        values = named(label, cond)
        vector = self.conditioning(noise_level, len(x), values, present)
        modulations = iter(self.modulation(vector).split(self.widths, dim=1))
        field = beside(x.to(self.modulation.weight.dtype), self.given, values, present)
        field = field.unsqueeze(2) if x.ndim == 3 else field
        layout = torch.channels_last if field.ndim == 4 else torch.channels_last_3d
        h = self.input(space_to_depth(field, self.patch).movedim(-1, 1))
        h = h.contiguous(memory_format=layout)  # copies only one-channel inputs, where the layout is ambiguous
        h = self._levels(h, modulations, None if self.context is None else self.context(len(x), values, present))
        h = self.output(F.silu(self.norm(h))).movedim(1, -1)
        fields = (self.outputs * self.shape[0], *field.shape[2:])
        return depth_to_space(h, self.patch, fields).reshape(len(x), -1, *x.shape[2:]).to(x.dtype)

    def _blocks(self) -> Iterator[Block]:
        """The blocks in the order of their calls."""
        sides: list[tuple[Any, Any]] = [(self.encoder, self.downs), ([self.middle], []), (self.decoder, self.ups)]
        for levels, between in sides:
            for level, stages in enumerate(levels):
                yield from (each for each in between[level - 1 : level] if level and isinstance(each, Block))
                yield from (stage.block for stage in stages)

    def _levels(self, h: Tensor, modulations: Iterator[Tensor], context: Tokens | None) -> Tensor:
        """Encoder, middle and decoder, with a skip connection from each encoder stage to its decoder stage."""
        skips, again = [], self.checkpoint
        for level, stages in enumerate(self.encoder.children()):
            if level:
                down = self.downs[level - 1]
                h = call(down, again, h, next(modulations)) if isinstance(down, Block) else down(h)
            for stage in stages.children():
                h = call(stage, again, h, next(modulations), context)
                skips.append(h)
        for stage in self.middle:
            h = call(stage, again, h, next(modulations), context)
        for level, stages in enumerate(self.decoder.children()):
            if level:
                up, size = self.ups[level - 1], self.grids[-1 - level]
                block = isinstance(up, Block)
                h = call(up, again, h, next(modulations)) if block else F.interpolate(up(h), size=size)
            for stage in stages.children():
                skip = scaled(skips.pop(), self.skip_scale)
                h = call(stage, again, torch.cat([h, skip], dim=1), next(modulations), context)
        return h
