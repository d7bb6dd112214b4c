"""A U-Net for sequences, images and volumes of any size (Ronneberger et al. 2015; Ho et al. 2020; Dhariwal 2021).

Inside, a sequence is an image of height one: two and three spatial axes are all that is computed, always with the
channels last in memory, where convolutions, norms and attention work without a copy between layouts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError
from ..registry import register
from .blocks import Attention, Block, Grid, Pointwise, Stage, conv, group_norm, halved, zero
from .conditions import Conditioning, Context, arguments, beside, described, named, of_kind, refuse, width_beside
from .fields import check_input, depth_to_space, field_shape, per_axis_patch, space_to_depth


@register("network", "UNet")
class UNet(nn.Module):
    """net(x, noise_level, label) -> y for fields: x and y (B, *shape), noise_level (B,), label int64 (B,) or None.

    Args: `shape` (C, *spatial) with one to three spatial axes of any size; `channels` of each level, finest first;
    `blocks` a level and side, one number or one a level; `attention`, the levels (0 the finest) that attend;
    `middle`, the number of further blocks at the coarsest level, the first with attention where that level attends;
    `patch`: space-to-depth before the first and after the last convolution, one number or one an axis, which trades
    resolution for width and speed; `embed_dim`, the length of the conditioning vector (4 x the first channels if not
    given); `classes`, 0 for none; `dropout` inside the blocks; `outputs`:
    how many fields come out one behind another, y (B, outputs C, *spatial), 2 where a variance is learned too;
    `conditions` by name, as `conditions.Condition.network` describes them: fields are channels beside x, tokens are
    attended to at the levels that attend, and refused where none does.
    A level halves each axis of four places or more, rounding up, so that nothing is padded but to whole patches.
    The output convolution is zero at first, and so is the output. No sample sees another of its batch.
    Raises SfumatoError for impossible sizes, another shape of x, or an unknown label.
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
            refuse(given, "tokens", "a U-Net without levels that attend hears none; name one in `attention`")
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
        outer, further = (n * math.prod(self.patch) for n in (self.shape[0], width_beside(self.given, self.shape)))

        def stage(inputs: int, level: int, attention: bool) -> Stage:
            mixing = Attention(channels[level], head_dim, context) if attention else nn.Identity()
            return Stage(Block(inputs, channels[level], grids[level], dropout), mixing)

        def stages(inputs: list[int], level: int) -> nn.ModuleList:
            return nn.ModuleList(stage(n, level, level in attend) for n in inputs)

        # The coarser the level, the later in `encoder` and the earlier in `decoder`: both in the order of the calls.
        above = [channels[0], *channels]
        self.input = conv(outer + further, channels[0], grids[0])
        self.encoder = nn.ModuleList(stages([above[i]] + [c] * (depths[i] - 1), i) for i, c in enumerate(channels))
        self.downs = nn.ModuleList(conv(channels[i], channels[i], *grids[i : i + 2]) for i in range(last))
        self.middle = nn.ModuleList(stage(channels[-1], last, k == 0 and last in attend) for k in range(middle))
        # Fewer channels first: the product is cheaper before the up-sampling than after it.
        self.ups = nn.ModuleList(Pointwise(channels[i + 1], channels[i]) for i in reversed(range(last)))
        self.decoder = nn.ModuleList(stages([2 * channels[i]] * depths[i], i) for i in reversed(range(len(channels))))
        self.norm = group_norm(channels[0])
        self.output = zero(conv(channels[0], self.outputs * outer, grids[0]))

    def _grids(self, levels: int) -> list[Grid]:
        """The places of each level, finest first."""
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
        h = h.contiguous(memory_format=layout)  # a copy only where the input's layout was ambiguous: one channel
        h = self._levels(h, modulations, None if self.context is None else self.context(len(x), values, present))
        h = self.output(F.silu(self.norm(h))).movedim(1, -1)
        fields = (self.outputs * self.shape[0], *field.shape[2:])
        return depth_to_space(h, self.patch, fields).reshape(len(x), -1, *x.shape[2:]).to(x.dtype)

    def _levels(self, h: Tensor, modulations: Iterator[Tensor], context: Tensor | None) -> Tensor:
        """Down, across and up, each stage of the way up joined by one of the way down."""
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
