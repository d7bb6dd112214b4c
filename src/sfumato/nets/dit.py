"""A diffusion transformer with adaLN-Zero blocks (Peebles and Xie 2023) for sequences, images and volumes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError
from ..registry import register
from .attention import attend
from .conditions import Conditioning, Context, arguments, beside, described, named, of_kind, width_beside
from .fields import check_input, depth_to_space, field_shape, per_axis_patch, space_to_depth


def sincos_positions(grid: Sequence[int], width: int) -> Tensor:
    """[sin(w_k i), cos(w_k i)] for each axis's index i, w_k = 10000^(-k/K): (prod grid, width), zeros at the end."""
    count = width // (2 * len(grid))
    frequency = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / max(count, 1))
    index = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in grid]).reshape(-1, len(grid))
    angle = (index[:, :, None] * frequency).flatten(1)
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, width - 2 * count * len(grid))).float()


class TransformerBlock(nn.Module):
    """h <- h + g1 Attn((1 + s1) LN(h) + b1), then h <- h + g2 MLP((1 + s2) LN(h) + b2).

    Gates g, scales s and shifts b are linear in the conditioning vector and 0 at initialisation.
    """

    def __init__(self, width: int, heads: int, embed_dim: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads, inner = heads, int(ratio * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embed_dim, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, vector: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: bool (B, N), the tokens that are attended to; None for all."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(vector)[:, None].chunk(6, dim=2)
        h = h + gate1 * self.attend(torch.addcmul(shift1, self.norm(h).to(shift1.dtype), 1 + scale1), mask)
        y = torch.addcmul(shift2, self.norm(h).to(shift2.dtype), 1 + scale2)
        return h + gate2 * self.second(self.dropout(F.gelu(self.first(y))))

    def attend(self, y: Tensor, mask: Tensor | None) -> Tensor:
        return self.out(attend(self.qkv(y), self.heads, mask=mask))


@register("network", "DiT")
class DiT(nn.Module):
    """net(x, noise_level, label) -> y for fields: x and y (B, *shape), noise_level (B,), label int64 (B,) or None.

    Args: `shape` (C, *spatial) with one to three spatial axes of any size; `patch`, one number or one per axis (axes
    are zero-padded to whole patches, and the output cropped); `width`, `depth` and `heads` of the blocks (default:
    heads of 64 channels); `classes`, 0 for none; `positions` "fixed" (sines and cosines) or "learned"; `ratio`, inner
    width of the MLPs over `width`; `embed_dim`, the length of the conditioning vector (default: `width`); `dropout` in
    the MLPs; `outputs`: the number of fields stacked along the channels of y (B, outputs C, *spatial), 2 to learn a
    variance too; `conditions`, name -> description as from `conditions.Condition.network`: fields become channels next
    to x, tokens are appended to the patches.
    At initialisation each block is the identity and the output zero (adaLN-Zero). Samples of a batch do not interact.
    Raises SfumatoError for impossible sizes, an x of another shape, or an unknown label.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch: int | Sequence[int] = 2,
        width: int = 256,
        depth: int = 6,
        heads: int | None = None,
        classes: int = 0,
        positions: str = "fixed",
        ratio: float = 4.0,
        embed_dim: int | None = None,
        dropout: float = 0.0,
        outputs: int = 1,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.outputs = field_shape(shape, "DiT"), int(outputs)
        heads = max(1, width // 64) if heads is None else heads
        embed_dim = width if embed_dim is None else embed_dim
        if min(width, depth, heads, embed_dim, outputs) < 1 or width % heads:
            raise SfumatoError(f"DiT needs sizes of 1 or more and heads that divide width; got {heads} and {width}")
        if positions not in ("fixed", "learned"):
            raise SfumatoError(f'DiT positions are "fixed" or "learned", not {positions!r}')
        given = self.given = described(classes, conditions)
        self.config = {
            "name": "DiT",
            "args": {
                "shape": list(self.shape), "patch": patch if isinstance(patch, int) else list(patch),
                "width": width, "depth": depth, "heads": heads, **arguments(given), "positions": positions,
                "ratio": ratio, "embed_dim": embed_dim, "dropout": dropout, "outputs": outputs,
            },
        }  # fmt: skip
        self.patch = per_axis_patch(patch, self.shape[1:])
        self.grid = tuple(-(-n // p) for n, p in zip(self.shape[1:], self.patch, strict=True))
        self.conditioning = Conditioning(embed_dim, given)
        outer = self.shape[0] * math.prod(self.patch)
        self.input = nn.Linear(outer + width_beside(given, self.shape) * math.prod(self.patch), width)
        table = sincos_positions(self.grid, width)
        if positions == "fixed":
            self.register_buffer("positions", table, persistent=False)
        else:
            self.positions = nn.Parameter(0.02 * torch.randn_like(table))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, embed_dim, ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.output = nn.Linear(embed_dim, 2 * width), nn.Linear(width, outputs * outer)
        for parameter in (*self.modulation.parameters(), *self.output.parameters()):
            nn.init.zeros_(parameter)
        self.context = Context(given, width) if of_kind(given, "tokens") else None

    def patchify(self, x: Tensor) -> Tensor:
        """(B, *shape) -> (B, patches, C prod p); the last patch of an axis is padded with zeros."""
        return space_to_depth(x, self.patch).flatten(1, -2)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """(B, patches, n C prod p) -> (B, n C, *spatial), the inverse of `patchify` for any number n of fields."""
        channels = tokens.shape[-1] // math.prod(self.patch)
        return depth_to_space(tokens.unflatten(1, self.grid), self.patch, (channels, *self.shape[1:]))

    def forward(
        self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        check_input(x, self.shape)
        values = named(label, cond)
        vector = self.conditioning(noise_level, len(x), values, present)
        field = beside(x.to(self.input.weight.dtype), self.given, values, present)
        h = self.input(self.patchify(field)) + self.positions
        mask = None
        if self.context is not None:
            tokens = self.context(len(x), values, present)
            mask, h = tokens.behind(h.shape[1]), torch.cat([h, tokens.values.to(h.dtype)], dim=1)
        for block in self.blocks:
            h = block(h, vector, mask)
        h = h[:, : math.prod(self.grid)]
        scale, shift = self.modulation(vector)[:, None].chunk(2, dim=2)
        h = self.output(torch.addcmul(shift, self.norm(h).to(shift.dtype), 1 + scale))
        return self.unpatchify(h).to(x.dtype)
