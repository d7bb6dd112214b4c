"""The factor that turns the squared error of a target into a weighted denoising loss, and checks that it is finite.

    1/2 w / p |eps - eps_hat|^2 = 1/2 factor |y - y_hat|^2,   factor = w(logsnr) / p(logsnr) (alpha / det)^2

with y = a x + b eps and det = b alpha - a sigma (`process.gaussian.factor`). Source: 2303.00848, Eq. 6.
"""

from __future__ import annotations

import torch

from sfumato import target as targets
from sfumato.errors import SfumatoError
from sfumato.objectives.times import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.process.gaussian import factor as factor
from sfumato.process.gaussian import finite as finite
from sfumato.schedule import Schedule

# Uniform numbers to check: training draws within 1e-9 of the ends (`noise.spread`).
_PLACES = torch.cat((torch.tensor([1e-9], dtype=torch.float64), torch.arange(1, 64).double() / 64))


def check(
    schedule: Schedule, target: str, times: TimeDensity, weight: Weight | None = None, sigma_data: float = 1.0
) -> None:
    """Raise SfumatoError for what cannot be trained: an undefined target, an empty density, an infinite factor.

    weight None, the plain squared error, has the factor 1 everywhere.
    """
    targets.check(target, schedule)
    with torch.no_grad():
        logsnr = times.logsnr(torch.cat((_PLACES, 1 - _PLACES[:1])), schedule)
        if weight is None:
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
