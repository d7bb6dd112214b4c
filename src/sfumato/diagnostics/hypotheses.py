"""Readings of a network's answers: every target under every named schedule, with either sign.

Each hypothesis is a row (a, b) at equal logsnr, "y means a x + b eps". It is scored by its skill against the linear
guess, level by level; the true one is calibrated (the slope of its target on y is 1) and never far below zero.
"""

from __future__ import annotations

import dataclasses
from typing import final

import torch
from torch import Tensor

from sfumato.diagnostics.answers import Answers
from sfumato.errors import SfumatoError
from sfumato.registry import make, names
from sfumato.schedule import Schedule
from sfumato.target import NAMES, row

SURE = 3.0  # standard errors from which on an estimate counts as certain


@final
@dataclasses.dataclass(frozen=True)
class Fit:
    """The fit of a reading: skill and slope by level (K,) with standard errors; power: E y^2 over the guess's loss."""

    skill: Tensor
    skill_error: Tensor
    slope: Tensor
    slope_error: Tensor
    power: Tensor

    @property
    def most(self) -> Tensor:
        """The skill plus SURE standard errors, (K,)."""
        return self.skill + SURE * self.skill_error

    @property
    def gap(self) -> float:
        """The largest power (1 - slope)^2, what y loses by its scale alone, less SURE standard errors."""
        room = 2 * (1 - self.slope).abs() * self.slope_error
        return float((self.power * ((1 - self.slope).square() - SURE * room)).max())

    @property
    def mean(self) -> float:
        """Of the skills, each cut off at -1."""
        return float(self.skill.clamp_min(-1.0).mean())


@final
@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """sign times the target under a schedule."""

    target: str
    schedule: Schedule
    sign: int = 1

    def score(self, answers: Answers) -> Fit | None:
        """None where the schedule does not reach the levels, or the target is not finite there."""
        lam = answers.logsnr
        low, high = self.schedule.logsnr_range
        if not low - 1e-9 <= float(lam.min()) <= float(lam.max()) <= high + 1e-9:
            return None
        a, b = row(self.target, self.schedule, self.schedule.time(lam), answers.sigma_data)
        if not bool((a.isfinite() & b.isfinite()).all()):
            return None
        a, b, one, zero = self.sign * a, self.sign * b, torch.ones_like(a), torch.zeros_like(a)
        answer, wanted = torch.stack((one, zero, zero, zero, zero), 1), torch.stack((zero, a, b, zero, zero), 1)
        guess = torch.stack((zero, zero, zero, a, b), 1)
        loss, least = _form(answer - wanted, answers.gram), _form(guess - wanted, answers.gram)
        power, along = _form(answer, answers.gram), torch.einsum("ki,knij,kj->kn", wanted, answers.gram, answer)
        skill, skill_error = _ratio(loss, least)
        slope, slope_error = _ratio(along, power)
        scale = power.mean(1) / least.mean(1).clamp_min(1e-30)
        return Fit(1 - skill, skill_error, slope, slope_error, scale)


def declared(answers: Answers) -> Hypothesis:
    """The reading that the model declares."""
    return Hypothesis(answers.target, answers.schedule)


def known() -> tuple[Schedule, ...]:
    """The named schedules that need no numbers."""
    found = []
    for name in names("schedule"):
        try:
            found.append(make("schedule", name))
        except (TypeError, SfumatoError):
            continue
    return tuple(found)


def others(answers: Answers) -> list[Hypothesis]:
    """All but the declared one, the likeliest mistakes first: the sign, the schedule, the target, then two of these."""
    own = declared(answers)
    curves = [own.schedule, *(s for s in known() if s != own.schedule)]
    found = [Hypothesis(target, s, sign) for target in NAMES for s in curves for sign in (1, -1)]

    def mistakes(h: Hypothesis) -> tuple[int, int]:
        wrong = [h.sign != 1, h.schedule != own.schedule, h.target != own.target]
        return sum(wrong), wrong.index(True) if any(wrong) else 0

    return sorted((h for h in found if h != own), key=mistakes)


def _form(u: Tensor, gram: Tensor) -> Tensor:
    """u^T G u for each draw, (K, n)."""
    return torch.einsum("ki,knij,kj->kn", u, gram, u)


def _ratio(top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor]:
    """(mean of top over mean of bottom, its standard error over the draws), (K,)."""
    below = bottom.mean(1).clamp_min(1e-30)
    ratio = top.mean(1) / below
    return ratio, (top - ratio[:, None] * bottom).std(1) / below / top.shape[1] ** 0.5
