"""The loss of the decoder of an unCLIP pair: denoising given the embedding with a little noise.

    e' = e + s eta,   each number of e in units of its deviation

A decoder of few pictures knows each by its embedding, and one that the prior draws is never exactly that of a picture;
with noise it has to be of use for those around too. `sf.UnCLIP` adds as much when sampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor

from sfumato import noise
from sfumato.conditions import EMBEDDING, Given
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.objectives.density import TimeDensity
from sfumato.objectives.losses import Denoising
from sfumato.objectives.weights import Weight
from sfumato.registry import register
from sfumato.unclip import noised


@register("loss", "decoding")
@final
class Decoding(Denoising):
    """`Denoising` of a network that hears the condition "embedding" with noise of the level `noise`.

    The trained model is the decoder of a `sf.UnCLIP`. Raises SfumatoError for a model without that condition.
    """

    def __init__(self, times: TimeDensity, weight: Weight | None, seed: int, noise: float = 0.2) -> None:
        super().__init__(times, weight, seed)
        if not 0 <= noise < math.inf:
            raise SfumatoError(f"The noise on embeddings is a number of at least 0, not {noise!r}.")
        self.noise = float(noise)

    def told(self, model: Any, batch: Any, t: Tensor) -> Mapping[str, Any]:
        draws = Noise(self.seed, batch.index, noise.TRAIN_NOISE)
        return {**batch.cond, EMBEDDING: noised(Given.of(batch.cond[EMBEDDING]), self.noise, draws)}

    def suits(self, model: Any) -> None:
        super().suits(model)
        if EMBEDDING not in (getattr(getattr(model, "spec", None), "conditions", None) or {}):
            raise SfumatoError(
                f"The loss decoding trains the decoder of an unCLIP pair, which hears the condition {EMBEDDING!r}: "
                "train with unclip, or leave the loss out."
            )
