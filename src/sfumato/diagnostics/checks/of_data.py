"""Checks of the data, against the units that the model's contract declares."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sfumato import registry
from sfumato.diagnostics.checks.evidence import Evidence, Sample
from sfumato.diagnostics.checks.finding import WARNING, Finding
from sfumato.diagnostics.hypotheses import SURE

FARTHEST = 3.0  # times the deviation, or deviations from the mean, that data may be off
ALIKE = 0.05  # relative, within which figures are those of data that were normalised twice
LOG_RANGE = 10.0  # the same in the log, where only squares are known
DIFFERENT = 1e-3  # share of the variance that lies between samples, below which they are the same
COPIES = 0.1  # share of distinct samples below which fields are copies
QUIET, FEW = 0.02, 0.02  # samples that vary 50 times less than most; from two in a hundred on
SMOOTH = 0.5  # correlation of neighbours along an axis of places
PERIOD = 0.02  # by which the correlation of every third value may exceed that of neighbours


def _figures(sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation of each channel in the model's units, and which channels vary in its contract."""
    channels = _by_channel(sample.normalised)
    varies = torch.ones(len(channels), dtype=torch.bool)
    if sample.spec is not None:
        figures = sample.spec.statistics
        varies = torch.tensor(figures.high) > torch.tensor(figures.low)
    return channels.mean(1), channels.std(1, correction=0), varies


def _by_channel(x: Tensor) -> Tensor:
    """(n, C, *spatial) -> float64 (C, n prod(spatial))."""
    return x.double().transpose(0, 1).flatten(1)


def _twice(sample: Sample) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of each channel after the normaliser has acted twice, where the sample has just these."""
    if sample.spec is None or sample.spec.normaliser.kind != "affine":
        return None
    normaliser, (mean, std, varies) = sample.spec.normaliser, _figures(sample)
    m, s = (torch.tensor(v, dtype=torch.float64) for v in (normaliser.mean, normaliser.std))
    expected_mean, expected_std = -m / s, 1 / s
    shows = (expected_std.log().abs() > math.log(1.2)) | (expected_mean.abs() > 0.2)
    if not bool(shows.any() and varies.any()):
        return None
    room = 3 / math.sqrt(len(sample.x)) + ALIKE  # of the sample's own chance, in the deviations of the channel
    near = (mean - expected_mean).abs() < room * expected_std
    alike = (std / expected_std).log().abs() < max(room, 0.2)
    off = bool((_off(mean, std)[varies] > 0.15).any())
    return (expected_mean, expected_std) if off and bool((near & alike)[varies].all()) else None


def _off(mean: Tensor, std: Tensor) -> Tensor:
    """How far from mean 0 and deviation 1, in logarithms or deviations."""
    return torch.maximum(mean.abs(), std.clamp_min(1e-30).log().abs())


def double_normalised(evidence: Evidence) -> Finding | None:
    """mean -m/s and deviation 1/s in every channel: (z - m)/s of what has been (x - m)/s already."""
    sample = evidence.sample
    expected = None if sample is None else _twice(sample)
    if sample is None or expected is None:
        return None
    mean, std, _ = _figures(sample)
    return Finding(
        "double-normalised",
        "the model's normaliser acts on data that it has acted on before",
        {
            "mean": mean[:4].tolist(), "std": std[:4].tolist(), "mean if twice": expected[0][:4].tolist(),
            "std if twice": expected[1][:4].tolist(),
        },
        "Give the data in the user's units: training and sampling normalise by themselves.",
    )  # fmt: skip


def out_of_range(evidence: Evidence) -> Finding | None:
    """Some channel's deviation 3 times too large or small, or its mean 3 deviations away; from the log alone, where
    the data are not there, a mean square of the held-out samples beyond 10 or below 1/10, and surely not 1."""
    found = _range_of_data(evidence.sample) if evidence.sample is not None else None
    if found is not None or not evidence.log or _from_data(evidence.settings):
        return found
    return _range_of_log(evidence.log)


def _from_data(settings: dict[str, Any] | None) -> bool:
    """Whether states lead to sources, which are no noise of deviation 1 and not independent of the samples."""
    return registry.bare(str((settings or {}).get("process", ""))) == "rectified-flow"


def _range_of_data(sample: Sample) -> Finding | None:
    mean, std, varies = _figures(sample)
    if not bool(varies.any()) or _twice(sample) is not None or float(sample.normalised.std()) == 0:
        return None
    far = (mean.abs() > FARTHEST) | (std > FARTHEST) | (std < 1 / FARTHEST)
    # of many columns a rare one may be quiet in few rows: most must be off, or one loud beyond doubt
    wrong = far & varies
    if not bool((wrong.sum() * 2 > varies.sum()) | ((std > 10 * FARTHEST) & varies).any()):
        return None
    c = int(torch.where(varies, _off(mean, std), -1.0).argmax())
    factor, shift = float(std[c]), float(mean[c])
    return Finding(
        "range",
        f"in the units that the model knows, channel {c} has deviation {factor:.3g} and mean {shift:.3g}, not 1 and 0"
        + _as_if(sample, c),
        {"std": std[:4].tolist(), "mean": mean[:4].tolist(), "channels off": f"{int(wrong.sum())} of {len(std)}"},
        "Give the data in the units that the data spec was fitted on, or fit the spec anew (train anew).",
    )


def _as_if(sample: Sample, c: int) -> str:
    """The likely cause of a wrong scale, in words."""
    if sample.spec is None or sample.spec.normaliser.kind != "affine":
        return ""
    own = float(_by_channel(sample.x)[c].std()) / max(1e-30, sample.spec.normaliser.std[c])
    for factor, words in ((255, "multiplied by 255"), (1 / 255, "divided by 255"), (2 / 255, "mapped to [-1, 1]"),
                          (127.5, "multiplied by 127.5"), (257, "multiplied by 257")):  # fmt: skip
        if abs(math.log(own / factor)) < 0.2:
            return f", as if it had been {words}"
    return ""


def _range_of_log(log: list[dict[str, Any]]) -> Finding | None:
    found = logged_power(log)
    if found is None:
        return None
    power, error = found
    if 1 / LOG_RANGE <= power <= LOG_RANGE or abs(power - 1) < SURE * error:
        return None
    return Finding(
        "range",
        f"the held-out samples had a mean square of {power:.3g} in the units of the model, where it is 1",
        {"mean square": power, "standard error of 1": error},
        "The data were changed after their statistics had been taken: give them as they were.",
    )


def logged_power(log: list[dict[str, Any]]) -> tuple[float, float] | None:
    """(E x^2 of the held-out samples, its standard error if it is 1) by what the linear guess lost on them by level:

    loss_g = (alpha^4 + alpha^2 sigma^2 E x^2) / (alpha^2 + sigma^2)^2 = s^2 + s (1 - s) E x^2,  s = sigmoid(logsnr)

    by least squares over the levels, since a level has few draws. Their own errors would be small where they happen to
    be small; relative ones, of what is expected of data in their units, are not.
    """
    line = next((line for line in reversed(log) if line.get("bins_loss_trivial")), None)
    if line is None or not line.get("bins_loss_trivial_stderr"):
        return None
    names = ("bins_logsnr", "bins_loss_trivial", "bins_loss_trivial_stderr")
    lam, loss, error = (torch.tensor([math.nan if v is None else v for v in line[n]]).double() for n in names)
    s = lam.sigmoid()
    known = (loss + error).isfinite() & (loss > 0)
    share, expected = torch.where(known, s * (1 - s), 0.0), s * error / loss  # of data of mean square 1 the loss is s
    whole = float(share.square().sum())
    if not whole > 0:
        return None
    power = float((share * (loss - s.square()).nan_to_num()).sum()) / whole
    return power, float((share * torch.where(known, expected, 0.0)).norm()) / whole


def mixed_units(evidence: Evidence) -> Finding | None:
    """2 % of the samples or more vary, but 50 times less, or more, than the median one."""
    sample = evidence.sample
    if sample is None or not sample.field or len(sample.x) < 50:
        return None
    spread = sample.x.double().flatten(1).std(1)
    typical = float(spread.median())
    few = float(((spread > 0) & (spread < QUIET * typical)).double().mean())
    many = float((spread > typical / QUIET).double().mean())
    if max(few, many) < FEW:
        return None
    return Finding(
        "mixed-units",
        f"{max(few, many):.0%} of the samples vary 50 times {'less' if few >= many else 'more'} than the median one",
        {"share": max(few, many), "median deviation": typical, "least": float(spread.min())},
        "Bring all samples to one scale: often some are in [0, 1] and others in [0, 255].",
        WARNING,
    )


def identical(evidence: Evidence) -> Finding | None:
    """Less than a thousandth of the variance between samples, or fields of which fewer than one in ten is distinct."""
    sample = evidence.sample
    if sample is None or len(sample.x) < 8:
        return None
    x = sample.x.double().flatten(1)
    total = (x - x.mean()).square().mean() if sample.field else x.square().mean()
    between = float((x - x.mean(0)).square().mean() / total.clamp_min(1e-300))
    distinct = len(torch.unique(x, dim=0)) / len(x)
    if distinct * len(x) > 1 and not sample.field:
        return None
    if between >= DIFFERENT and distinct >= COPIES:
        return None
    return Finding(
        "identical",
        "the samples are the same" if distinct * len(x) == 1 else "most samples are copies of few, or nearly so",
        {"distinct": distinct, "variance between samples": between, "looked at": len(x)},
        "Check how the data are read: often one sample was repeated, or an index never moved.",
    )


def constant(evidence: Evidence) -> Finding | None:
    """A channel or column that never changes beside others that do."""
    sample = evidence.sample
    if sample is None or len(sample.x) < 8:
        return None
    x = _by_channel(sample.x)
    still = (x == x[:, :1]).all(1)
    if sample.spec is not None:
        figures = sample.spec.statistics
        still &= torch.tensor(figures.low) == torch.tensor(figures.high)
    if not bool(still.any()) or bool(still.all()):
        return None
    which = torch.nonzero(still).flatten().tolist()
    table = None if sample.spec is None else sample.spec.table
    owners = [] if table is None else [each.name for each in table.fields if which[0] in table.places(each.name)]
    name = f"column {owners[0]!r}" if owners else f"{'channel' if sample.field else 'column'} {which[0]}"
    return Finding(
        "constant",
        name + (f" and {len(which) - 1} more" if which[1:] else "") + " never changes",
        {"constant": which[:8], "of": len(x), "value": float(x[which[0], 0])},
        "It costs work and carries no information: leave it out, or check that it was read correctly.",
        WARNING,
    )


def axes(evidence: Evidence) -> Finding | None:
    """An axis of channels that is smooth and long beside a last one of 1 to 4, or values that repeat with the number of
    channels: (N, H, W, C) taken, or reshaped, as (N, C, H, W)."""
    sample = evidence.sample
    if sample is None or sample.x.ndim < 4:
        return None
    return _last_is_channel(sample) or _interleaved(sample)


def _last_is_channel(sample: Sample) -> Finding | None:
    z = sample.x.double()
    channels, last = z.shape[1], z.shape[-1]
    if last > 4 or channels < 8 or z.shape[2] < 8:
        return None
    near, far = _correlation(z, 1, 1), _correlation(z, 1, channels // 2)
    if not (near > SMOOTH and near > far + 0.1):
        return None
    return Finding(
        "axes",
        f"samples of shape {tuple(z.shape[1:])} are smooth along their {channels} channels: channels are likely last",
        {"correlation of neighbouring channels": near, "of channels half the way apart": far},
        "Give (N, C, H, W): x.transpose(0, 3, 1, 2) in numpy, x.movedim(-1, 1) in torch.",
    )


def _interleaved(sample: Sample) -> Finding | None:
    z = sample.x.double()
    channels, width = z.shape[1], z.shape[-1]
    if channels not in (2, 3, 4) or width < 4 * channels:
        return None
    near, period = _correlation(z, z.ndim - 1, 1), _correlation(z, z.ndim - 1, channels)
    between = _correlation(z, z.ndim - 1, channels + 1)
    if not (period > SMOOTH and period > near + PERIOD and period > between + PERIOD):
        return None
    return Finding(
        "axes",
        f"along a row, values {channels} apart are more alike than neighbours: the channels of each place lie "
        "one behind another",
        {"correlation of neighbours": near, f"at a distance of {channels}": period},
        "A channels-last array was reshaped to (N, C, H, W): transpose it instead, x.transpose(0, 3, 1, 2).",
    )


def _correlation(x: Tensor, axis: int, lag: int) -> float:
    """Of values `lag` apart along an axis, over all samples and places; means are those of the whole."""
    n = x.shape[axis]
    if lag >= n:
        return 0.0
    a, b = x.narrow(axis, 0, n - lag), x.narrow(axis, lag, n - lag)
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt().clamp_min(1e-300))
