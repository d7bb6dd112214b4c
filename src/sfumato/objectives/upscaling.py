"""The loss of an upscaler: denoising given the small sample, noised or blurred at a level of its own.

    c = alpha y + s eta,  y = means of blocks of x,   s ~ U(0, 1);   in a share `drop` of the samples neither c nor s

so that one network serves every level at sampling, and none at all. Source: Ho et al. 2021 (2106.15282), Sec. 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor

from sfumato import noise
from sfumato.cascade import KINDS, lowered, told
from sfumato.conditions import AUGMENTATION, LOW, Given
from sfumato.errors import SfumatoError, suggest
from sfumato.noise import Noise
from sfumato.objectives.density import TimeDensity
from sfumato.objectives.losses import Denoising
from sfumato.objectives.weights import Weight
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register


@register("loss", "upscaling")
@final
class Upscaling(Denoising):
    """`Denoising` of a network that hears the sample `factor` times smaller, at an augmentation level s ~ U(0, 1).

    augmentation: "noise", c = sqrt(1 - s^2) y + s eta, or "blur", of a deviation of up to 2 pixels; drop: the share of
    samples in which the network hears neither. The trained model is the upscaler of a `sf.Cascade`.
    """

    def __init__(
        self,
        times: TimeDensity,
        weight: Weight | None,
        seed: int,
        factor: int = 2,
        augmentation: str = "noise",
        drop: float = 0.1,
    ) -> None:
        super().__init__(times, weight, seed)
        if augmentation not in KINDS:
            raise SfumatoError(f"Unknown augmentation {augmentation!r}: {suggest(str(augmentation), KINDS)}")
        if factor < 1 or not 0 <= drop < 1:
            raise SfumatoError(
                f"Upscaling takes a factor of at least 1 and a drop in [0, 1), not {factor!r}, {drop!r}."
            )
        self.factor, self.augmentation, self.drop = factor, augmentation, drop

    def inputs(self, shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
        small = [shape[0], *(n // self.factor for n in shape[1:])]
        field = {"kind": "field", "shape": small} if len(shape) > 1 else {"kind": "vector", "size": shape[0]}
        return {LOW: field, AUGMENTATION: {"kind": "scalar"}}

    def told(self, model: Any, batch: Any, t: Tensor) -> Mapping[str, Any]:
        draws = Noise(self.seed, batch.index, noise.TRAIN_NOISE).fold(LOW)
        level = draws.uniform(device=batch.x.device)
        found = told(lowered(batch.x, self.factor), level, draws, self.augmentation)
        heard = (Noise(self.seed, batch.index, noise.DROP).fold(LOW).uniform() >= self.drop).to(batch.x.device)
        return {**batch.cond, **{name: Given(given.values, heard).masked() for name, given in found.items()}}

    def suits(self, model: Any) -> None:
        require_numbers(model, "Upscaling", "take loss='denoising'")
        if LOW not in (getattr(getattr(model, "net", None), "given", None) or {}):
            raise SfumatoError(
                f"Upscaling trains a network that hears the small sample: leave net to a name such as 'small', or give "
                f"it the conditions {LOW!r}, a field, and {AUGMENTATION!r}, a scalar."
            )
