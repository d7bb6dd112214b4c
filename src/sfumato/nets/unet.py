"""A U-Net for sequences, images and volumes of any size (Ronneberger et al. 2015; Ho et al. 2020; Dhariwal 2021).

Sequences are handled as images of height one, so only two and three spatial axes occur inside. Memory is always
channels-last, which convolutions, norms and attention share without copies.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError
from ..registry import register
from .attention import Tokens
from .blocks import Attention, Block, Grid, Pointwise, Stage, conv, group_norm, halved, zero
from .conditions import Conditioning, Context, arguments, beside, described, named, of_kind, refuse, width_beside
from .fields import check_input, depth_to_space, field_shape, per_axis_patch, space_to_depth


@register("network", "UNet")
class UNet(nn.Module):
    """net(x, noise_level, label) -> y for fields: x and y (B, *shape), noise_level (B,), label int64 (B,) or None.

    Args: `shape` (C, *spatial) with one to three spatial axes of any size; `channels` of each level, finest first;
    `blocks` per level and side, one number or one per level; `attention`, the levels (0 the finest) with attention;
    `middle`, the number of further blocks at the coarsest level, the first with attention if that level has it;
    `patch`: space-to-depth before the first convolution and its inverse after the last, one number or one per axis,
    which trades resolution for width and speed; `embed_dim`, the length of the conditioning vector (default: 4 x the
    first channels); `classes`, 0 for none; `dropout` inside the blocks; `outputs`:
    the number of fields stacked along the channels of y (B, outputs C, *spatial), 2 to learn a variance too;
    `conditions`, name -> description as from `conditions.Condition.network`: fields become channels next to x, tokens
    are attended to at the levels of `attention`, and refused where that is empty.
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
    ) -> None:
        super().__init__()
        self.shape, self.outputs = field_shape(shape, "UNet"), int(outputs)
        depths = [blocks] * len(channels) if isinstance(blocks, int) else list(blocks)
        self._check(channels, depths, attention, outputs)
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
                "outputs": outputs,
            },
        }  # fmt: skip
        patches = per_axis_patch(patch, self.shape[1:])
        self.patch = patches if len(patches) > 1 else (1, *patches)
        context = embed_dim if of_kind(given, "tokens") else 0
        self._build(list(channels), depths, set(attention), head_dim, dropout, middle, context)
        self.conditioning = Conditioning(embed_dim, given)
        self.widths = [2 * m.outputs for m in self.modules() if isinstance(m, Block)]  # in the order of the calls
        self.modulation = nn.Linear(embed_dim, sum(self.widths))  # one product for all blocks
        self.context = Context(given, context) if context else None

    @staticmethod
    def _check(channels: Sequence[int], depths: list[int], attention: Sequence[int], outputs: int) -> None:
        if not channels or min(channels) < 1 or min(depths) < 1:
            raise SfumatoError(f"UNet needs at least one level, with channels and blocks: got {channels} and {depths}")
        if outputs < 1:
            raise SfumatoError(f"UNet needs at least one output, got {outputs}")
        if len(depths) != len(channels):
            raise SfumatoError(f"UNet has {len(channels)} levels of channels but {len(depths)} of blocks")
        if any(not 0 <= level < len(channels) for level in attention):
            raise SfumatoError(f"UNet has levels 0 to {len(channels) - 1}; no attention at {list(attention)}")

    def _build(
        self, channels: list[int], depths: list[int], attend: set[int], head_dim: int, dropout: float, middle: int,
        context: int,
    ) -> None:  # fmt: skip
        grids, last = self._grids(len(channels)), len(channels) - 1
        outer, extra = (n * math.prod(self.patch) for n in (self.shape[0], width_beside(self.given, self.shape)))

        def stage(inputs: int, level: int, attention: bool) -> Stage:
            mixing = Attention(channels[level], head_dim, context) if attention else nn.Identity()
            return Stage(Block(inputs, channels[level], grids[level], dropout), mixing)

        def stages(inputs: list[int], level: int) -> nn.ModuleList:
            return nn.ModuleList(stage(n, level, level in attend) for n in inputs)

        # Both in the order of their calls: `encoder` runs from fine to coarse, `decoder` from coarse to fine.
        above = [channels[0], *channels]
        self.input = conv(outer + extra, channels[0], grids[0])
        self.encoder = nn.ModuleList(stages([above[i]] + [c] * (depths[i] - 1), i) for i, c in enumerate(channels))
        self.downs = nn.ModuleList(conv(channels[i], channels[i], *grids[i : i + 2]) for i in range(last))
        self.middle = nn.ModuleList(stage(channels[-1], last, k == 0 and last in attend) for k in range(middle))
        # Reduce the channels before up-sampling, where the product is cheaper.
        self.ups = nn.ModuleList(Pointwise(channels[i + 1], channels[i]) for i in reversed(range(last)))
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

    def _levels(self, h: Tensor, modulations: Iterator[Tensor], context: Tokens | None) -> Tensor:
        """Encoder, middle and decoder, with a skip connection from each encoder stage to its decoder stage."""
        skips = []
        for level, stages in enumerate(self.encoder.children()):
            h = self.downs[level - 1](h) if level else h
            for stage in stages.children():
                h = stage(h, next(modulations), context)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, next(modulations), context)
        for level, stages in enumerate(self.decoder.children()):
            h = F.interpolate(self.ups[level - 1](h), size=skips[-1].shape[2:]) if level else h
            for stage in stages.children():
                h = stage(torch.cat([h, skips.pop()], dim=1), next(modulations), context)
        return h
