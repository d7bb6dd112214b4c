"""The normaliser of a data set: affine, or by the logarithm, the bounds or the quantiles of values far from normal.

log             values above 0 that span powers of ten
bounded         values within limits, by default 1 % of the range beyond the data; bounded(0, 1) declares them
quantile        any shape of one number's distribution
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import SfumatoError, suggest
from ..normaliser import KINDS, Normaliser, Statistics
from .statistics import chunks, moments

if TYPE_CHECKING:
    from .source import Source

MARGIN = 0.01  # of the range, beyond the data
KNOTS, VALUES = 128, 1 << 20  # of quantiles, and the most values a channel from which they are taken
DECADES = 3  # powers of ten that positive values span before their logarithm is advised
_BOUNDED = re.compile(r"bounded\(\s*(\S+?)\s*,\s*(\S+?)\s*\)")


def _parsed(word: str) -> tuple[str, tuple[float, float] | None]:
    """(kind, the bounds that are declared)."""
    if found := _BOUNDED.fullmatch(word):
        try:
            low, high = float(found[1]), float(found[2])
        except ValueError:
            low = high = math.nan
        if not (low < high and math.isfinite(high - low)):
            raise SfumatoError(f"{word} is not understood: bounds are two numbers that increase, as in bounded(0, 1)")
        return "bounded", (low, high)
    if word not in KINDS:
        raise SfumatoError(f"there is no normaliser {word!r}: {suggest(word, KINDS)}")
    return word, None


def fit(source: Source, indices: Tensor, figures: Statistics, whole: Statistics, word: str) -> Normaliser:
    """The normaliser of a word for the samples at `indices`. figures: theirs; whole: of all samples."""
    kind, bounds = _parsed(word)
    if kind == "affine":
        return Normaliser.of(figures)
    if not source.x.dtype.is_floating_point:
        raise SfumatoError(f"{source.name} holds whole numbers: --normalise {kind} is for floats, leave it out")
    low, high = torch.tensor(whole.low, dtype=torch.float64), torch.tensor(whole.high, dtype=torch.float64)
    if kind == "log" and not bool((low > 0).all()):
        raise SfumatoError(f"{source.name} has values down to {float(low.min()):g}: --normalise log needs all above 0")
    knots: tuple[tuple[float, ...], ...] = ()
    if kind == "bounded":
        knots = _bounds(source.name, low, high, bounds)
    elif kind == "quantile":
        knots = _quantiles(source, indices)
    ones = (1.0,) * len(figures.mean)
    curve = Normaliser((0.0,) * len(ones), ones, kind, knots)
    mean, std, *_ = moments(source.x, indices, lambda flat: curve.curve(flat[None])[0])
    std = torch.where(std > 0, std, 1.0)
    return Normaliser(tuple(mean.tolist()), tuple(std.tolist()), kind, knots)


def _bounds(
    name: str, low: Tensor, high: Tensor, declared: tuple[float, float] | None
) -> tuple[tuple[float, ...], ...]:
    if declared is None:
        margin = MARGIN * torch.where(high > low, high - low, 1.0)
        return tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
    if not declared[0] < float(low.min()) <= float(high.max()) < declared[1]:
        raise SfumatoError(
            f"{name} has values from {float(low.min()):g} to {float(high.max()):g}, which are not all between "
            f"{declared[0]:g} and {declared[1]:g}: widen the bounds"
        )
    return (declared,) * len(low)


def _quantiles(source: Source, indices: Tensor) -> tuple[tuple[float, ...], ...]:
    """The quantiles (k + 1/2) / K of each channel, of evenly spaced samples where there are very many values."""
    each = max(1, math.prod(source.shape[1:]))
    rows = indices[torch.linspace(0, len(indices) - 1, min(len(indices), max(1, VALUES // each))).long()]
    values = torch.cat(list(chunks(source.x, rows)), 1)
    at = (torch.arange(KNOTS, dtype=torch.float64) + 0.5) / KNOTS
    knots = torch.stack([_quantile(channel[~channel.isnan()], at) for channel in values])
    same = (knots.diff(dim=1) <= 0).any(1)
    if bool(same.any()):
        c = int(torch.nonzero(same)[0])
        raise SfumatoError(
            f"channel {c} of {source.name} repeats a value too often for --normalise quantile, which spreads them: "
            "take another normaliser"
        )
    return tuple(map(tuple, knots.tolist()))


def _quantile(values: Tensor, at: Tensor) -> Tensor:
    """The quantiles of values (n,); torch.quantile takes no more than 16 million."""
    ordered = values.sort().values
    place = at * (len(ordered) - 1)
    left = place.long()
    right = (left + 1).clamp_max(len(ordered) - 1)
    return torch.lerp(ordered[left], ordered[right], place - left)


def advice(source: Source, whole: Statistics) -> list[str]:
    """A note for positive floats that span powers of ten."""
    low, high = min(whole.low), max(whole.high)
    if not source.x.dtype.is_floating_point or low <= 0 or high < 10**DECADES * low:
        return []
    span = round(math.log10(high / low))
    return [f"Values are positive and span {span} powers of ten: --normalise log learns their logarithm."]
