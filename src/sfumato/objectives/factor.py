"""The factor that turns the squared error of a target into a weighted denoising loss, and checks that it is finite.

    1/2 w / p |eps - eps_hat|^2 = 1/2 factor |y - y_hat|^2,   factor = w(logsnr) / p(logsnr) (alpha / det)^2

with y = a x + b eps and det = b alpha - a sigma (`process.gaussian.factor`). Source: 2303.00848, Eq. 6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato import target as targets
from sfumato.errors import SfumatoError
from sfumato.objectives.adaptive import WarpedDensity
from sfumato.objectives.times import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.process.gaussian import factor as factor
from sfumato.process.gaussian import finite as finite
from sfumato.schedule import Schedule

# Uniform numbers to check: training draws within 1e-9 of the ends (`noise.spread`).
_PLACES = torch.cat((torch.tensor([1e-9], dtype=torch.float64), torch.arange(1, 64).double() / 64))

_MIDDLE = 4.0  # |log(snr sigma_data^2)| within which data of unit variance take shape
# Ratio of `emphasis` between two such levels that is refused. x and eps have 54, and are as good as v; the score has
# 2,900 or more, and samples at three to ten times the distance to the law (`benchmarks/settings.py`).
_UNEVEN = 300.0


def check(
    schedule: Schedule, target: str, times: TimeDensity, weight: Weight | None = None, sigma_data: float = 1.0
) -> None:
    """Raise SfumatoError for what cannot be trained: an undefined target, an empty density, an infinite factor, a
    density for other losses, or a plain squared error (weight None) that neglects levels at which data take shape
    (`emphasis`)."""
    targets.check(target, schedule)
    if isinstance(times, WarpedDensity):
        raise SfumatoError(
            "The density warped is for a loss that falls as the noise falls, such as loss='cross-entropy' of symbols; "
            "the squared error of numbers does not: take times='adaptive' or 'logit-normal'."
        )
    with torch.no_grad():
        logsnr = times.logsnr(torch.cat((_PLACES, 1 - _PLACES[:1])), schedule)
        if weight is None:
            _require_even(schedule, target, logsnr, sigma_data)
            return
        w = torch.as_tensor(weight(logsnr))
        wrong = ~(w >= 0) if w.shape == logsnr.shape else None
        if wrong is None:
            raise SfumatoError(
                f"A weight must return one number per noise level, {tuple(logsnr.shape)}, not {tuple(w.shape)}."
            )
        if bool(wrong.any()):
            raise SfumatoError(
                f"The loss weight is {float(w[wrong][0]):g} at logsnr {float(logsnr[wrong][0]):.4g}: "
                "a weight must be non-negative at every noise level that is drawn."
            )
        if not bool((w > 0).any()):
            raise SfumatoError("The loss weight is 0 at every noise level that is drawn: nothing would be learned.")
        t = schedule.time(logsnr)
        finite(factor(schedule, targets.row(target, schedule, t, sigma_data), t, times, weight), logsnr)


def emphasis(schedule: Schedule, target: str, logsnr: Tensor, sigma_data: float = 1.0) -> Tensor:
    """|y - y_hat|^2 / |F - F_hat|^2 = (det / det_F)^2 at levels logsnr: how much the plain squared error of a target
    weighs an error of F, the target with unit variance and unit output at every level."""
    t = schedule.time(logsnr)
    alpha, sigma = schedule(t)
    ours, unit = (
        targets.error_scale(targets.row(name, schedule, t, sigma_data), alpha, sigma) for name in (target, "F")
    )
    return unit / ours


def _require_even(schedule: Schedule, target: str, drawn: Tensor, sigma_data: float) -> None:
    low, high = (sign * _MIDDLE - 2 * math.log(sigma_data) for sign in (-1, 1))
    low, high = max(low, float(drawn.min())), min(high, float(drawn.max()))
    if not low < high:
        return
    weights = emphasis(schedule, target, torch.linspace(low, high, 129, dtype=torch.float64), sigma_data)
    ratio = float(weights.max() / weights.min())
    if not ratio <= _UNEVEN:
        raise SfumatoError(
            f"The plain squared error of target {target!r} weighs some noise levels of {type(schedule).__name__} "
            f"{ratio:,.0f} times as much as others, which would hardly be trained: pass weight='eps-simple', or use "
            "target 'v' or 'F'."
        )
