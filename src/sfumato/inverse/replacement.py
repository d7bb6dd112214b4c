"""Replacement of the measured part of the state, once a step or with time travel (RePaint)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor

from sfumato.belief import broadcast
from sfumato.errors import SfumatoError
from sfumato.inverse.measurement import Measurement
from sfumato.inverse.method import StepMethod
from sfumato.registry import register
from sfumato.state import numbers_like


@register("method", "replacement")
@dataclasses.dataclass(frozen=True)
class Replacement(StepMethod):
    """z_s from E[x|z] by an ancestral step, whose measured part is then that of alpha y + sigma n.

        z_s <- z_s + A^+ (alpha y - A z_s) + sigma A^+ A n

    y is taken as free of noise; the rest does not hear what is measured. Source: Song et al. 2020 (2011.13456), App. I.
    """

    nonlinear: ClassVar[bool] = False

    def step(self, model: Any, measurement: Measurement, z: Tensor, t: float, s: float, noise: Any) -> Tensor:
        belief = model(z, t)
        moved = belief.to(s, 1.0, noise.fold("step")) if s else belief.x
        return replaced(model, measurement, moved, s, noise)


def replaced(model: Any, measurement: Measurement, z: Tensor, s: float, noise: Any) -> Tensor:
    """The state at s with the measured part of alpha x + sigma n for an x that has the measurement."""
    if s == 0:
        return z + measurement.project(z, measurement.residual(z))
    alpha, sigma = (broadcast(v, z) for v in model.process.schedule(s))
    fresh = sigma * numbers_like(noise.fold("measured"), z)
    drawn = measurement.residual((z - fresh) / alpha)
    return z + alpha * measurement.project(z, drawn)


@register("method", "repaint")
@dataclasses.dataclass(frozen=True)
class RePaint(StepMethod):
    """`Replacement` in which every step is taken `repeats` times, with noise to go back from s to t in between.

    The measured part and the rest come to agree. The last step, which ends with the replacement, is taken once.
    Source: Lugmayr et al. 2022 (2201.09865), with jumps of one step.
    """

    repeats: int = 10
    nonlinear: ClassVar[bool] = False
    usual_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise SfumatoError(f"RePaint needs repeats of at least 1, not {self.repeats}.")

    def calls(self, s: float) -> int:
        return self.repeats if s else 1

    def step(self, model: Any, measurement: Measurement, z: Tensor, t: float, s: float, noise: Any) -> Tensor:
        once, process = Replacement(), model.process
        for k in range(self.calls(s) - 1):
            own = noise.fold(f"repeat {k}")
            z = once.step(model, measurement, z, t, s, own)
            back = process.jump(s, t)
            z = broadcast(back.alpha, z) * z + broadcast(back.sigma, z) * numbers_like(own.fold("back"), z)
        return once.step(model, measurement, z, t, s, noise)
