"""What a stochastic solver owes: the right mean, variance and marginal law.

On a Gaussian every estimate is affine in its state, so that the end of a run is an affine map of the start and of each
draw of noise; unit vectors sent through the run itself give the map, and with it mean and variance without chance.
A solver that draws its own noise is measured on many samples instead, with standard errors.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato import noise
from sfumato.certification.ode import POINT, attempt, interior
from sfumato.certification.slopes import Slope, refine
from sfumato.certification.subjects import Subject
from sfumato.certification.walks import (
    Belief,
    Level,
    Run,
    Silence,
    Units,
    Walk,
    believes,
    constant,
    gaussian,
    mixture,
    start_states,
)
from sfumato.schedule import Schedule

F64 = torch.float64
MANY = 20_000
MOST_DRAWS = 600  # of an affine map: its columns are kept at every call
_AFFINE = 1e-7


class Bias(NamedTuple):
    """Errors of the mean in standard deviations and of the variance as a fraction; stderr of each, 0 where exact."""

    mean: float
    variance: float
    stderr: tuple[float, float] = (0.0, 0.0)

    @property
    def total(self) -> float:
        return math.hypot(self.mean, self.variance)


def _columns(walk: Walk, belief: Belief, centre: float, spread: float) -> Run | None:
    """The run of unit vectors from N(centre, spread^2), or None where it is not affine or hides its noise."""
    if not walk.open:
        return None
    draws = _draws(walk)
    z = torch.full((draws + 3, 1), centre, dtype=F64)
    z[1] += spread
    z[-1] += 0.5 * spread
    run = walk.run(belief, z, Units(0))
    end = run.trace.end[:, 0] - run.trace.end[0, 0]
    drawn = torch.cos(1 + torch.arange(draws, dtype=F64))
    predicted = 0.5 * end[1] + drawn @ end[2:-1]
    return run if bool((predicted - end[-1]).abs() <= _AFFINE * (1 + end.abs().max())) else None


def _draws(walk: Walk) -> int:
    probe = Silence(0)
    walk.run(constant(0.0), torch.zeros(1, 1, dtype=F64), probe)
    return probe.draws


def _moments(z: Tensor) -> tuple[float, float]:
    """Mean and variance out of the columns of an affine map."""
    return float(z[0, 0]), float((z[1:-1, 0] - z[0, 0]).square().sum())


def bias(walk: Walk) -> Bias:
    """At the end of a run on N(0.7, 0.3), started from its exact law."""
    law = gaussian()
    m, v = float(law.means[0, 0]), float(law.covs[0, 0, 0])
    (alpha, sigma), (end_alpha, end_sigma) = walk.start, walk.stop
    mean, variance = end_alpha * m, end_alpha**2 * v + end_sigma**2
    run = _columns(walk, believes(law), alpha * m, math.sqrt(alpha**2 * v + sigma**2))
    if run is not None:
        found, spread = _moments(run.trace.end)
        return Bias((found - mean) / math.sqrt(variance), spread / variance - 1)
    end = walk.run(believes(law), start_states(law, walk.start, MANY)).trace.end
    errors = (1 / math.sqrt(MANY), math.sqrt(2 / MANY))
    return Bias((float(end.mean()) - mean) / math.sqrt(variance), float(end.var()) / variance - 1, errors)


def weak_order(subject: Subject, schedule: Schedule | None, counts: tuple[int, ...]) -> Slope | None:
    """The slope of the bias between two levels; None where it can only be measured with chance."""
    first = attempt(lambda: subject.walk(schedule, 4, interior(schedule)))
    if first is None or bias(first).stderr[1] > 0:
        return None

    per_step = max(1, _draws(first) // 4)

    def error(steps: int) -> float | None:
        if steps * per_step > MOST_DRAWS:
            return None
        walk = attempt(lambda: subject.walk(schedule, steps, interior(schedule)))
        return None if walk is None else bias(walk).total

    return refine(error, counts, subject.floor)


def joins(subject: Subject, schedule: Schedule | None, counts: tuple[int, int]) -> tuple[float, float]:
    """As `ode.joins` for the law of the states: with one point as data, N(alpha x, sigma^2) at every call."""
    found = []
    for steps in counts if subject.fixed is None else (subject.fixed,) * 2:
        ends = interior(schedule) if subject.local else subject.whole(schedule)
        walk = attempt(lambda ends=ends, steps=steps: subject.walk(schedule, steps, ends))  # type: ignore[misc]
        if walk is not None:
            found.append(_defect(walk))
    return (found[0], found[-1]) if found else (math.nan, math.nan)


def _defect(walk: Walk) -> float:
    alpha, sigma = walk.start
    run = _columns(walk, constant(POINT), alpha * POINT, sigma)
    if run is None:
        n = noise.normal(0, torch.arange(MANY // 4), (1,), noise.PRIOR, dtype=F64)
        z = alpha * POINT + sigma * n
        run = walk.run(constant(POINT), z)
        moments = [(float(z.mean()), float(z.var())) for z in _states(run)]
    else:
        moments = [_moments(z) for z in _states(run)]
    gaps = []
    for (mean, variance), (a, s) in zip(moments, _levels(run), strict=True):
        gaps.append(max(abs(mean - a * POINT) / (s or 1.0), abs(variance - s**2) / (s**2 or 1.0)))
    return max(gaps)


def _states(run: Run) -> list[Tensor]:
    return [*(call.z for call in run.calls), run.trace.end]


def _levels(run: Run) -> list[Level]:
    return [*(call.level for call in run.calls), run.trace.stops[-1][1]]


# -- the marginal law ----------------------------------------------------------------------------------------------


class Marginal(NamedTuple):
    """Sliced Wasserstein distance of the samples to exact ones, and the largest between sets of exact ones."""

    distance: float
    floor: float
    steps: int
    samples: int


def sliced(a: Tensor, b: Tensor, directions: int = 32) -> float:
    """W_2 between projections of two sets of as many points in the plane, root mean square over directions."""
    angle = torch.linspace(0, math.pi, directions + 1, dtype=F64)[:-1]
    axes = torch.stack((angle.cos(), angle.sin()))
    return float(((a @ axes).sort(0).values - (b @ axes).sort(0).values).square().mean().sqrt())


@lru_cache(maxsize=16)
def _fresh(level: Level, n: int) -> tuple[Tensor, float]:
    """n exact samples, and the largest of four distances to as many others."""
    draws = [mixture().sample(n, seed=100 + s, alpha=level[0], sigma=level[1]) for s in range(5)]
    return draws[0], max(sliced(draws[0], other) for other in draws[1:])


def marginal(walk: Walk, steps: int, n: int) -> Marginal:
    """n samples of the mixture, each from its own noise."""
    z = mixture().sample(n, seed=7, alpha=walk.start[0], sigma=walk.start[1])
    end = walk.run(believes(mixture()), z, 8).trace.end
    exact, floor = _fresh(walk.stop, n)
    return Marginal(sliced(exact, end), floor, steps, n)
