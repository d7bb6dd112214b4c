"""Guidance by a scale that each sample has as a condition, as a student of a range of scales hears it."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.conditions import Given, Scalar, declared
from sfumato.errors import SfumatoError
from sfumato.guidance.guided import LARGEST_SCALE, Guided
from sfumato.model import Model
from sfumato.schedule import Time, as_time

SCALE = "guidance_scale"  # of a student of a range; data of users may have a condition called scale


class GuidedByCondition(Guided):
    """belief = base + w (conditional - base), w the scale that each sample has as its condition `name`, 1 without one.

    known: what declares that condition, by which its values are encoded; None: the values are the scales. Outside the
    interval of logsnr w = 1. Source: Meng et al. 2023 (2210.03142), Eq. 3.
    """

    def __init__(
        self,
        inner: Model,
        known: Scalar | None = None,
        name: str = SCALE,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(inner, 1.0, interval)
        self.known, self.name = known, name
        if known is not None and name in (declared(inner) or {}):
            raise SfumatoError(f"The model has a condition {name!r} already: give one scale of guidance, not a range.")

    @classmethod
    def of_range(
        cls, inner: Model, ends: tuple[float, float], interval: tuple[float, float] | None = None
    ) -> GuidedByCondition:
        """The model that hears scales from the lowest to the highest of `ends`."""
        if not declared(inner):
            raise SfumatoError("The model has no condition, so there is nothing to guide to: leave guidance out.")
        return cls(inner, Scalar.fit(np.array(ends)), interval=interval)

    def encoded_by(self, spec: Any) -> GuidedByCondition:
        """The same range of scales, encoded as by the condition of another contract, such as a student's."""
        known = (declared(spec) or {}).get(self.name)
        if not isinstance(known, Scalar):
            raise SfumatoError(
                f"The teacher is guided by each sample's condition {self.name!r}, which the student does not hear: "
                "train it on samples that have it, as sf.distill(teacher, guidance=(1, 4)) does."
            )
        found = copy.copy(self)
        found.known = known if self.known is None else dataclasses.replace(self.known, normaliser=known.normaliser)
        return found

    @property
    def spec(self) -> Any:
        """The data's contract, with the scale among its conditions."""
        spec = getattr(self.inner, "spec", None)
        if spec is None or self.known is None:
            return spec
        return dataclasses.replace(spec, conditions={**spec.conditions, self.name: self.known})

    def __call__(self, z: Any, t: Time, /, **cond: Any) -> Any:
        cond, t = {name: value for name, value in cond.items() if value is not None}, as_time(t)
        given = cond.pop(self.name, None)
        if given is None:
            return self.inner(z, t, **cond)
        base, conditional = self.pair(z, t, cond)
        return self.combined(base, conditional, torch.where(self._inside(t), self._each(Given.of(given)).to(t), 1.0))

    def _each(self, given: Given) -> Tensor:
        """The scale of each row, float64 (B,)."""
        values = given.values.double().reshape(-1, 1)
        values = values if self.known is None else self.known.normaliser.denormalise(values)
        return torch.where(given.present.to(values.device), values[:, 0], 1.0)


def is_range(guidance: Any) -> bool:
    """Whether guidance is the two ends of a range of scales. Raises SfumatoError for ends that do not increase."""
    if not isinstance(guidance, tuple | list) or not all(isinstance(end, int | float) for end in guidance):
        return False
    if len(guidance) != 2 or not -LARGEST_SCALE <= guidance[0] < guidance[1] <= LARGEST_SCALE:
        raise SfumatoError(
            f"A range of guidance is its lowest and highest scale, such as (1, 4), not {guidance!r:.60}."
        )
    return True


def guided(model: Any, guidance: Any, interval: tuple[float, float] | None) -> Any:
    """The teacher under a scale of guidance, one per condition, or a range of scales; itself for None and 1."""
    if is_range(guidance):
        return GuidedByCondition.of_range(model, guidance, interval)
    return model if guidance is None or guidance == 1 else Guided(model, guidance, interval)
