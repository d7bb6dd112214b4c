"""Fields on a grid: checks of their shape, and patches by space-to-depth."""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from ..errors import SfumatoError


def field_shape(shape: Sequence[int], who: str) -> tuple[int, ...]:
    """The shape (C, *spatial) as a tuple; SfumatoError unless it has one to three spatial axes."""
    if not 2 <= len(shape) <= 4 or any(int(n) != n or n < 1 for n in shape):
        raise SfumatoError(f"{who} needs a shape (C, *spatial) with one to three spatial axes; got {tuple(shape)}")
    return tuple(int(n) for n in shape)


def check_input(x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        raise SfumatoError(f"this network was built for samples of shape {shape}; got a batch {tuple(x.shape)}")


def per_axis_patch(patch: int | Sequence[int], spatial: tuple[int, ...]) -> tuple[int, ...]:
    """The patch size along each axis, never longer than the axis."""
    sizes = [patch] * len(spatial) if isinstance(patch, int) else list(patch)
    if len(sizes) != len(spatial) or any(p < 1 for p in sizes):
        raise SfumatoError(f"patch {patch} does not fit {len(spatial)} spatial axes: use one number, or one per axis")
    return tuple(min(p, n) for p, n in zip(sizes, spatial, strict=True))


def space_to_depth(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(B, C, *n) -> (B, *ceil(n / p), C prod p): each patch becomes one vector, channels last.

    An axis that is not a multiple of its patch is padded with zeros at its end.
    """
    spatial = x.shape[2:]
    if any(n % p for n, p in zip(spatial, patch, strict=True)):
        x = F.pad(x, [k for n, p in zip(reversed(spatial), reversed(patch), strict=True) for k in (0, -n % p)])
    batch, channels, *padded = x.shape
    split = [k for n, p in zip(padded, patch, strict=True) for k in (n // p, p)]
    rank = len(patch)
    grid, inside = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    x = x.reshape(batch, channels, *split).permute(0, *grid, 1, *inside)
    return x.reshape(batch, *split[::2], channels * math.prod(patch))


def depth_to_space(y: Tensor, patch: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """(B, *ceil(n / p), C prod p) -> (B, C, *n): the inverse of `space_to_depth`, cropped to `shape` = (C, *n)."""
    batch, *grid = y.shape[:-1]
    rank = len(patch)
    y = y.reshape(batch, *grid, shape[0], *patch)
    order = [k for axis in range(rank) for k in (1 + axis, 2 + rank + axis)]
    y = y.permute(0, 1 + rank, *order).reshape(batch, shape[0], *(n * p for n, p in zip(grid, patch, strict=True)))
    for axis, n in enumerate(shape[1:], start=2):
        y = y.narrow(axis, 0, n)
    return y
