"""Networks that see a field as a sequence of patches."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .conditions import Conditioning, Described, beside, of_kind, width_beside
from .fields import depth_to_space, field_shape, per_axis_patch, space_to_depth


class Patched(nn.Module):
    """The patches of fields (B, C, *spatial) as tokens (B, patches, width), and what every such network hears.

    `shape` (C, *spatial), `patch` one number or one per axis; axes are zero-padded to whole patches. `outer`: the
    numbers of a patch of one field. `conditioning`: noise level and conditions as a vector (B, embed_dim).
    """

    def __init__(
        self, shape: Sequence[int], patch: int | Sequence[int], width: int, embed_dim: int, given: Described,
        outputs: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.outputs, self.given = field_shape(shape, type(self).__name__), int(outputs), given
        self.patch = per_axis_patch(patch, self.shape[1:])
        self.grid = self.grid_of(self.shape[1:])
        self.outer = self.shape[0] * math.prod(self.patch)
        self.conditioning = Conditioning(embed_dim, given)
        self.input = nn.Linear(self.outer + width_beside(given, self.shape) * math.prod(self.patch), width)

    def grid_of(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The number of patches along each axis."""
        return tuple(-(-n // p) for n, p in zip(spatial, self.patch, strict=True))

    def patchify(self, x: Tensor) -> Tensor:
        """(B, *shape) -> (B, patches, C prod p); the last patch of an axis is padded with zeros."""
        return space_to_depth(x, self.patch).flatten(1, -2)

    def unpatchify(self, tokens: Tensor, spatial: Sequence[int] | None = None) -> Tensor:
        """(B, patches, n C prod p) -> (B, n C, *spatial), the inverse of `patchify` for any number n of fields."""
        spatial = self.shape[1:] if spatial is None else spatial
        channels = tokens.shape[-1] // math.prod(self.patch)
        return depth_to_space(tokens.unflatten(1, self.grid_of(spatial)), self.patch, (channels, *spatial))

    def attended(self, values: Mapping[str, Tensor]) -> Tensor | None:
        """The patches with a value that is present, bool (B, patches); None without a mask of missing values. Of a row
        without any it is all of them."""
        gaps = next((values[name] for name in of_kind(self.given, "missing") if name in values), None)
        if gaps is None:
            return None
        seen = (self.patchify(1 - gaps) > 0).any(2)
        return seen | ~seen.any(1, keepdim=True)

    def embedded(self, x: Tensor, values: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> Tensor:
        """The patches of x and of the fields beside it, (B, patches, width)."""
        embedded: Tensor = self.input(self.patchify(beside(x.to(self.input.weight.dtype), self.given, values, present)))
        return embedded


def learned(count: int, width: int) -> nn.Parameter:
    """`count` learned tokens or positions."""
    return nn.Parameter(0.02 * torch.randn(count, width))


def heads_of(width: int) -> int:
    """The usual number of heads: of 64 channels."""
    return max(1, width // 64)
