"""A residual multi-layer perceptron for vectors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SfumatoError
from ..registry import register
from .conditions import (
    VECTORS,
    Conditioning,
    arguments,
    beside,
    described,
    named,
    of_kind,
    presence,
    refuse,
    width_beside,
)
from .embedding import NUMBER_FREQUENCIES, number_features
from .fields import check_input
from .recompute import call

LEVELS = "levels"  # the condition, a field, that tells the noise level of each of the first entries of x


class ResidualLayer(nn.Module):
    """h <- h + W2 silu(W1 ((1 + s) LN(h) + b)), (s, b) linear in the conditioning vector, W2 = 0 initially."""

    def __init__(self, width: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embed_dim, 2 * width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.modulation(vector).chunk(2, dim=1)
        y = torch.addcmul(shift, self.norm(h).to(scale.dtype), 1 + scale)
        return h + self.second(self.dropout(nn.functional.silu(self.first(y))))


@register("network", "MLP")
class MLP(nn.Module):
    """net(x, noise_level, label) -> y for vectors: x and y (B, dim), noise_level (B,), label int64 (B,) or None.

    Args: `dim` D; `width` and `depth` of the residual layers; `classes`, 0 for none; `embed_dim`, the length of the
    conditioning vector (default: `width`); `dropout` inside the layers;
    `outputs`: the number of vectors concatenated in y (B, outputs dim), 2 to learn a variance too;
    `conditions`, name -> description as from `conditions.Condition.network`: fields are flattened and concatenated to
    x; tokens are refused, since an MLP has no attention; `checkpoint`: compute the layers again in the backward pass
    instead of storing their activations; `numbers`: so many of the first entries of x also enter as Fourier features
    (`embedding.number_features`), at the levels of the condition "levels" where it is told.
    The output layer, and so the output, is zero at initialisation.
    Raises SfumatoError for sizes that are not positive, an x of another shape, or an unknown label.
    """

    def __init__(
        self,
        dim: int,
        width: int = 256,
        depth: int = 4,
        classes: int = 0,
        embed_dim: int | None = None,
        dropout: float = 0.0,
        outputs: int = 1,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
        checkpoint: bool = False,
        numbers: int = 0,
    ) -> None:
        super().__init__()
        embed_dim = width if embed_dim is None else embed_dim
        if min(dim, width, depth, embed_dim, outputs) < 1:
            raise SfumatoError(f"MLP needs positive sizes; got dim {dim}, width {width}, depth {depth}")
        if not 0 <= numbers <= dim:
            raise SfumatoError(f"an MLP of {dim} entries cannot have {numbers} numbers among them")
        given = described(classes, conditions)
        refuse(given, "tokens", "an MLP has no attention")
        args = {"dim": dim, "width": width, "depth": depth, **arguments(given)}
        args |= {"embed_dim": embed_dim, "dropout": dropout, "outputs": outputs, "checkpoint": checkpoint}
        args |= {"numbers": numbers} if numbers else {}
        self.config, self.checkpoint = {"name": "MLP", "args": args}, checkpoint
        self.shape, self.outputs, self.given, self.numbers = (dim,), outputs, given, numbers
        self.conditioning = Conditioning(embed_dim, given)
        wide = dim + width_beside(given, (dim,)) + 2 * numbers * len(NUMBER_FREQUENCIES)
        self.input = nn.Linear(wide, width)
        self.layers = nn.ModuleList(ResidualLayer(width, embed_dim, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, outputs * dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        check_input(x, self.shape)
        values = named(label, cond)
        vector = self.conditioning(*self._levels(noise_level, len(x), values), values, present)
        entries = beside(x, self.given, values, present)
        if self.numbers:
            entries = torch.cat((entries, self._features(x, noise_level, values, present)), 1)
        h = self.input(entries.to(self.input.weight.dtype))
        for layer in self.layers:
            h = call(layer, self.checkpoint, h, vector)
        return self.output(nn.functional.silu(self.norm(h))).to(x.dtype)

    def _levels(self, noise_level: Tensor, batch: int, values: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """(noise levels, their number): of rows of tables, one level of all, as in sampling, is embedded once."""
        alone = self.numbers > 0 and not of_kind(self.given, *VECTORS) and "label" not in values
        common = noise_level.ndim == 0 or noise_level.stride(0) == 0
        return (noise_level.reshape(-1)[:1], 1) if alone and common else (noise_level, batch)

    def _features(
        self, x: Tensor, noise_level: Tensor, values: Mapping[str, Tensor], present: Mapping[str, Tensor] | None
    ) -> Tensor:  # fmt: skip
        """The Fourier features of the numbers, each at its own level where that is told."""
        level = noise_level.reshape(-1, 1)
        if LEVELS in values:
            told = presence(LEVELS, values[LEVELS], present)
            level = torch.where(told[:, None], values[LEVELS].to(level), level)
        return number_features(x[:, : self.numbers], level)
