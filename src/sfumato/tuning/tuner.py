"""Fit a plan of few steps to a model: `tune(denoiser, steps) -> Plan`.

    minimise over times, a, b:  mean_i rho(|z_N(times, a, b; z_0i) - Phi(z_0i)|^2)

Phi is a fine solve of the probability-flow ODE; z_0i is noise of its own stream, half of it held out. The fit starts
from the untuned plan that does best, and what it returns does better on the held-out noise, or is that plan itself:
its loss and median are smaller, and its mean square is not larger beyond chance.
Sources: Shaul et al. 2024 (2403.01329) fit all coefficients of a fixed-step solver; here by Gauss-Newton (`fit`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import noise
from sfumato.compose import guide
from sfumato.conditions import indices
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.plans import guidance_of
from sfumato.solvers import Plan
from sfumato.tuning import table
from sfumato.tuning.fit import Exam, Problem, levenberg_marquardt, rho
from sfumato.tuning.search import Range, distances, end_of, fine_plan, untuned

_FIT, _HELD_OUT = 1, 2  # steps of the role PRIOR: other noise than any that `sample` draws
_NUMBERS, _MOST, _LEAST = 1 << 16, 4096, 64  # how many points are fitted: so many numbers in all, within these limits
_FEW, _FINALISTS = 16, 6  # every untuned plan is tried on a few points (or a 64th of them), the best of them on all
_LEAST_HELD = 64  # points held out at least
_ROBUST = 30.0  # rho turns from square to logarithm at this multiple of the median squared distance
_PROBE = 16  # points on which the steps of the fine solve are chosen


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a fit has come: the stage, its round of rounds, and the RMS distance on held-out noise so far."""

    stage: str
    round: int
    rounds: int
    rms: float


class Score(NamedTuple):
    """Distances from the exact end, |z - y| / sqrt(D), in the units of the model."""

    rms: float
    median: float

    @classmethod
    def of(cls, gaps: Tensor) -> Score:
        return cls(float(gaps.mean().sqrt()), float(gaps.median().sqrt()))


def tune(
    model: Model,
    steps: int,
    *,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    points: int | None = None,
    rounds: int = 40,
    batch: int = 256,
    seed: int = 0,
    t_start: float = 1.0,
    t_stop: float = 0.0,
    progress: Callable[[Progress], None] | None = None,
    **cond: Any,
) -> Plan:
    """A deterministic plan of `steps` calls fitted to a model, its guidance and its conditions.

    points: how much noise is fitted, half as much more being held out; by default 65,536 numbers in all, at least 64
    and at most 4,096 points. rounds: of Gauss-Newton at most, each about four walks there and back. guidance, interval
    and conditions are `sample`'s; label may name several classes, which the points take in turn, and by default a model
    with classes takes all of its own. t_start < 1 is reached by the fine solve. progress is called after every round.

    `plan.tuned` says what was fitted and both errors on held-out noise. `sample(model, solver=plan)` uses the plan;
    `model.plans["6"] = plan` stores it for `sample(model, steps=6)` with the same guidance, and `save` keeps it.
    """
    if steps < 1 or rounds < 0 or batch < 1 or points is not None and points < 8:
        raise SfumatoError("tune needs steps and batch of at least 1, rounds of at least 0 and points of at least 8.")
    wanted = guidance_of(model, guidance, interval)
    walker = model if guidance is None else guide(model, guidance, interval)
    reach = Range(model.process.schedule, float(t_start), float(t_stop))
    points = points or points_of(shape_of(model))
    study = Study(walker, reach, steps, batch, progress or (lambda _: None))
    fitted, held = study.exams(seed, points, labels_of(model, cond))
    base = study.best_untuned(fitted, held)
    plan, score, before = study.improve(base, fitted, held, rounds, seed)
    record = {
        "guidance": wanted[0],
        "interval": None if wanted[1] is None else list(wanted[1]),
        "points": points,
        "seed": seed,
        "error": score._asdict(),
        "untuned": {"name": base.name, **before._asdict()},
    }
    return dataclasses.replace(plan, tuned=record)


def shape_of(model: Model) -> tuple[int, ...]:
    shape = getattr(model, "shape", None)
    if shape is None:
        raise SfumatoError("The model does not know the shape of a sample, so that no noise can be drawn to tune on.")
    return tuple(shape)


def points_of(shape: tuple[int, ...]) -> int:
    return max(_LEAST, min(_MOST, _NUMBERS // math.prod(shape)))


def labels_of(model: Model, cond: dict[str, Any]) -> dict[str, Tensor]:
    """What the points take in turn: the conditions given, or all classes of a model that has some."""
    given = {name: value for name, value in cond.items() if value is not None}
    classes = getattr(getattr(model, "spec", None), "classes", ())
    if not given and classes:
        return {"label": torch.arange(len(classes))}
    many = {name: isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0 for name, value in given.items()}
    return {name: indices(model, {name: value}, len(value) if many[name] else 1)[name] for name, value in given.items()}


@dataclasses.dataclass(frozen=True)
class Study:
    """One fit: the model as it is sampled, the range, the number of calls."""

    model: Model
    reach: Range
    calls: int
    batch: int
    progress: Callable[[Progress], None]

    def exams(self, seed: int, points: int, cond: dict[str, Tensor]) -> tuple[Exam, Exam]:
        """Noise to fit, and noise to judge on, each with the ends of a fine solve."""
        self.progress(Progress("fine solve", 0, 1, math.nan))
        fitted = self._noise(seed, points, _FIT, cond)
        held = self._noise(seed, max(_LEAST_HELD, -(-points // 2)), _HELD_OUT, cond)
        few = {name: value[:_PROBE] for name, value in fitted[1].items()}
        plan = fine_plan(self.model, fitted[0][:_PROBE], few, self.reach, self.calls, self.batch)
        ends = [end_of(plan, self.model, z, cond, self.batch).double() for z, cond in (fitted, held)]
        return Exam(fitted[0], ends[0], fitted[1]), Exam(held[0], ends[1], held[1])

    def _noise(self, seed: int, count: int, role: int, cond: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """States at the start of the range, in the dtype of the model's beliefs, and their conditions."""
        index = torch.arange(count)
        device = getattr(self.model, "device", torch.device("cpu"))
        own = {name: value[index % len(value)].to(device) for name, value in cond.items()}
        drawn = noise.normal(seed, index, shape_of(self.model), noise.PRIOR, role, device=device, dtype=torch.float64)
        schedule, start = self.reach.schedule, self.reach.start
        near = float(schedule.sigma(start) - schedule.sigma(1.0))
        z = drawn * schedule.sigma(start) if abs(near) < 1e-9 else self.model.process.prior(drawn)
        with torch.no_grad():
            dtype = self.model(z[:2].float(), start, **{name: value[:2] for name, value in own.items()}).x.dtype
        z = z.to(dtype)
        if abs(near) >= 1e-9:
            few = {name: value[:_PROBE] for name, value in own.items()}
            way = Range(schedule, 1.0, start)
            plan = fine_plan(self.model, z[:_PROBE], few, way, self.calls, self.batch)
            z = end_of(plan, self.model, z, own, self.batch).reshape(z.shape)
        return z, own

    def best_untuned(self, fitted: Exam, held: Exam) -> Plan:
        """The plan without a fit that does best on the held-out noise."""
        self.progress(Progress("untuned plans", 0, 1, math.nan))
        few = next(fitted.parts(max(_FEW, len(fitted.z) // 64)))
        plans = untuned(self.reach, self.calls)
        gaps = [self.gaps(plan, few) for plan in plans]
        c2 = turn(min(gaps, key=torch.median))
        order = sorted(range(len(plans)), key=lambda i: rho(gaps[i], c2))
        return min((plans[i] for i in order[:_FINALISTS]), key=lambda plan: rho(self.gaps(plan, held), c2))

    def gaps(self, plan: Plan, exam: Exam) -> Tensor:
        """|z_N - y|^2 / D of each sample."""
        return distances(end_of(plan, self.model, exam.z, exam.cond, self.batch), exam.end)

    def improve(self, base: Plan, fitted: Exam, held: Exam, rounds: int, seed: int) -> tuple[Plan, Score, Score]:
        """The best plan on held-out noise on the way of the fit, its score, and that of `base`."""
        problem = Problem(self.model, table.Clock(*self.reach), self.batch)
        plan, start, before = base, table.read(base), self.gaps(base, held)
        best, c2 = before, turn(before)
        for i, (found, _) in enumerate(levenberg_marquardt(problem, start, fitted, c2, rounds, seed)):
            new = table.write(found, base, self.reach.schedule, f"tuned {base.name}")
            gaps = self.gaps(new, held)
            if rho(gaps, c2) < rho(best, c2) and not worse(gaps, before):
                plan, best = new, gaps
            self.progress(Progress("fit", i + 1, rounds, Score.of(best).rms))
        return plan, Score.of(best), Score.of(before)


def turn(gaps: Tensor) -> float:
    """c^2 of rho for plans about as good as the one with these gaps."""
    return max(_ROBUST * float(gaps.median()), 1e-30)


def worse(gaps: Tensor, before: Tensor) -> bool:
    """Whether the mean square has grown, by more than two standard errors of the difference sample by sample.

    Single samples that land in another mode change the mean square of either plan by chance.
    """
    more = gaps - before
    return bool(more.mean() > 2 * more.std() / math.sqrt(len(more))) or bool(gaps.median() > before.median())
