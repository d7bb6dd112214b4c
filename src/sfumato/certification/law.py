"""The checks of stochastic solvers: mean, variance and marginal law.

On a Gaussian every estimate is affine in its state, so the end of a run is an affine map of the start and of each draw
of noise. Sending unit vectors through the run yields this map, and with it the exact mean and variance. A solver with
noise of its own is measured on many samples instead, with standard errors.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.certification.bench import (
    INTERVAL,
    Belief,
    Level,
    Recording,
    Setup,
    UnitNoise,
    believes,
    constant,
    gaussian,
    mixture,
    start_states,
)
from sfumato.certification.checks import POINT, Slope, slope_of
from sfumato.certification.subjects import Subject

F64 = torch.float64
MANY = 20_000
MOST_DRAWS = 600  # limit for an affine map, whose columns are kept at every call
_AFFINE = 1e-7


@dataclasses.dataclass(frozen=True)
class Bias:
    """Errors of the mean, in standard deviations, and of the variance, relative; with standard errors, 0 if exact."""

    mean: float
    variance: float
    stderr: tuple[float, float] = (0.0, 0.0)

    @property
    def total(self) -> float:
        return math.hypot(self.mean, self.variance)


def _columns(setup: Setup, belief: Belief, centre: float, spread: float) -> Recording | None:
    """The run of unit vectors from N(centre, spread^2); None if it is not affine or its noise cannot be controlled."""
    if (draws := setup.draws) is None:
        return None
    z = torch.full((draws + 3, 1), centre, dtype=F64)
    z[1] += spread
    z[-1] += 0.5 * spread
    run = setup.run(belief, z, UnitNoise())
    end = run.end[:, 0] - run.end[0, 0]
    drawn = torch.cos(1 + torch.arange(draws, dtype=F64))
    predicted = 0.5 * end[1] + drawn @ end[2:-1]
    return run if bool((predicted - end[-1]).abs() <= _AFFINE * (1 + end.abs().max())) else None


def _moments(z: Tensor) -> tuple[float, float]:
    """Mean and variance from the columns of an affine map."""
    return float(z[0, 0]), float((z[1:-1, 0] - z[0, 0]).square().sum())


def bias(setup: Setup) -> Bias:
    """The bias at the end of a run on N(0.7, 0.3), started from its exact law."""
    law = gaussian()
    m, v = float(law.means[0, 0]), float(law.covs[0, 0, 0])
    (alpha, sigma), (end_alpha, end_sigma) = setup.start, setup.stop
    mean, variance = end_alpha * m, end_alpha**2 * v + end_sigma**2
    run = _columns(setup, believes(law), alpha * m, math.sqrt(alpha**2 * v + sigma**2))
    if run is not None:
        found, spread = _moments(run.end)
        return Bias((found - mean) / math.sqrt(variance), spread / variance - 1)
    end = setup.run(believes(law), start_states(law, setup.start, MANY)).end
    errors = (1 / math.sqrt(MANY), math.sqrt(2 / MANY))
    return Bias((float(end.mean()) - mean) / math.sqrt(variance), float(end.var()) / variance - 1, errors)


def weak_order(subject: Subject, schedule: Any, counts: tuple[int, ...]) -> Slope | None:
    """The slope of the bias between two levels; None if it can only be measured by sampling."""
    first = subject.attempt(schedule, 4, INTERVAL)
    if first is None or first.draws is None or bias(first).stderr[1] > 0:
        return None
    per_step = max(1, first.draws // 4)

    def error(steps: int) -> float | None:
        setup = subject.attempt(schedule, steps, INTERVAL) if steps * per_step <= MOST_DRAWS else None
        return None if setup is None else bias(setup).total

    return slope_of(error, counts, subject.floor)


def defect(setup: Setup) -> float:
    """`checks.defect` for the law of the states: with a single data point, N(alpha x, sigma^2) at every call."""
    alpha, sigma = setup.start
    run = _columns(setup, constant(POINT), alpha * POINT, sigma)
    if run is None:
        n = noise.normal(0, torch.arange(MANY // 4), (1,), noise.PRIOR, dtype=F64)
        run = setup.run(constant(POINT), alpha * POINT + sigma * n)
        moments = [(float(z.mean()), float(z.var())) for z, _ in run.states]
    else:
        moments = [_moments(z) for z, _ in run.states]
    gaps = []
    for (mean, variance), (_, (a, s)) in zip(moments, run.states, strict=True):
        gaps.append(max(abs(mean - a * POINT) / (s or 1.0), abs(variance - s**2) / (s**2 or 1.0)))
    return max(gaps)


@dataclasses.dataclass(frozen=True)
class Marginal:
    """Sliced Wasserstein distance of samples to exact ones (distance); the largest between exact sets (floor)."""

    distance: float
    floor: float
    steps: int
    samples: int


def sliced(a: Tensor, b: Tensor, directions: int = 32) -> float:
    """W_2 between projections of two equally large sets of points in the plane, root mean square over directions."""
    angle = torch.linspace(0, math.pi, directions + 1, dtype=F64)[:-1]
    axes = torch.stack((angle.cos(), angle.sin()))
    return float(((a @ axes).sort(0).values - (b @ axes).sort(0).values).square().mean().sqrt())


@lru_cache(maxsize=16)
def _fresh(level: Level, n: int) -> tuple[Tensor, float]:
    """n exact samples, and the largest of four distances to further sets of n."""
    draws = [mixture().sample(n, seed=100 + s, alpha=level[0], sigma=level[1]) for s in range(5)]
    return draws[0], max(sliced(draws[0], other) for other in draws[1:])


def marginal(setup: Setup, steps: int, n: int) -> Marginal:
    """The distance of n samples, each from its own noise, to the mixture's law."""
    z = mixture().sample(n, seed=7, alpha=setup.start[0], sigma=setup.start[1])
    end = setup.run(believes(mixture()), z, 8).end
    exact, floor = _fresh(setup.stop, n)
    return Marginal(sliced(exact, end), floor, steps, n)
