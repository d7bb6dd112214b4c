"""U-ViT (Bao et al. 2023, 2209.12152): a transformer with long skips, to which everything is a token."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SfumatoError
from ..registry import register
from .blocks import conv, zero
from .conditions import Context, arguments, described, named, of_kind
from .fields import check_input
from .patches import Patched, heads_of, learned
from .recompute import call
from .streams import PlainBlock


@register("network", "UViT")
class UViT(Patched):
    """net(x, noise_level, label) -> y for fields: x and y (B, *shape), noise_level (B,), label int64 (B,) or None.

        h_0 = [noise level, label, ..., tokens, patches] + positions
        h <- block(h) in the first half,   h <- block(W [h, skip]) in the second, skip the output of its mirror image

    Args: `shape` (C, *spatial) with one to three spatial axes of any size; `patch`, one number or one per axis;
    `width`, `depth` and `heads` of the blocks (default: heads of 64 channels); `classes`, 0 for none; `ratio`, inner
    width of the MLPs over `width`; `dropout` in the MLPs; `outputs`: the number of fields stacked along the channels of
    y (B, outputs C, *spatial), 2 to learn a variance too; `conditions`, name -> description as from
    `conditions.Condition.network`: fields become channels next to x, all others tokens; `checkpoint`: compute the
    blocks again in the backward pass instead of storing their activations.
    The last layer, a convolution of 3 taps over the fields, and so the output, is zero at initialisation.
    Raises SfumatoError for impossible sizes, an x of another shape, or an unknown label.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch: int | Sequence[int] = 2,
        width: int = 256,
        depth: int = 7,
        heads: int | None = None,
        classes: int = 0,
        ratio: float = 4.0,
        dropout: float = 0.0,
        outputs: int = 1,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
        checkpoint: bool = False,
    ) -> None:
        heads = heads_of(width) if heads is None else heads
        if min(width, depth, heads, outputs) < 1 or width % heads:
            raise SfumatoError(f"UViT needs sizes of 1 or more and heads that divide width; got {heads} and {width}")
        given = described(classes, conditions)
        super().__init__(shape, patch, width, width, given, outputs)
        self.config = {
            "name": "UViT",
            "args": {
                "shape": list(self.shape), "patch": patch if isinstance(patch, int) else list(patch),
                "width": width, "depth": depth, "heads": heads, **arguments(given), "ratio": ratio,
                "dropout": dropout, "outputs": outputs, "checkpoint": checkpoint,
            },
        }  # fmt: skip
        self.checkpoint, half = checkpoint, depth // 2
        self.positions = learned(torch.Size(self.grid).numel(), width)
        self.context = Context(given, width) if of_kind(given, "tokens") else None
        self.blocks = nn.ModuleList(PlainBlock(width, heads, ratio, dropout) for _ in range(depth))
        self.skips = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(half))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, outputs * self.outer)
        spatial = self.shape[1:] if len(self.shape) > 2 else (1, *self.shape[1:])  # a sequence is an image of height 1
        self.output = zero(conv(outputs * self.shape[0], outputs * self.shape[0], spatial))

    def forward(
        self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        check_input(x, self.shape)
        values = named(label, cond)
        heard, mask = torch.stack(self.conditioning.parts(noise_level, len(x), values, present), dim=1), None
        h = torch.cat([self.embedded(x, values, present) + self.positions, heard], dim=1)
        if self.context is not None:
            tokens = self.context(len(x), values, present)
            mask, h = tokens.behind(h.shape[1]), torch.cat([h, tokens.values.to(h.dtype)], dim=1)
        h = self._blocks(h, mask)[:, : len(self.positions)]
        y = self.unpatchify(self.last(self.norm(h)))
        return self.output(y.unsqueeze(2) if x.ndim == 3 else y).reshape(len(x), -1, *x.shape[2:]).to(x.dtype)

    def _blocks(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """The blocks, each of the second half with the output of its mirror image in the first."""
        kept: list[Tensor] = []
        half = len(self.skips)
        for number, block in enumerate(self.blocks.children()):
            if number >= len(self.blocks) - half:
                h = self.skips[number - len(self.blocks) + half](torch.cat([h, kept.pop()], dim=2))
            h = call(block, self.checkpoint, h, mask)
            if number < half:
                kept.append(h)
        return h
