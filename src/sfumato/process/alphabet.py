"""Data that are symbols 0 .. K - 1, for every process of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torch import Tensor

from sfumato.data import DataSpec, Normaliser
from sfumato.errors import SfumatoError


def symbols(x: Tensor, states: int) -> Tensor:
    """Data as symbols, int64; SfumatoError if they are not integers in 0 .. states - 1."""
    whole = x.round().long() if x.is_floating_point() else x.long()
    if bool(((whole < 0) | (whole >= states)).any()) or bool((whole != x).any()):
        raise _foreign(states, float(x.min()), float(x.max()))
    return whole


def unscaled(spec: DataSpec, channels: Iterable[int], states: int) -> DataSpec:
    """The spec with these channels left unscaled; SfumatoError if they do not hold symbols."""
    if spec.normaliser.kind != "affine":
        raise SfumatoError(f"symbols are not normalised: leave --normalise {spec.normaliser.kind} out")
    mean, std, own = list(spec.normaliser.mean), list(spec.normaliser.std), list(channels)
    low = min(spec.statistics.low[channel] for channel in own)
    high = max(spec.statistics.high[channel] for channel in own)
    if low < 0 or high > states - 1:
        raise _foreign(states, low, high)
    for channel in own:
        mean[channel], std[channel] = 0.0, 1.0
    return dataclasses.replace(spec, normaliser=Normaliser(tuple(mean), tuple(std)))


def by_symbol(y: Tensor, n: int) -> Tensor:
    """(B, *shape, n) from n numbers a symbol as channels, (B, n C, ..)."""
    return y.unflatten(1, (n, -1)).movedim(1, -1)


def as_channels(values: Tensor) -> Tensor:
    """(B, d C, ..) from d numbers a symbol, (B, C, .., d)."""
    return values.movedim(-1, 1).flatten(1, 2)


def _foreign(states: int, low: float, high: float) -> SfumatoError:
    return SfumatoError(
        f"The data of a process of {states} symbols must be integers from 0 to {states - 1}; these range from {low:g} "
        f"to {high:g} (give more states, or use the gaussian process for real numbers)."
    )
