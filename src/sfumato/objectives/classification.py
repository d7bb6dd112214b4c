"""The cross entropy of the class of a noisy sample, for `sf.train(loss="classification")`."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from sfumato.errors import SfumatoError, an
from sfumato.guidance import NoisyClassifier
from sfumato.noise import TRAIN_NOISE, Noise
from sfumato.objectives.loss import Loss
from sfumato.objectives.times import TimeDensity
from sfumato.registry import register


@register("loss", "classification")
@final
class Classification(Loss):
    """-log p(label | z_t), nats, at noise levels drawn from `times`; trains a `NoisyClassifier` of data with
    classes."""

    network = "classifier"

    def __init__(self, times: TimeDensity, seed: int) -> None:
        super().__init__()
        self.density, self.seed = times, seed

    def model(self, net: nn.Module, spec: Any) -> Any:
        if not spec.classes:
            raise SfumatoError("A classifier needs data with classes: name them by a column `label`, or by folders.")
        return NoisyClassifier(net, spec)

    def suits(self, model: Any) -> None:
        if not isinstance(model, NoisyClassifier):
            raise SfumatoError(
                f"The classification loss trains a NoisyClassifier, and this is {an(type(model).__name__)}: leave "
                "model out, or take loss='denoising'."
            )

    def losses(self, model: Any, batch: Any) -> Tensor:
        space = model.space
        t = space.schedule.time(self.density.logsnr(batch.u, space.schedule))
        z = space.corrupt(batch.x, t, Noise(self.seed, batch.index, TRAIN_NOISE))
        found: Tensor = -model(z, t, **batch.cond)
        return found
