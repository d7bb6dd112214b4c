"""The test bench for solvers: exact models that record every call, and the exact flow between noise levels.

Everything is small and in float64. A level is (alpha, sigma); states z at it have typical size hypot(alpha, sigma).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.belief import Estimate
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.schedule import Schedule

Level = tuple[float, float]
Stop = tuple[Tensor, Level]  # a state and the level that it stands for
Belief = Callable[[Tensor, Level], tuple[Tensor, Tensor]]  # (z, level) -> (E[x|z], E[eps|z])

# Range of logsnr for measuring orders: covers the curvature of the mixture below, away from both ends.
INTERVAL = (-5.0, 4.0)
ROWS = 12


def logsnr(level: Level) -> float:
    alpha, sigma = level
    return math.inf if sigma == 0 else -math.inf if alpha == 0 else 2 * math.log(alpha / sigma)


def level_at(schedule: Schedule, t: float) -> Level:
    alpha, sigma = schedule(t)
    return float(alpha), float(sigma)


def size(level: Level) -> float:
    return math.hypot(*level)


def rms(z: Tensor) -> float:
    return float(z.square().mean().sqrt())


# -- exact models --------------------------------------------------------------------------------------------------


@lru_cache
def mixture() -> GaussianMixture:
    """Two broad components in the plane: smooth, so that a few dozen steps are asymptotic, and far from Gaussian."""
    covs = [[[0.2, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.15]]]
    return GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], covs)


@lru_cache
def gaussian() -> GaussianMixture:
    """N(0.7, 0.3): every estimate is affine in its state, so moments follow by linear algebra."""
    return GaussianMixture([1.0], [[0.7]], 0.3)


@lru_cache
def stiff() -> GaussianMixture:
    """Standard deviations 0.01 and 1 in two directions: a ratio of 10^4 in the drift near the data."""
    return GaussianMixture([1.0], [[0.0, 0.0]], [[1e-4, 1.0]])


def believes(law: GaussianMixture) -> Belief:
    """The optimal denoiser of a law, at any level."""

    def read(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        m = law.moments(z, alpha=level[0], sigma=level[1])
        return m.x, m.eps

    return read


def constant(value: float) -> Belief:
    """Data in a single point: E[x|z] = value, and the flow is z = alpha x + sigma eps with x and eps fixed."""

    def read(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        x = torch.full_like(z, value)
        return x, (z - level[0] * x) / level[1]

    return read


def start_states(law: GaussianMixture, level: Level, rows: int = ROWS) -> Tensor:
    """States at a level, from the same standard normal numbers for every schedule; alpha = 0 is allowed."""
    return law.sample(rows, seed=0, alpha=level[0], sigma=level[1])


@lru_cache(maxsize=512)
def exact_end(start: Level, stop: Level) -> Tensor:
    """The states at the level `stop` on the mixture's probability flow from `start_states`, up to rounding."""
    return mixture().flow_between(start_states(mixture(), start), start, stop)


# -- what a solver is run with -------------------------------------------------------------------------------------


class Call(NamedTuple):
    """One call of the model: the state, the time that the solver passed, and the level at that time."""

    z: Tensor
    t: float
    level: Level


class Oracle:
    """A model that records every call; `bump` perturbs the belief of one call, to test whether it matters."""

    def __init__(self, belief: Belief, schedule: Schedule | None, bump: tuple[int, float] | None = None) -> None:
        self.belief, self.bump, self.calls = belief, bump, list[Call]()
        self.process: Any = None if schedule is None else Gaussian(schedule)  # foreign schedulers need none

    def read(self, z: Tensor, t: float, level: Level) -> tuple[Tensor, Tensor]:
        """(x, eps) for a state at a level; one call."""
        x, eps = self.belief(z.double(), level)
        if self.bump is not None and self.bump[0] == len(self.calls):
            x = x + self.bump[1]
            eps = (z - level[0] * x) / level[1]
        self.calls.append(Call(z.detach().clone(), t, level))
        return x, eps

    def __call__(self, z: Tensor, t: Tensor | float, /, **cond: object) -> Estimate:
        schedule, at = self.process.schedule, float(t if not isinstance(t, Tensor) else t.reshape(-1)[0])
        x, eps = self.read(z, at, level_at(schedule, at))
        return Estimate(z, t, schedule, x=x, eps=eps)


class SeededNoise:
    """Standard normal numbers from a seed, drawn in sequence."""

    def __init__(self, seed: int) -> None:
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)

    def __call__(self, call: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


class UnitNoise(SeededNoise):
    """Replaces draw j by the unit vector of row 2 + j, and by cos(1 + j) in the last row.

    One batch thus yields the whole affine map of a run, and its last row tests that the map is affine.
    """

    def __init__(self) -> None:
        super().__init__(0)
        self.draws = 0

    def __call__(self, call: int, like: Tensor) -> Tensor:
        out = torch.zeros_like(like)
        if 2 + self.draws < len(out):
            out[2 + self.draws] = 1.0
        out[-1] = math.cos(1 + self.draws)
        self.draws += 1
        return out


class Recording(NamedTuple):
    """One run: the states at the start of each step and at the end, and the calls of the model."""

    stops: list[Stop]
    calls: list[Call]

    @property
    def end(self) -> Tensor:
        return self.stops[-1][0]

    @property
    def states(self) -> list[Stop]:
        """The state of each call, and the end."""
        return [*((call.z, call.level) for call in self.calls), self.stops[-1]]

    def before(self, limit: float) -> Stop:
        """The last state at the start of a step with a logsnr of at most `limit`."""
        return next(stop for stop in reversed(self.stops) if logsnr(stop[1]) <= limit + 1e-6)


@dataclasses.dataclass(frozen=True)
class Setup:
    """A solver set up for a number of steps between two levels.

    go: (model, z, noise) -> stops. draws: how often it draws from the noise source passed to it, so that unit vectors
    can be sent through it; None if it uses noise of its own.
    """

    start: Level
    stop: Level
    t_start: float
    schedule: Schedule | None
    go: Callable[[Oracle, Tensor, SeededNoise], list[Stop]]
    draws: int | None = None

    def run(
        self, belief: Belief, z: Tensor, noise: SeededNoise | int = 0, bump: tuple[int, float] | None = None
    ) -> Recording:
        """One run from z; noise: a source of noise, or a seed."""
        oracle = Oracle(belief, self.schedule, bump)
        with torch.no_grad():
            stops = self.go(oracle, z, SeededNoise(noise) if isinstance(noise, int) else noise)
        return Recording(stops, oracle.calls)
