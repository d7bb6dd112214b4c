"""What can be read off channels one by one: their values, their power by frequency, their correlation over distance.

    marginals        mean over channels of sup_v |F_x(v) - F_y(v)|, F the distribution of a channel's values
    spectrum         rms over channels and radii k of log P_x(k) / P_y(k), P the power, averaged over |frequency| = k
    autocorrelation  rms over channels, axes and lags of C_x(l) - C_y(l),  C(l) = E[u_s u_(s+l)] / E[u^2], u centred

All are 0 for equal laws and above it for finite sets: read them beside their floor.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.intervals import Interval
from sfumato.metrics.jackknife import jackknife
from sfumato.registry import register

_BLOCK = 128  # samples at once
_TINY = 1e-12  # of the mean power, lest a channel without any be infinitely far


@register("metric", "marginals")
@dataclasses.dataclass(frozen=True)
class Marginals:
    """The mean over channels of the Kolmogorov-Smirnov distance, at most `positions` places of each sample."""

    positions: int = 64
    space: ClassVar[str] = "fields"

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        ours, real = (self._places(each).double() for each in (x, y))

        def distance(i: Tensor, j: Tensor) -> float:
            return float(kolmogorov(ours[i].movedim(1, 0).flatten(1), real[j].movedim(1, 0).flatten(1)).mean())

        return jackknife(distance, len(x), len(y), most=1.0)

    def _places(self, x: Tensor) -> Tensor:
        """(n, C, *spatial) -> (n, C, P), spread evenly."""
        x = x.reshape(*x.shape[:2], -1)
        count = min(self.positions, x.shape[2])
        return x[:, :, torch.linspace(0, x.shape[2] - 1, count).round().long()]


def kolmogorov(a: Tensor, b: Tensor) -> Tensor:
    """The largest difference of the distribution functions of a (C, n) and b (C, m), for each row: (C,). NaN is
    no value."""
    counts = [(~each.isnan()).sum(1, keepdim=True).clamp_min(1) for each in (a, b)]
    a, b = (each.masked_fill(each.isnan(), torch.inf) for each in (a, b))
    at = torch.cat((a, b), 1)
    ours, real = (torch.searchsorted(each.contiguous().sort(1).values, at, right=True) for each in (a, b))
    return (ours.double() / counts[0] - real.double() / counts[1]).abs().masked_fill(at.isinf(), 0.0).amax(1)


@register("metric", "spectrum")
@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The distance of the radially averaged spectra, in nats (log 2 = 0.69 is a factor of two in power)."""

    space: ClassVar[str] = "fields"

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        ours, real = (torch.cat([radial_power(part.double()) for part in each.split(_BLOCK)]) for each in (x, y))

        def distance(i: Tensor, j: Tensor) -> float:
            a, b = ours[i].mean(0), real[j].mean(0)
            tiny = _TINY * b.mean() + torch.finfo(b.dtype).tiny
            return float(((a + tiny) / (b + tiny)).log().square().mean().sqrt())

        return jackknife(distance, len(x), len(y))


def radial_power(x: Tensor) -> Tensor:
    """The power of each sample by radius 1 .. min(side) / 2, its mean left out: (n, C, *spatial) -> (n, C, R)."""
    sides = _sides(x, "spectrum")
    if bool(x.isnan().any()):
        raise SfumatoError("spectrum needs samples of one length with all their values: leave it out.")
    power = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho").abs().square().flatten(2)
    axes = torch.meshgrid(*(torch.fft.fftfreq(side, dtype=torch.float64) for side in sides), indexing="ij")
    radius = (torch.stack(axes).square().sum(0).sqrt() * min(sides)).round().long().flatten()
    count = min(sides) // 2
    kept = (radius >= 1) & (radius <= count)
    sums = power.new_zeros(*power.shape[:2], count).index_add_(2, radius[kept] - 1, power[:, :, kept])
    return sums / (radius[kept] - 1).bincount(minlength=count)


@register("metric", "autocorrelation")
@dataclasses.dataclass(frozen=True)
class Autocorrelation:
    """The distance of the autocorrelations along each axis, up to `lags` or half a side."""

    lags: int = 16
    space: ClassVar[str] = "fields"

    def __call__(self, x: Tensor, y: Tensor) -> Interval:
        lags = min(self.lags, min(_sides(x, "autocorrelation")) // 2)
        ours, real = (_products(each, lags) for each in (x, y))

        def distance(i: Tensor, j: Tensor) -> float:
            sums = (each[rows].sum(0) for each, rows in ((ours, i), (real, j)))
            a, b = (total / count.clamp_min(1) for total, count in sums)
            a, b = (each[1:] / each[0].clamp_min(_TINY) for each in (a, b))
            return float((a - b).square().mean().sqrt())

        return jackknife(distance, len(x), len(y))


def _products(x: Tensor, lags: int) -> Tensor:
    """The sum over places of u^2, and of u_s u_(s+l) along each axis, for each sample, and their numbers: (n, 2, 1 +
    axes lags, C). NaN is no place."""
    mean, parts = x.double().nanmean((0, *range(2, x.ndim)), keepdim=True), []
    for u in (part - mean for part in x.split(_BLOCK)):
        found = [_summed(u.square())]
        for axis in range(2, x.ndim):
            for lag in range(1, lags + 1):
                left, right = u.narrow(axis, 0, u.shape[axis] - lag), u.narrow(axis, lag, u.shape[axis] - lag)
                found.append(_summed(left * right))
        parts.append(torch.stack(found, 2))
    return torch.cat(parts)


def _summed(u: Tensor) -> Tensor:
    """The sum of the values of each channel that are there, and their number: (n, 2, C)."""
    u = u.flatten(2)
    return torch.stack((u.nansum(2), (~u.isnan()).sum(2).to(u)), 1)


def _sides(x: Tensor, name: str) -> tuple[int, ...]:
    sides = tuple(x.shape[2:])
    if not sides or min(sides) < 4:
        raise SfumatoError(f"{name} needs samples with axes of at least 4 places, not of shape {tuple(x.shape[1:])}.")
    return sides
