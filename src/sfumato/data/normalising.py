"""The normaliser of a data set: affine, or by the logarithm, the bounds or the quantiles of values far from normal.

auto            log, quantile, position or affine, by the rule of `chosen`
log             values above 0 that span powers of ten
bounded         values within limits, by default 1 % of the range beyond the data; bounded(0, 1) declares them
quantile        any shape of one number's distribution
position        mean and deviation of each position of a channel, as of sensors side by side
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
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
AUTO = "auto"
PLACES, APART, EVEN = 4096, 100, 0.2  # most positions; of the variance of a channel, over that of most; of a quarter
LEAST = {"log": 100, "quantile": 1000, "position": 100}  # samples from which one is chosen
SPAN, SKEW = 30, 0.5  # of values that are learned by their logarithm
TAILS = 20  # the middle 99.8 % over the middle 50 %, of values that are learned by their quantiles; 4.6 if normal
_AT = (0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999)
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
        raise SfumatoError(f"there is no normaliser {word!r}: {suggest(word, (AUTO, *KINDS))}")
    return word, None


def fit(source: Source, indices: Tensor, figures: Statistics, whole: Statistics, word: str) -> Normaliser:
    """The normaliser of a word for the samples at `indices`. figures: theirs; whole: of all samples."""
    kind, bounds = _parsed(word)
    if kind == "affine":
        return Normaliser.of(figures)
    if source.table is not None or source.text is not None:
        what = "text, which is symbols" if source.table is None else "a table, which normalises each column itself"
        raise SfumatoError(f"{source.name} is {what}: leave out --normalise {kind}")
    if source.whole or not source.x.dtype.is_floating_point:
        raise SfumatoError(f"{source.name} holds whole numbers: --normalise {kind} is for floats, leave it out")
    low, high = torch.tensor(whole.low, dtype=torch.float64), torch.tensor(whole.high, dtype=torch.float64)
    if kind == "log" and not bool((low > 0).all()):
        raise SfumatoError(f"{source.name} has values down to {float(low.min()):g}: --normalise log needs all above 0")
    ones = (1.0,) * len(figures.mean)
    if kind == "position":
        mean, std = _by_position(source, indices, torch.tensor(Normaliser.of(figures).std, dtype=torch.float64))
        return Normaliser((0.0,) * len(ones), ones, kind, tuple(map(tuple, torch.cat((mean, std)).tolist())))
    knots: tuple[tuple[float, ...], ...] = ()
    if kind == "bounded":
        knots = _bounds(source.name, low, high, bounds)
    elif kind == "quantile":
        knots = _quantiles(source, indices)
    curve = Normaliser((0.0,) * len(ones), ones, kind, knots)
    mean, std, *_ = moments(source.x, indices, lambda flat: curve.curve(flat[None])[0])
    std = torch.where(std > 0, std, 1.0)
    return Normaliser(tuple(mean.tolist()), tuple(std.tolist()), kind, knots)


def _by_position(source: Source, indices: Tensor, channel: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, std) of the present values at each position, (C, P) each, of samples in memory; a position without spread
    has the deviation of its channel."""
    if len(source.shape) < 2 or not isinstance(source.x, Tensor):
        what = "has no positions" if len(source.shape) < 2 else "is read from disk as it is used"
        raise SfumatoError(f"{source.name} {what}: leave --normalise position out")
    mean, std, *_ = (each.view(len(channel), -1) for each in moments(source.x.flatten(1), indices))
    return mean.nan_to_num(0.0), torch.where(std > 0, std, channel[:, None])


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
    """The quantiles (k + 1/2) / K of each channel."""
    knots = _quantiles_at(source, indices, (torch.arange(KNOTS, dtype=torch.float64) + 0.5) / KNOTS)
    same = (knots.diff(dim=1) <= 0).any(1)
    if bool(same.any()):
        c = int(torch.nonzero(same)[0])
        raise SfumatoError(
            f"channel {c} of {source.name} repeats a value too often for --normalise quantile, which spreads them: "
            "take another normaliser"
        )
    return tuple(map(tuple, knots.tolist()))


def _quantiles_at(source: Source, indices: Tensor, at: Tensor) -> Tensor:
    """The quantiles (C, n) of each channel's present values, of evenly spaced samples where there are very many."""
    each = max(1, math.prod(source.shape[1:]))
    rows = indices[torch.linspace(0, len(indices) - 1, min(len(indices), max(1, VALUES // each))).long()]
    values = [channel[~channel.isnan()] for channel in torch.cat(list(chunks(source.x, rows)), 1)]
    return torch.stack([_quantile(channel, at) if len(channel) else at * 0 for channel in values])


def _quantile(values: Tensor, at: Tensor) -> Tensor:
    """The quantiles of values (n,); torch.quantile takes no more than 16 million."""
    ordered = values.sort().values
    place = at * (len(ordered) - 1)
    left = place.long()
    right = (left + 1).clamp_max(len(ordered) - 1)
    return torch.lerp(ordered[left], ordered[right], place - left)


def chosen(source: Source, indices: Tensor, lowest: Callable[[], float]) -> str:
    """What suits the samples at `indices`: log, quantile, position or affine; lowest: gives the least value of all.

    log        all values above 0; in some channel q99 / q01 >= SPAN and s >= SKEW, at most half of which is left by the
               logarithm; in no channel is the logarithm more skewed than SKEW and than the values
    quantile   vectors, of which some number has (q99.9 - q0.1) / (q75 - q25) > TAILS, and none repeats a value often
    position   arrays of which, in some channel, the variance at most positions is below that of the channel / APART,
               and at most positions half of the values lie further apart than EVEN deviations (none is sparse)
    affine     everything else

    s = (q99 + q01 - 2 q50) / (q99 - q01) is skewness by quantiles, 0.8 for exp N(0, 1) and 0.7 for waiting times.
    """
    numbers = source.x.dtype.is_floating_point and not source.whole and source.table is None and source.text is None
    if not numbers or len(indices) < LEAST["log"]:
        return "affine"
    q = _quantiles_at(source, indices, torch.tensor(_AT, dtype=torch.float64))
    if bool((q > 0).all()):
        plain, log = _skew(q), _skew(q.log())
        skewed = (q[:, 5] >= SPAN * q[:, 1]) & (plain >= SKEW) & (log.abs() <= plain / 2)
        worse = log.abs() > plain.abs().clamp_min(SKEW)
        if bool(skewed.any() and not worse.any()) and lowest() > 0:
            return "log"
    if len(source.shape) > 1:
        return "position" if _uneven(source, indices) else "affine"
    heavy = q[:, 6] - q[:, 0] > TAILS * (q[:, 4] - q[:, 2])
    if len(indices) < LEAST["quantile"] or not bool(heavy.any()):
        return "affine"
    try:
        _quantiles(source, indices)
    except SfumatoError:  # values that repeat
        return "affine"
    return "quantile"


def _uneven(source: Source, indices: Tensor) -> bool:
    """Whether positions of a channel differ so much that most are lost in its units."""
    places = math.prod(source.shape[1:])
    if source.layout or not isinstance(source.x, Tensor) or not 1 < places <= PLACES:
        return False
    rows = indices[
        torch.linspace(0, len(indices) - 1, min(len(indices), max(LEAST["position"], VALUES // places))).long()
    ]
    x = source.x[rows].double()
    if bool(x.isnan().any()):
        return False
    q = torch.quantile(x.flatten(1), torch.tensor([0.25, 0.75], dtype=torch.float64), dim=0)
    spread, std = (q[1] - q[0]).view(source.shape[0], -1), x.std(0, correction=0).view(source.shape[0], -1)
    most, whole = std.square().median(1).values, x.transpose(0, 1).flatten(1).var(1, correction=0)
    return bool(((APART * most < whole) & (spread > EVEN * std).double().mean(1).gt(0.9)).any())


def _skew(q: Tensor) -> Tensor:
    """(q99 + q01 - 2 q50) / (q99 - q01) of each channel, 0 for constant ones."""
    return ((q[:, 5] + q[:, 1] - 2 * q[:, 3]) / (q[:, 5] - q[:, 1])).nan_to_num(0.0)


def reason(kind: str) -> list[str]:
    """The note on a normaliser that was chosen."""
    why = {
        "log": "Values are positive and skewed over powers of ten: their logarithm is learned",
        "quantile": "Values have heavy tails: they are learned through their quantiles",
        "position": "Positions differ in scale or offset: each is learned in its own deviations",
    }
    return [f"{why[kind]} (--normalise affine learns the values themselves)."] if kind in why else []
