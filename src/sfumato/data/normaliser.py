"""z = (x - mean) / std, channel by channel, with the statistics of the training split.

Normalised data has mean 0 and standard deviation 1 in every channel, so sigma_data = 1 everywhere above this room.
The statistics and the affine map are computed in float64; only the result is rounded to float32.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..counting import counting
from ..errors import SfumatoError

if TYPE_CHECKING:
    from .rows import Samples

CHUNK_ENTRIES = 1 << 22  # float64 scratch of at most 32 MiB, whatever the size of the set
GROUP = 8
GROUPS = 1024


@dataclass(frozen=True)
class Statistics:
    """Per-channel figures of a set of samples, each a tuple of `channels` floats.

    `quiet` is the smallest standard deviation that any of many groups of 8 neighbouring samples has, and
    `quiet_sample` the smallest within one sample: a batch that varies far less than that is in other units.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    quiet: tuple[float, ...]
    quiet_sample: tuple[float, ...]


def chunks(x: "Samples", indices: Tensor | None = None) -> Iterator[Tensor]:
    """The rows of x (N, C, *spatial), or those named, as float64 blocks (n, C, *spatial) of bounded size."""
    count = len(x) if indices is None else len(indices)
    rows = max(1, CHUNK_ENTRIES // max(1, x[0].numel()))
    with counting("Taking figures of samples", count) as told:
        for start in range(0, count, rows):
            block = x[start : start + rows] if indices is None else x[indices[start : start + rows]]
            yield block.to(torch.float64)
            told(len(block))


def statistics(x: "Samples", indices: Tensor | None = None) -> Statistics:
    """Two passes in float64 over x (N, C, *spatial): mean = sum x / n, var = sum (x - mean)^2 / n, per channel.

    The second pass subtracts the mean first, so a small spread around a large offset is not lost to cancellation,
    and divides by the range, so that squares of very small or large units neither vanish nor overflow.
    """
    channels = x.shape[1]
    total = torch.zeros(channels, dtype=torch.float64)
    low = torch.full((channels,), math.inf, dtype=torch.float64)
    high = torch.full((channels,), -math.inf, dtype=torch.float64)
    entries = 0
    for block in chunks(x, indices):
        flat = _by_channel(block)
        entries += flat.shape[1]
        total += flat.sum(1)
        low = torch.minimum(low, flat.amin(1))
        high = torch.maximum(high, flat.amax(1))
    mean = torch.where(low == high, low, total / entries)
    width = torch.where(high > low, high - low, 1.0)
    square = torch.zeros(channels, dtype=torch.float64)
    for block in chunks(x, indices):
        square += ((_by_channel(block) - mean[:, None]) / width[:, None]).square_().sum(1)
    std = width * (square / entries).sqrt()
    quiet, quiet_sample = _quiet(x, indices, GROUP), _quiet(x, indices, 1)
    return Statistics(*(tuple(v.tolist()) for v in (mean, std, low, high, quiet, quiet_sample)))


def _by_channel(block: Tensor) -> Tensor:
    """(n, C, *spatial) -> (C, n * prod(spatial))."""
    return block.transpose(0, 1).reshape(block.shape[1], -1)


def _quiet(x: "Samples", indices: Tensor | None, size: int) -> Tensor:
    """min over groups of `size` neighbouring samples of the std within the group, per channel.

    The groups start at evenly spaced places of the set: enough of them for a lower limit, not the whole set.
    """
    rows = torch.arange(len(x)) if indices is None else indices
    size = min(size, len(rows))
    groups = max(1, min(len(rows) // size, GROUPS, CHUNK_ENTRIES // (size * max(1, x[0].numel()))))
    starts = torch.linspace(0, len(rows) - size, groups, dtype=torch.float64).long()
    chosen = x[rows[starts[:, None] + torch.arange(size)].flatten()].to(torch.float64)
    members = chosen.reshape(groups, size, x.shape[1], -1).transpose(1, 2).reshape(groups, x.shape[1], -1)
    return members.std(2, correction=0).amin(0)


@dataclass(frozen=True)
class Normaliser:
    """z = (x - mean_c) / std_c; `mean` and `std` hold one float a channel (the first axis of a sample).

    A channel that never changes in the training split gets std 1: it maps to 0 and comes back exactly.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise SfumatoError(
                f"a normaliser needs one mean and one std a channel, not {len(self.mean)} and {len(self.std)}"
            )
        if not all(math.isfinite(m) for m in self.mean) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise SfumatoError("a normaliser's means must be finite and its stds finite and positive")

    @classmethod
    def of(cls, figures: Statistics) -> "Normaliser":
        """The normaliser that gives data with these statistics mean 0 and std 1."""
        std = tuple(
            s if high > low and s > 0 else 1.0
            for s, low, high in zip(figures.std, figures.low, figures.high, strict=True)
        )
        return cls(figures.mean, std)

    def normalise(self, x: Tensor) -> Tensor:
        """x (B, C, *spatial) of any real dtype -> z float32 of the same shape."""
        mean, std = self._columns(x)
        return ((x.to(torch.float64) - mean) / std).to(torch.float32)

    def denormalise(self, z: Tensor) -> Tensor:
        """z (B, C, *spatial) -> x = mean + std z in float64, unrounded and unbounded."""
        mean, std = self._columns(z)
        return z.to(torch.float64) * std + mean

    def log_jacobian(self, shape: Sequence[int]) -> float:
        """log |dz/dx| = -(entries a channel) * sum_c log std_c for one sample of this shape, in nats."""
        return -math.prod(shape[1:]) * math.fsum(math.log(s) for s in self.std)

    @cached_property
    def _figures(self) -> Tensor:
        return torch.tensor([self.mean, self.std], dtype=torch.float64)

    def _columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self._figures.to(x.device).view(2, 1, -1, *(1,) * (x.ndim - 2))
        return mean, std

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; floats survive JSON exactly."""
        return {"name": "affine", "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Normaliser":
        """The inverse of `to_dict`; unknown or missing keys and other names raise SfumatoError."""
        if set(data) != {"name", "mean", "std"} or data["name"] != "affine":
            raise SfumatoError(
                "a normaliser is {'name': 'affine', 'mean': [...], 'std': [...]}, "
                f"but this one has {sorted(map(str, data))} and the name {data.get('name')!r}"
            )
        return cls(tuple(float(m) for m in data["mean"]), tuple(float(s) for s in data["std"]))
