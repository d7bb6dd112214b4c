"""Hypotheses about what a network's output y means: every target under every named schedule, with either sign.

A hypothesis is a row (a, b) at each logsnr: y stands for a x + b eps. Its score is the skill against the linear guess,
level by level. The true one is calibrated (regressing its target on y has slope 1), with a skill never far below zero.
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

SURE = 3.0  # standard errors that make an estimate certain


@final
@dataclasses.dataclass(frozen=True)
class Fit:
    """The fit of a hypothesis: skill and slope by level (K,) with standard errors; power: E y^2 / the guess's loss."""

    skill: Tensor
    skill_error: Tensor
    slope: Tensor
    slope_error: Tensor
    power: Tensor

    @property
    def most(self) -> Tensor:
        """Upper bound on the skill: plus SURE standard errors, (K,)."""
        return self.skill + SURE * self.skill_error

    @property
    def gap(self) -> float:
        """Lower bound on the largest power (1 - slope)^2, the loss from a wrong scale of y alone."""
        room = 2 * (1 - self.slope).abs() * self.slope_error
        return float((self.power * ((1 - self.slope).square() - SURE * room)).max())

    @property
    def mean(self) -> float:
        """The mean skill, with each level's cut off at -1."""
        return float(self.skill.clamp_min(-1.0).mean())


@final
@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """The output is sign * target under a schedule."""

    target: str
    schedule: Schedule
    sign: int = 1

    def score(self, answers: Answers) -> Fit | None:
        """The fit to a network's outputs; None if the schedule lacks some levels or the target diverges there."""
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
    """The hypothesis that the model declares."""
    return Hypothesis(answers.target, answers.schedule)


def known() -> tuple[Schedule, ...]:
    """The named schedules that need no arguments."""
    found = []
    for name in names("schedule"):
        try:
            found.append(make("schedule", name))
        except (TypeError, SfumatoError):
            continue
    return tuple(found)


def others(answers: Answers) -> list[Hypothesis]:
    """All but the declared hypothesis, likeliest mistakes first: sign, schedule, target, then two of these at once."""
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
