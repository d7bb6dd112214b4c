"""Autoguidance: away from a weaker model of the same data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfumato.compose import alike
from sfumato.conditions import uncarried
from sfumato.guidance.guided import Guided, Scale
from sfumato.model import Model, usable
from sfumato.registry import register
from sfumato.state import State


@register("model", "Autoguided")
class Autoguided(Guided):
    """belief = weak + scale (inner - weak): away from the errors that a weaker model makes more of.

    weak: a smaller or less trained model of the same data and schedule, or other weights of the same run: `sf.load(run,
    weights="raw")`, or a file of `sfumato average`. It hears the same conditions, if there are any. Space: any row; of
    symbols the log-probabilities. Law on Gaussians: that of `Guided` with the weak model's law for p_base. Source:
    Karras et al. 2024 (2406.02507), Eq. 4.
    """

    def __init__(
        self, inner: Model, weak: Model, scale: Scale = 1.0, interval: tuple[float, float] | None = None
    ) -> None:
        super().__init__(inner, scale, interval)
        self.weak = alike(usable(weak, "Autoguidance"), inner)

    def pair(self, z: State, t: Tensor, cond: Mapping[str, Any]) -> tuple[Any, Any]:
        return self.weak(z, t, **uncarried(cond)), self.inner(z, t, **cond)
