"""The cross-entropy of symbols at drawn levels, the loss of SED and CDCD ("score interpolation").

    CE = E -log p(x_i | z_t) in nats per symbol,   x_hat = sum_k p(k) E_k

It has the same minimum as the squared error of x_hat, p(x_i = k | z), and vectors that are trained along
(`process.Embedded`, learned) cannot lower it by falling together, as they lower a squared error.
Sources: Strudel et al. 2022 (2211.04236), Eq. 6; Dieleman et al. 2022 (2211.15089), Sect. 3 and 4.2.
"""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.objectives.density import TimeDensity
from sfumato.objectives.loss import LearnsLevels
from sfumato.objectives.losses import fixed
from sfumato.registry import register


@register("loss", "cross-entropy")
@final
class CrossEntropy(LearnsLevels):
    """-log p(x_i | z_t) in nats per symbol, at levels drawn by `times`, for any process of symbols.

    The density is the weight of the levels: nothing is divided by it. With times="warped" the loss rises evenly over
    the draws (2211.15089, Sect. 4.2). Held-out samples stand at fixed levels.
    """

    def __init__(self, times: TimeDensity, seed: int = 0) -> None:
        super().__init__()
        self.times, self.seed = times, seed

    def losses(self, model: Any, batch: Any) -> Tensor:
        self.clock = model.process.clock
        return self._nats(model, batch, self.times)

    def held(self, model: Any, batch: Any) -> Tensor:
        return self._nats(model, batch, fixed(self.times))

    def _nats(self, model: Any, batch: Any, times: TimeDensity) -> Tensor:
        process = model.process
        t = process.clock.time(times.logsnr(batch.u, process.clock))
        x = process.data(batch.x)
        z = process.corrupt(x, t, Noise(self.seed, batch.index, noise.TRAIN_NOISE))
        nats: Tensor = model(z, t, **batch.cond).nats(x) / batch.x[0].numel()
        return nats

    def observe(self, batch: Any, losses: Tensor) -> None:
        assert self.clock is not None
        logsnr = self.times.logsnr(batch.u, self.clock).detach()
        super().observe(batch, losses / self.times.density(logsnr, self.clock).to(losses))

    def suits(self, model: Any) -> None:
        process = getattr(model, "process", None)
        if not hasattr(process, "states"):
            raise SfumatoError(
                f"The cross-entropy is of symbols, and a {type(process).__name__} process has none: take "
                "loss='denoising', or process='embedded'."
            )
