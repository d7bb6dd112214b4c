"""One fit of a plan: what is fitted and what is held out, the plan to start from, and which plan is better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions, Given
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.solvers import Plan
from sfumato.tuning import table
from sfumato.tuning.fit import Exam, Problem, levenberg_marquardt, rho
from sfumato.tuning.search import Range, Wiener, distances, end_of, fine_plan, untuned
from sfumato.tuning.stochastic import LAW, Stochastic, sliced

_FIT, _HELD_OUT = 1, 2  # steps of the role PRIOR: other noise than any that `sample` draws
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
    """Distances from the exact end, |z - y| / sqrt(D), in the units of the model; with noise also that of the laws."""

    rms: float
    median: float
    law: float | None = None

    @classmethod
    def of(cls, gaps: Tensor) -> Score:
        return cls(float(gaps.mean().sqrt()), float(gaps.median().sqrt()))


def shape_of(model: Model) -> tuple[int, ...]:
    shape = getattr(model, "shape", None)
    if shape is None:
        raise SfumatoError("The model does not know the shape of a sample, so that no noise can be drawn to tune on.")
    return tuple(shape)


@dataclasses.dataclass(frozen=True)
class Study:
    """One fit: the model as it is sampled, the range, the number of calls, and the noise of the reverse SDE (tau)."""

    model: Model
    reach: Range
    calls: int
    batch: int
    progress: Callable[[Progress], None]
    tau: float = 0.0

    def exams(self, seed: int, points: int, turns: Mapping[str, Given]) -> tuple[Exam, Exam]:
        """Noise to fit, and noise to judge on, each with the ends of a fine solve."""
        self.progress(Progress("fine solve", 0, 1, math.nan))
        # laws are judged on as many points as they are fitted on: paths that part from the fine solve's blur them
        sizes = {_FIT: points, _HELD_OUT: max(_LEAST_HELD, points if self.tau else -(-points // 2))}
        starts = [(*self._noise(seed, n, role, turns), self._paths(seed, n, role)) for role, n in sizes.items()]
        z, own, paths = starts[0]
        some = None if paths is None else Wiener(paths.seed, paths.index[:_PROBE])
        plan = fine_plan(
            self.model, z[:_PROBE], own.rows(slice(_PROBE)), self.reach, self.calls, self.batch, self.tau, some
        )
        first, second = (
            Exam(z, end_of(plan, self.model, z, own, self.batch, paths).double(), own, paths)
            for z, own, paths in starts
        )
        return first, second

    def _paths(self, seed: int, count: int, role: int) -> Wiener | None:
        """Brownian paths that no sample of this seed has, by numbers beyond any."""
        return Wiener(seed, torch.arange(count) + (role << 40)) if self.tau else None

    def _noise(self, seed: int, count: int, role: int, turns: Mapping[str, Given]) -> tuple[Tensor, Conditions]:
        """States at the start of the range, in the dtype of the model's beliefs, and their conditions, in turn."""
        index = torch.arange(count)
        device = getattr(self.model, "device", torch.device("cpu"))
        own = Conditions({name: each.rows(index % len(each.values)) for name, each in turns.items()}).to(device)
        drawn = noise.normal(seed, index, shape_of(self.model), noise.PRIOR, role, device=device, dtype=torch.float64)
        schedule, start = self.reach.schedule, self.reach.start
        near = float(schedule.sigma(start) - schedule.sigma(1.0))
        z = drawn * schedule.sigma(start) if abs(near) < 1e-9 else self.model.process.prior(drawn)
        with torch.no_grad():
            dtype = self.model(z[:2].float(), start, **own.rows(slice(2))).x.dtype
        z = z.to(dtype)
        if abs(near) >= 1e-9:
            way = Range(schedule, 1.0, start)
            plan = fine_plan(self.model, z[:_PROBE], own.rows(slice(_PROBE)), way, self.calls, self.batch)
            z = end_of(plan, self.model, z, own, self.batch).reshape(z.shape)
        return z, own

    def best_untuned(self, fitted: Exam, held: Exam) -> Plan:
        """The plan without a fit that does best on the held-out noise."""
        few = next(fitted.parts(max(_FEW, len(fitted.z) // 64)))
        plans = untuned(self.reach, self.calls, self.tau)
        ends = []
        for i, plan in enumerate(plans):
            self.progress(Progress("untuned plans", i, len(plans), math.nan))
            ends.append(self.end(plan, few))
        c2 = turn(min((distances(end, few.end) for end in ends), key=torch.median))
        order = sorted(range(len(plans)), key=lambda i: self.loss(ends[i], few, c2))
        return min((plans[i] for i in order[:_FINALISTS]), key=lambda plan: self.loss(self.end(plan, held), held, c2))

    def end(self, plan: Plan, exam: Exam) -> Tensor:
        """Where a plan takes the noise of an exam, (B, D)."""
        return end_of(plan, self.model, exam.z, exam.cond, self.batch, exam.paths)

    def loss(self, end: Tensor, exam: Exam, c2: float) -> float:
        """What a plan is chosen by: rho of the distances, and with noise the distance of the laws."""
        loss = rho(distances(end, exam.end), c2)
        return loss + LAW * float(sliced(end, exam.end)) if self.tau and loss < math.inf else loss

    def improve(self, base: Plan, fitted: Exam, held: Exam, rounds: int, seed: int) -> tuple[Plan, Score, Score]:
        """The best plan on held-out noise on the way of the fit, its score, and that of `base`."""
        start, c2 = self.end(base, held), turn(distances(self.end(base, held), held.end))
        before = distances(start, held.end)
        plan, best, least, law = base, start, self.loss(start, held, c2), float(sliced(start, held.end))
        for i, new in enumerate(self._better(base, fitted, c2, rounds, seed)):
            end = self.end(new, held)
            loss = self.loss(end, held, c2)
            if self.tau:
                poorer = float(sliced(end, held.end)) > law
            else:
                poorer = worse(distances(end, held.end), before)
            if loss < least and not poorer:
                plan, best, least = new, end, loss
            self.progress(Progress("fit", i + 1, rounds, Score.of(distances(best, held.end)).rms))
        return plan, self._score(best, held), self._score(start, held)

    def _better(self, base: Plan, fitted: Exam, c2: float, rounds: int, seed: int) -> Iterator[Plan]:
        """The plans on the way of the fit."""
        schedule, name = self.reach.schedule, f"tuned {base.name}"
        if self.tau:
            problem = Stochastic(self.model, base, fitted, self.batch, c2)
            found: Iterator[table.Table] = problem.descend(rounds, seed)
        else:
            plain = Problem(self.model, table.Clock(*self.reach), self.batch)
            found = (one for one, _ in levenberg_marquardt(plain, table.read(base), fitted, c2, rounds, seed))
        return (table.write(one, base, schedule, name) for one in found)

    def _score(self, end: Tensor, exam: Exam) -> Score:
        score = Score.of(distances(end, exam.end))
        return score._replace(law=math.sqrt(float(sliced(end, exam.end)))) if self.tau else score


def turn(gaps: Tensor) -> float:
    """c^2 of rho for plans about as good as the one with these gaps."""
    return max(_ROBUST * float(gaps.median()), 1e-30)


def worse(gaps: Tensor, before: Tensor) -> bool:
    """Whether the mean square has grown, by more than two standard errors of the difference sample by sample.

    Single samples that land in another mode change the mean square of either plan by chance.
    """
    more = gaps - before
    return bool(more.mean() > 2 * more.std() / math.sqrt(len(more))) or bool(gaps.median() > before.median())
