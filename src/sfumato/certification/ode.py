"""What every solver owes: its order, its calls, steps that join, a bounded run, the same samples for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.certification.slopes import Slope, refine
from sfumato.certification.subjects import Subject
from sfumato.certification.walks import (
    LOGSNR_START,
    LOGSNR_STOP,
    ROWS,
    Run,
    Silence,
    Walk,
    believes,
    constant,
    exact_map,
    mixture,
    rms,
    size,
    start_states,
    stiff,
)
from sfumato.schedule import Schedule

F64 = torch.float64
SHORT_STEPS = 5  # as many as the start of a method of order 4 may take, and one
STABILITY_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100)
BOUND = 10.0  # of the state's size in units of its exact standard deviation, in each direction
CALL_STEPS = (3, 4, 5, 6, 8, 10, 20)
POINT = 0.8  # the data of the test for steps that join


def interior(schedule: Schedule | None, start: float = LOGSNR_START, stop: float = LOGSNR_STOP) -> tuple[float, float]:
    """The times of two levels of logsnr; a subject that brings its own levels does not look at them."""
    if schedule is None:
        return 1.0, 0.0
    return float(schedule.time(start)), float(schedule.time(stop))


def attempt(make: Callable[[], Walk]) -> Walk | None:
    """A walk, or None where a solver refuses that number of steps."""
    try:
        return make()
    except ValueError:  # SfumatoError, and what foreign schedulers raise
        return None


# -- order ---------------------------------------------------------------------------------------------------------


def distance(walk: Walk, limit: float = LOGSNR_STOP) -> float:
    """Root mean square distance to the exact map of the mixture, in units of hypot(alpha, sigma)."""
    run = walk.run(believes(mixture()), start_states(mixture(), walk.start))
    state, level = run.trace.before(limit)
    return rms(state - exact_map(walk.start, level)[1]) / size(level)


def order(subject: Subject, schedule: Schedule | None, counts: tuple[int, ...]) -> Slope:
    """The slope of the error between two levels."""

    def error(steps: int) -> float | None:
        walk = attempt(lambda: subject.walk(schedule, steps, interior(schedule)))
        return None if walk is None else distance(walk)

    return refine(error, counts, subject.floor)


def start_order(subject: Subject, schedule: Schedule) -> float | None:
    """q where the first steps together leave an error like h^(q + 1): a method of order p needs q >= p - 1.

    The first few steps alone, over shorter and shorter intervals: the lowest power of h is what remains, where over a
    whole run a poor start hides behind the many steps after it until there are hundreds.
    """

    def error(parts: int) -> float | None:
        ends = interior(schedule, -2.0, -2.0 + 3.0 / parts)
        walk = attempt(lambda: subject.walk(schedule, SHORT_STEPS, ends))
        return None if walk is None else distance(walk, math.inf)

    found = refine(error, (4, 8, 16, 32), 1e-13).order
    return None if found is None else found - 1


def whole_error(subject: Subject, schedule: Schedule | None, steps: int) -> float | None:
    """The distance to the exact map from noise to data."""
    walk = attempt(lambda: subject.walk(schedule, steps, subject.whole(schedule)))
    return None if walk is None else distance(walk, math.inf)


def reference(subject: Subject, schedule: Schedule | None) -> float:
    """The distance to the exact map of DDIM through the levels that a run calls at."""
    walk = subject.walk(schedule, subject.fixed or 4, subject.whole(schedule))
    belief, z = believes(mixture()), start_states(mixture(), walk.start)
    levels = [call.level for call in walk.run(belief, z).calls] + [walk.stop]
    for at, (alpha, sigma) in zip(levels, levels[1:], strict=False):
        x, eps = belief(z, at)
        z = alpha * x + sigma * eps
    return rms(z - exact_map(walk.start, walk.stop)[1]) / size(walk.stop)


# -- calls ---------------------------------------------------------------------------------------------------------


class Calls(NamedTuple):
    """per_step K + extra calls for K >= least steps, None without such a law; unused: calls that change nothing."""

    counted: tuple[tuple[int, int], ...]
    per_step: int | None
    extra: int | None
    least: int
    unused: tuple[int, ...]

    @property
    def law(self) -> str:
        if self.per_step is None or self.extra is None:
            return ", ".join(f"{calls} in {steps}" for steps, calls in self.counted)
        head = "K" if self.per_step == 1 else f"{self.per_step} K"
        law = head if not self.extra else f"{head} {'+' if self.extra > 0 else '-'} {abs(self.extra)}"
        return law if self.least == self.counted[0][0] else f"{law} (K > {self.least - 1})"


def calls(subject: Subject, schedule: Schedule | None) -> Calls:
    """Counted at the model, over whole runs."""
    counted = []
    for steps in CALL_STEPS if subject.fixed is None else (subject.fixed,):
        walk = attempt(lambda steps=steps: subject.walk(schedule, steps, subject.whole(schedule)))  # type: ignore[misc]
        if walk is not None:
            counted.append((steps, calls_of(walk)))
    return Calls(tuple(counted), *_law(counted), _unused(subject, schedule))


def calls_of(walk: Walk) -> int:
    return len(walk.run(constant(POINT), _rows(walk), Silence(0)).calls)


def _law(counted: list[tuple[int, int]]) -> tuple[int | None, int | None, int]:
    """(a, b, c) where a K + b calls are made in K >= c steps, for three counts at least."""
    if len(counted) > 2:
        (m, a), (n, b) = counted[-2:]
        slope = (b - a) // (n - m)
        others = [steps for steps, count in counted if count != slope * (steps - n) + b]
        holds = [steps for steps, _ in counted if steps > max(others, default=0)]
        if len(holds) > 2:
            return slope, b - slope * n, holds[0]
    return None, None, 0


def _rows(walk: Walk, rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(rows, 2, dtype=F64, generator=generator)
    return walk.start[0] * POINT + walk.start[1] * eps


def _unused(subject: Subject, schedule: Schedule | None) -> tuple[int, ...]:
    """The calls of a short run whose answer the end does not depend on."""
    steps = 5 if subject.fixed is None else subject.fixed
    walk = subject.walk(schedule, steps, subject.whole(schedule))
    belief, z = believes(mixture()), _rows(walk, 1)
    plain = walk.run(belief, z)
    ends = [walk.run(belief, z, bump=(k, 0.1)).trace.end for k in range(len(plain.calls))]
    return tuple(k for k, end in enumerate(ends) if torch.equal(end, plain.trace.end))


# -- steps that join -----------------------------------------------------------------------------------------------


def defect(run: Run, walk: Walk, eps: Tensor) -> float:
    """How far the states at the calls and at the end are from the levels that they stand for, in units of sigma.

    With one point as data the flow keeps x and eps: a state at a level is alpha x + sigma eps, whatever the solver.
    """
    gaps = [(z - a * POINT - s * eps).abs().max() / s for z, _, (a, s) in run.calls]
    end, (a, s) = run.trace.stops[-1]
    return max(*map(float, gaps), float((end - a * POINT - s * eps).abs().max()) / (s or 1.0))


def joins(subject: Subject, schedule: Schedule | None, counts: tuple[int, int]) -> tuple[float, float]:
    """The defect at two numbers of steps: rounding for exponential methods, else falling."""
    found = []
    for steps in counts if subject.fixed is None else (subject.fixed,) * 2:
        ends = interior(schedule) if subject.local else subject.whole(schedule)
        walk = attempt(lambda ends=ends, steps=steps: subject.walk(schedule, steps, ends))  # type: ignore[misc]
        if walk is not None:
            eps = torch.tensor([[1.3, -0.4]], dtype=F64)
            found.append(defect(walk.run(constant(POINT), walk.start[0] * POINT + walk.start[1] * eps), walk, eps))
    return (found[0], found[-1]) if found else (math.nan, math.nan)


def first_time(subject: Subject, schedule: Schedule | None) -> tuple[float, float]:
    """(where the first call stands, where it should)."""
    walk = subject.walk(schedule, subject.fixed or 4, subject.whole(schedule))
    return walk.run(constant(POINT), _rows(walk)).calls[0].t, walk.t_start


# -- bounded runs, repeated runs -----------------------------------------------------------------------------------


def bounded(subject: Subject, schedule: Schedule | None, steps: int, rows: int = 64) -> bool:
    """Whether the states of a run on the stiff Gaussian stay within BOUND standard deviations, root mean square."""
    walk = attempt(lambda: subject.walk(schedule, steps, subject.whole(schedule)))
    if walk is None:
        return False
    run = walk.run(believes(stiff()), start_states(stiff(), walk.start, rows))
    states = [(call.z, call.level) for call in run.calls] + run.trace.stops
    variance = stiff().covs[0].diagonal()
    sizes = [(z.square().mean(0) / (alpha**2 * variance + sigma**2)).max().sqrt() for z, (alpha, sigma) in states]
    return float(torch.stack(sizes).max()) <= BOUND  # also False for NaN


def bounded_from(subject: Subject, schedule: Schedule | None) -> int | None:
    """The smallest number of steps from which on every run tried stays bounded; None where even the finest does not."""
    tried = STABILITY_STEPS if subject.fixed is None else (subject.fixed,)
    smallest = None
    for steps in reversed(tried):
        if not bounded(subject, schedule, steps):
            break
        smallest = steps
    return smallest


class Repeats(NamedTuple):
    """same: the same seed gives the same samples; random: another seed gives others."""

    same: bool
    random: bool


def repeats(subject: Subject, schedule: Schedule | None) -> Repeats:
    walk = subject.walk(schedule, subject.fixed or 6, subject.whole(schedule))
    z = start_states(mixture(), walk.start, ROWS)
    first, again, other = (walk.run(believes(mixture()), z.clone(), seed).trace.end for seed in (1, 1, 2))
    first, again, other = (end.nan_to_num(nan=math.pi) for end in (first, again, other))  # NaN repeats as well
    return Repeats(torch.equal(first, again), not torch.equal(first, other))
