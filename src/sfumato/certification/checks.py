"""The checks of every solver: order, calls, contiguous steps, bounded runs, the same samples for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.certification.bench import (
    INTERVAL,
    Setup,
    believes,
    constant,
    exact_end,
    mixture,
    rms,
    size,
    start_states,
    stiff,
)
from sfumato.certification.subjects import Subject

F64 = torch.float64
SHORT_STEPS = 5  # one more than the longest start of a method of order 4
STABILITY_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100)
BOUND = 10.0  # on the state's size in units of its exact standard deviation, in each direction
CALL_STEPS = (3, 4, 5, 6, 8, 10, 20)
POINT = 0.8  # the single data point in the test for contiguous steps


# -- order ---------------------------------------------------------------------------------------------------------

SETTLED = 0.05  # if adding the newest error changes the fit by less, the range is asymptotic
STRAIGHT = 0.05  # local slopes that differ by less form a line
_POINTS = 4


class Slope(NamedTuple):
    """order: the fitted slope, None if fewer than three errors are above rounding; errors: (steps, error).

    settled: whether the fit had stopped changing, which marks the asymptotic range.
    """

    order: float | None
    errors: tuple[tuple[int, float], ...]
    settled: bool


def fit_order(errors: list[tuple[int, float]]) -> float | None:
    """The slope of log e over log n if it is a line, else p of log e = c - p log n + d / n, by least squares.

    Fitted to the last errors, at least three. d / n is the next term of any smooth error: without it the slope at a few
    dozen steps is off by some tenths.
    """
    last = errors[-_POINTS:]
    if len(last) < 3:
        return None
    before, after = (-math.log(f / e) / math.log(m / n) for (n, e), (m, f) in zip(last[-3:], last[-2:], strict=False))
    if abs(before - after) < STRAIGHT:
        return (before + after) / 2
    n, e = torch.tensor(last, dtype=F64).unbind(-1)
    terms = torch.stack((torch.ones_like(n), -n.log(), n[0] / n), -1)
    return float(torch.linalg.lstsq(terms, e.log()[:, None]).solution[1, 0])


def slope_of(error: Callable[[int], float | None], counts: Iterable[int], floor: float) -> Slope:
    """Measure at increasing numbers of steps until the fit settles, the error reaches rounding, or counts end.

    error(n) is None if n steps are impossible.
    """
    seen: list[tuple[int, float]] = []
    order: float | None = None
    settled = False
    for n in counts:
        value = error(n)
        if value is None or not math.isfinite(value):
            continue
        seen.append((n, value))
        if value <= floor:
            break
        before, order = order, fit_order(seen)
        settled = before is not None and order is not None and abs(order - before) < SETTLED
        if settled:
            break
    return Slope(order, tuple(seen), settled)


def distance(setup: Setup, limit: float = math.inf) -> float:
    """Root mean square distance to the exact flow of the mixture, in units of hypot(alpha, sigma).

    Measured at the end, or at the start of the last step with a logsnr of at most `limit`.
    """
    run = setup.run(believes(mixture()), start_states(mixture(), setup.start))
    state, level = run.before(limit)
    return rms(state - exact_end(setup.start, level)) / size(level)


def order(subject: Subject, schedule: Any, counts: tuple[int, ...]) -> Slope:
    """The slope of the error between two levels."""

    def error(steps: int) -> float | None:
        setup = subject.attempt(schedule, steps, INTERVAL)
        return None if setup is None else distance(setup, INTERVAL[1])

    return slope_of(error, counts, subject.floor)


def start_order(subject: Subject, schedule: Any) -> float | None:
    """q, if the error of the first steps together scales as h^(q + 1): a method of order p needs q >= p - 1.

    The first few steps run alone over ever shorter intervals, which isolates the lowest power of h. In whole runs a
    poor start would show only after hundreds of steps.
    """

    def error(parts: int) -> float | None:
        setup = subject.attempt(schedule, SHORT_STEPS, (-2.0, -2.0 + 3.0 / parts))
        return None if setup is None else distance(setup)

    found = slope_of(error, (4, 8, 16, 32), 1e-13).order
    return None if found is None else found - 1


def reference(subject: Subject, schedule: Any) -> float:
    """The distance to the exact flow of DDIM on the levels that a run calls."""
    setup = subject.setup(schedule, subject.fixed or 4)
    belief, z = believes(mixture()), start_states(mixture(), setup.start)
    levels = [level for _, level in setup.run(belief, z).states]
    for at, (alpha, sigma) in zip(levels, levels[1:], strict=False):
        x, eps = belief(z, at)
        z = alpha * x + sigma * eps
    return rms(z - exact_end(setup.start, setup.stop)) / size(setup.stop)


# -- calls ---------------------------------------------------------------------------------------------------------


def count_calls(subject: Subject, schedule: Any) -> tuple[tuple[int, int], ...]:
    """(steps, calls) of whole runs, counted at the model."""
    counted = []
    for steps in CALL_STEPS if subject.fixed is None else (subject.fixed,):
        setup = subject.attempt(schedule, steps)
        if setup is not None:
            counted.append((steps, len(setup.run(constant(POINT), _states(setup)).calls)))
    return tuple(counted)


def calls_law(counted: tuple[tuple[int, int], ...]) -> str:
    """The calls in K steps as "K", "2 K - 1" or "K + 9 (K > 3)"; if no formula fits, the counts themselves."""
    if len(counted) > 2:
        (m, a), (n, b) = counted[-2:]
        slope = (b - a) // (n - m)
        extra = b - slope * n
        others = max((steps for steps, count in counted if count != slope * steps + extra), default=0)
        if sum(steps > others for steps, _ in counted) > 2:
            head = "K" if slope == 1 else f"{slope} K"
            law = head if not extra else f"{head} {'+' if extra > 0 else '-'} {abs(extra)}"
            return law if not others else f"{law} (K > {others})"
    return ", ".join(f"{calls} in {steps}" for steps, calls in counted)


def _states(setup: Setup, rows: int = 2) -> Tensor:
    """Noisy states of the one-point data at the start."""
    eps = torch.randn(rows, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    return setup.start[0] * POINT + setup.start[1] * eps


def unused_calls(subject: Subject, schedule: Any) -> tuple[int, ...]:
    """The calls of a short run whose results do not affect the end."""
    setup = subject.setup(schedule, subject.fixed or 5)
    belief, z = believes(mixture()), _states(setup, 1)
    plain = setup.run(belief, z)
    ends = [setup.run(belief, z, bump=(k, 0.1)).end for k in range(len(plain.calls))]
    return tuple(k for k, end in enumerate(ends) if torch.equal(end, plain.end))


# -- steps that join -----------------------------------------------------------------------------------------------


def defect(setup: Setup) -> float:
    """How far the states at the calls and at the end are from their nominal levels, in units of sigma.

    With a single data point the flow keeps x and eps fixed: a state at a level is alpha x + sigma eps for any solver.
    """
    eps = torch.tensor([[1.3, -0.4]], dtype=F64)
    run = setup.run(constant(POINT), setup.start[0] * POINT + setup.start[1] * eps)
    return max(float((z - a * POINT - s * eps).abs().max()) / (s or 1.0) for z, (a, s) in run.states)


def joins(subject: Subject, schedule: Any, measure: Callable[[Setup], float]) -> tuple[float, float]:
    """The defect at two numbers of steps: rounding for exponential methods, decreasing for others."""
    counts = (40, 160) if subject.fixed is None else (subject.fixed,)
    setups = (subject.attempt(schedule, steps, INTERVAL) for steps in counts)
    found = [measure(setup) for setup in setups if setup is not None]
    return (found[0], found[-1]) if found else (math.nan, math.nan)


def first_time(subject: Subject, schedule: Any) -> tuple[float, float]:
    """(time of the first call, time that it should have)."""
    setup = subject.setup(schedule, subject.fixed or 4)
    return setup.run(constant(POINT), _states(setup)).calls[0].t, setup.t_start


# -- bounded runs, repeated runs -----------------------------------------------------------------------------------


def bounded(subject: Subject, schedule: Any, steps: int) -> bool:
    """Whether the states of a run on the stiff Gaussian stay within BOUND standard deviations, root mean square."""
    setup = subject.attempt(schedule, steps)
    if setup is None:
        return False
    run, variance = setup.run(believes(stiff()), start_states(stiff(), setup.start, 64)), stiff().covs[0].diagonal()
    sizes = [(z.square().mean(0) / (alpha**2 * variance + sigma**2)).max().sqrt() for z, (alpha, sigma) in run.states]
    return float(torch.stack(sizes).max()) <= BOUND  # also False for NaN


def bounded_from(subject: Subject, schedule: Any) -> int | None:
    """The smallest number of steps from which all tested runs stay bounded; None if not even the finest does."""
    smallest = None
    for steps in reversed(STABILITY_STEPS if subject.fixed is None else (subject.fixed,)):
        if not bounded(subject, schedule, steps):
            break
        smallest = steps
    return smallest


def repeats(subject: Subject, schedule: Any) -> tuple[bool, bool]:
    """(whether the same seed gives the same samples, whether another seed gives different ones)."""
    setup = subject.setup(schedule, subject.fixed or 6)
    z = start_states(mixture(), setup.start)
    ends = [setup.run(believes(mixture()), z.clone(), seed).end for seed in (1, 1, 2)]
    first, again, other = (end.nan_to_num(nan=math.pi) for end in ends)  # NaN counts as repeating
    return torch.equal(first, again), not torch.equal(first, other)
