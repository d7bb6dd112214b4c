"""What else the answers of a network could mean: every target under every named schedule, with either sign.

Each hypothesis is a row (a, b) at equal logsnr, "y means a x + b eps". It is scored by its skill against the linear
guess, level by level; the true one is calibrated (the slope of its target on y is 1) and never far below zero.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import final

import torch
from torch import Tensor

from sfumato.diagnostics.answers import Answers
from sfumato.errors import SfumatoError
from sfumato.registry import make, names
from sfumato.schedule import Schedule
from sfumato.target import NAMES, row


@final
@dataclasses.dataclass(frozen=True)
class Score:
    """skill and slope by level (K,) and their standard errors; power: E y^2 over the guess's loss.

    gap = power (1 - slope)^2: what y loses only because it is not scaled rightly; mean: of the skills, each held
    above -1.
    """

    skill: Tensor
    skill_error: Tensor
    slope: Tensor
    slope_error: Tensor
    power: Tensor

    @property
    def gap(self) -> float:
        """The largest that is sure, by three standard errors."""
        room = 2 * (1 - self.slope).abs() * self.slope_error
        return float((self.power * ((1 - self.slope).square() - 3 * room)).max())

    @property
    def mean(self) -> float:
        return float(self.skill.clamp_min(-1.0).mean())


@final
@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """sign times the target under a schedule."""

    target: str
    schedule: Schedule
    sign: int = 1

    def score(self, answers: Answers) -> Score | None:
        """None where the schedule does not reach the levels, or the target cannot be told there."""
        return _score(self, answers)


def declared(answers: Answers) -> Hypothesis:
    """What the model says of itself."""
    return Hypothesis(answers.target, answers.schedule)


@cache
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


def _score(h: Hypothesis, answers: Answers) -> Score | None:
    lam = answers.logsnr
    low, high = h.schedule.logsnr_range
    if not low - 1e-9 <= float(lam.min()) <= float(lam.max()) <= high + 1e-9:
        return None
    a, b = row(h.target, h.schedule, h.schedule.time(lam), answers.sigma_data)
    if not bool((a.isfinite() & b.isfinite()).all()):
        return None
    a, b, one, zero = h.sign * a, h.sign * b, torch.ones_like(a), torch.zeros_like(a)
    answer, wanted = torch.stack((one, zero, zero, zero, zero), 1), torch.stack((zero, a, b, zero, zero), 1)
    guess = torch.stack((zero, zero, zero, a, b), 1)
    loss, least = _form(answer - wanted, answers.gram), _form(guess - wanted, answers.gram)
    power, along = _form(answer, answers.gram), torch.einsum("ki,knij,kj->kn", wanted, answers.gram, answer)
    skill, skill_error = _ratio(loss, least)
    slope, slope_error = _ratio(along, power)
    scale = power.mean(1) / least.mean(1).clamp_min(1e-30)
    return Score(1 - skill, skill_error, slope, slope_error, scale)


def _form(u: Tensor, gram: Tensor) -> Tensor:
    """u^T G u for each draw, (K, n)."""
    return torch.einsum("ki,knij,kj->kn", u, gram, u)


def _ratio(top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor]:
    """(mean of top over mean of bottom, its standard error over the draws), (K,)."""
    below = bottom.mean(1).clamp_min(1e-30)
    ratio = top.mean(1) / below
    return ratio, (top - ratio[:, None] * bottom).std(1) / below / top.shape[1] ** 0.5
