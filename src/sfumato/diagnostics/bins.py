"""Bins of noise levels, and how draws fill them.

A time density maps each place u in (0, 1) to a logsnr, decreasing in u. A bin is an interval of places, whose length is
the bin's probability under the density. Draws fill it evenly, so that the mean over a bin's draws is E[. | bin].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.objectives.times import TimeDensity
from sfumato.roots import bisection
from sfumato.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Bins:
    """K bins, cleanest first. places (K + 1,): u at the edges, increasing; edges (K + 1,), middle (K,): logsnr."""

    times: TimeDensity
    schedule: Schedule
    places: Tensor
    edges: Tensor
    middle: Tensor

    def __len__(self) -> int:
        return len(self.middle)

    @property
    def mass(self) -> Tensor:
        """The probability of each bin under the density, (K,)."""
        return self.places.diff()

    @property
    def width(self) -> Tensor:
        """The width of each bin in logsnr, (K,)."""
        return -self.edges.diff()

    def levels(self, count: int) -> Tensor:
        """`count` logsnr per bin, float64 (count K,), at the places given by `spread`."""
        with torch.no_grad():
            return self.times.logsnr(spread(self.places, count), self.schedule)


def spread(places: Tensor, count: int) -> Tensor:
    """`count` places u per interval, float64 (count K,): draw j lies in interval j mod K, in the middle of its part."""
    k = len(places) - 1
    j = torch.arange(count * k)
    part = (j // k + 0.5) / count
    return places[j % k] + part.double() * places.diff()[j % k]


def make(bins: int | Sequence[float], times: TimeDensity, schedule: Schedule) -> Bins:
    """Bins: as many of equal mass under the density, or those between edges in logsnr, as in numpy.histogram."""
    if isinstance(bins, bool) or isinstance(bins, int) and bins < 1:
        raise SfumatoError(f"bins must be a number from 1 up or the edges of bins in logsnr, not {bins!r}.")
    if isinstance(bins, int):
        places = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    else:
        places = _places(_sorted(bins), times, schedule)
    with torch.no_grad():
        edges = times.logsnr(places, schedule)
        middle = times.logsnr((places[1:] + places[:-1]) / 2, schedule)
    return Bins(times, schedule, places, edges, middle)


def _sorted(edges: Sequence[float]) -> list[float]:
    try:
        found = sorted((float(edge) for edge in edges), reverse=True)
    except (TypeError, ValueError):
        raise SfumatoError(f"The edges of bins are values of logsnr, not {edges!r}.") from None
    if len(set(found)) < 2 or len(set(found)) < len(found) or not all(map(math.isfinite, found)):
        raise SfumatoError(f"Bins need at least two different, finite edges in logsnr, got {edges!r}.")
    return found


def _places(edges: list[float], times: TimeDensity, schedule: Schedule) -> Tensor:
    """The u with logsnr(u) = edge, by bisection of the quantile; edges outside the density's range become its ends."""
    wanted = torch.tensor(edges, dtype=torch.float64)
    with torch.no_grad():
        top, bottom = times.logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64), schedule).tolist()
        ends = torch.zeros_like(wanted), torch.ones_like(wanted)
        inner = bisection(lambda u: times.logsnr(u, schedule) > wanted, *ends, rounds=60)
    places = torch.where(wanted >= top, 0.0, torch.where(wanted <= bottom, 1.0, inner))
    empty = torch.nonzero(places.diff() <= 1e-12)
    if len(empty):
        k = int(empty[0])
        raise SfumatoError(
            f"The time density has no mass between logsnr {edges[k + 1]:g} and {edges[k]:g}: "
            f"its levels run from {bottom:.4g} to {top:.4g}."
        )
    return places
