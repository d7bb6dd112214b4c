"""The statistics of the training split, channel by channel, in float64.

Data normalised with them have mean 0 and standard deviation 1 in every channel, so that sigma_data = 1.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import SfumatoError
from ..normaliser import Statistics
from ..progress import counting

if TYPE_CHECKING:
    from .rows import Samples

CHUNK_ENTRIES = 1 << 22  # limits float64 scratch memory to 32 MiB
GROUP = 8
GROUPS = 1024


def blocks(x: "Samples", indices: Tensor | None = None) -> Iterator[Tensor]:
    """The rows of x (N, ...), or those at `indices`, in blocks of bounded size."""
    rows = max(1, CHUNK_ENTRIES // max(1, x[0].numel()))
    for start in range(0, len(x) if indices is None else len(indices), rows):
        yield x[start : start + rows] if indices is None else x[indices[start : start + rows]]


def chunks(x: "Samples", indices: Tensor | None = None) -> Iterator[Tensor]:
    """All values by channel, (C, n) in float64, in pieces of bounded size, with a progress count of the samples."""
    with counting("Computing statistics", len(x) if indices is None else len(indices)) as count:
        for block in blocks(x, indices):
            for piece in _by_channel(block).split(max(1, CHUNK_ENTRIES // x.shape[1]), dim=1):
                yield piece.to(torch.float64)
            count(len(block))


def unseen(x: "Samples", indices: Tensor | None = None) -> tuple[int, ...]:
    """The values of a flat sample that are missing, NaN, in all of x (N, *shape), or of those at `indices`."""
    gaps = torch.ones(x.shape[1:], dtype=torch.bool)
    for block in blocks(x, indices):
        gaps &= block.isnan().all(0)
    return tuple(gaps.flatten().nonzero()[:, 0].tolist())


def statistics(x: "Samples", indices: Tensor | None = None) -> Statistics:
    """The mean, deviation and range of x (N, C, *spatial) by channel, and the least deviation within neighbours."""
    mean, std, low, high = moments(x, indices)
    if bool((low > high).any()):
        c = int((low > high).nonzero()[0])
        raise SfumatoError(f"channel {c} has no value in the samples to learn from, all are missing: leave it out")
    quiet, quiet_sample = _quiet(x, indices, GROUP), _quiet(x, indices, 1)
    return Statistics(*(tuple(v.tolist()) for v in (mean, std, low, high, quiet, quiet_sample)))


def _same(flat: Tensor) -> Tensor:
    return flat


def moments(
    x: "Samples", indices: Tensor | None, curve: Callable[[Tensor], Tensor] = _same
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(mean, std, lowest, highest) by channel, in two passes: mean = sum x / n, var = sum (x - mean)^2 / n.

    curve: values (C, n) -> what takes their place. NaN is a missing value, and the figures are of those present.
    The second pass subtracts the mean first, so that a small spread around a large offset is not lost to cancellation,
    and divides by the range, so that squares neither underflow nor overflow.
    """
    channels = x.shape[1]
    total = torch.zeros(channels, dtype=torch.float64)
    low = torch.full((channels,), math.inf, dtype=torch.float64)
    high = torch.full((channels,), -math.inf, dtype=torch.float64)
    entries = torch.zeros(channels, dtype=torch.float64)
    for flat in map(curve, chunks(x, indices)):
        gaps = flat.isnan()
        entries += (~gaps).sum(1)
        total += flat.masked_fill(gaps, 0.0).sum(1)
        low = torch.minimum(low, flat.masked_fill(gaps, math.inf).amin(1))
        high = torch.maximum(high, flat.masked_fill(gaps, -math.inf).amax(1))
    mean = torch.where(low == high, low, total / entries)
    width = torch.where(high > low, high - low, 1.0)
    square = torch.zeros(channels, dtype=torch.float64)
    for flat in map(curve, chunks(x, indices)):
        square += (flat - mean[:, None]).div_(width[:, None]).square_().nan_to_num_(0.0, math.inf).sum(1)
    return mean, width * (square / entries).sqrt(), low, high


def _by_channel(block: Tensor) -> Tensor:
    """(n, C, *spatial) -> (C, n * prod(spatial))."""
    return block.transpose(0, 1).reshape(block.shape[1], -1)


def _quiet(x: "Samples", indices: Tensor | None, size: int) -> Tensor:
    """min over groups of `size` neighbouring samples of the std within the group, per channel.

    The groups start at evenly spaced places: enough of them for a lower limit, not the whole set. Groups with missing
    values do not count; 0 if all have some.
    """
    rows = torch.arange(len(x)) if indices is None else indices
    size = min(size, len(rows))
    room = CHUNK_ENTRIES // (size * max(1, x[0].numel()))
    if not room:  # not even one group: it is read in pieces
        return moments(x, rows[:size])[1].nan_to_num(0.0)
    groups = max(1, min(len(rows) // size, GROUPS, room))
    starts = torch.linspace(0, len(rows) - size, groups, dtype=torch.float64).long()
    chosen = x[rows[starts[:, None] + torch.arange(size)].flatten()].to(torch.float64)
    members = chosen.reshape(groups, size, x.shape[1], -1).transpose(1, 2).reshape(groups, x.shape[1], -1)
    # a power of two changes no digit, and keeps squares from overflowing
    exponent = torch.frexp(members.nan_to_num(0.0).abs().amax((0, 2), keepdim=True)).exponent - 1
    power = exponent.clamp(-1000).to(torch.float64).exp2()
    least = (members / power).std(2, correction=0).nan_to_num(math.inf).amin(0)
    return torch.where(least.isfinite(), least, 0.0) * power.flatten()
