"""DDPM's ancestral sampling: one mean, and four variances of the step z_t -> z_s.

    mean        a sigma_s^2 / sigma_t^2 z_t + alpha_s c^2 / sigma_t^2 x
    with        a = alpha_t / alpha_s,   c^2 = sigma_t^2 - a^2 sigma_s^2
    posterior   c^2 sigma_s^2 / sigma_t^2        "beta tilde": exact where the data is one point
    beta        c^2 S_s^2 / S_t^2                "beta": exact where the data is N(0, I);  S^2 = alpha^2 + sigma^2
    learned     exp(v log beta + (1 - v) log posterior)               v from the network, element by element
    optimal     posterior + (alpha_s c^2 / sigma_t^2)^2 Var[x|z]      exact to second order for any data

Where S = 1 (variance-preserving) c^2 is DDPM's beta; with S the sampler is the same one under every schedule.
Sources: Ho et al. 2020 (2006.11239), Sec. 3.2; Nichol and Dhariwal 2021 (2102.09672), Eq. 15; Bao et al. 2022
(2201.06503, 2206.07309).
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, final

from torch import Tensor

from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.registry import register
from sfumato.schedule import Schedule
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Solver
from sfumato.solvers.clocks import Point
from sfumato.solvers.ddim import bridge
from sfumato.solvers.plan import Line, Noise, Plan, State
from sfumato.solvers.walk import WalkSolver

VARIANCES = ("posterior", "beta")


@register("solver", "ddpm")
@register("solver", "ddpm-beta", variance="beta")
@dataclasses.dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling with a fixed variance, 'posterior' or 'beta' (2006.11239, Eq. 7 and Sec. 3.2). Weak order 1.

    The last step, to the clean signal, draws no noise (Algorithm 2). variance='posterior' is DDIM with eta = 1.
    """

    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)
    variance: str = "posterior"

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise SfumatoError(
                f"DDPM knows the variances {' and '.join(VARIANCES)}, not {self.variance!r}: "
                "LearnedDDPM and OptimalDDPM take the model's."
            )

    def build(self, b: Builder) -> Plan:
        for i in range(len(b.nodes) - 1):
            k = b.call(b.nodes[i])
            t, s = b.path[k], b.node(i + 1)
            mean, std = bridge(t, s, k, eta=1.0)
            b.advance(mean, std if self.variance == "posterior" else _beta(t, s))
        return b.plan("DDPM" if self.variance == "posterior" else "DDPM(beta)", 1)


def _beta(t: Point, s: Point) -> float:
    """c S_s / S_t, and 0 at the clean signal."""
    if s[1] == 0:
        return 0.0
    a = t[0] / s[0]
    return math.sqrt(max(t[1] ** 2 - (a * s[1]) ** 2, 0.0)) * math.hypot(*s) / math.hypot(*t)


@register("solver", "ddpm-learned")
@dataclasses.dataclass(frozen=True)
class LearnedDDPM(WalkSolver):
    """Ancestral sampling with the variance that the network has learned (`Denoiser(variance="learned")`).

    Sigma = exp(v log beta + (1 - v) log beta_tilde), v = `belief.variance_share`, element by element. With few steps
    both limits stretch with the step, so that the learned v still serves (2102.09672, Sec. 4). The last step, to the
    clean signal, draws no noise. Not a table, as the noise depends on the state.
    """

    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def plan(self, schedule: Schedule, steps: int = 20, t_start: float = 1.0, t_stop: float = 0.0) -> LearnedWalk:
        return LearnedWalk(DDPM(self.grid).plan(schedule, steps, t_start, t_stop))


@dataclasses.dataclass(frozen=True)
class OptimalDDPM(WalkSolver):
    """Ancestral sampling with the variance of a model that knows Var[x|z] (`belief.variance`), element by element.

    std^2 = posterior + (coefficient of x)^2 Var[x|z] is the variance of z_s given z_t, so that Gaussian data of
    independent elements come out exactly in any number of steps, one included. The last step draws too: its variance
    is Var[x|z]. Not a table, as the noise depends on the state. Source: 2201.06503, Theorem 1; 2206.07309, per element.
    """

    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def plan(self, schedule: Schedule, steps: int = 20, t_start: float = 1.0, t_stop: float = 0.0) -> OptimalWalk:
        return OptimalWalk(DDPM(self.grid).plan(schedule, steps, t_start, t_stop))


@dataclasses.dataclass(frozen=True)
class AncestralWalk(abc.ABC):
    """Ancestral sampling whose noise the belief decides: `table` is DDPM's with the posterior's variance."""

    table: Plan

    @property
    @abc.abstractmethod
    def name(self) -> str: ...

    @abc.abstractmethod
    def std(self, belief: Estimate, k: int, line: Line) -> Tensor | float:
        """The standard deviation of the noise of step k, a number or like z."""

    @property
    @final
    def steps(self) -> int:
        return self.table.steps

    @property
    @final
    def calls(self) -> int:
        return self.table.calls

    @property
    @final
    def times(self) -> tuple[float, ...]:
        return self.table.times

    @property
    @final
    def path(self) -> tuple[Point, ...]:
        return self.table.path

    @property
    @final
    def stop(self) -> float:
        return self.table.stop

    @final
    def walk(self, model: Model, z: Tensor, noise: Noise | None = None, **cond: Any) -> Iterator[State]:
        """Walk from z at times[0] to the end; yields a State before each step and one at the end."""
        self.table.check(model)
        if noise is None:
            raise SfumatoError(f"The solver {self.name} draws noise: pass a source of it.")
        for k, line in enumerate(self.table.lines):
            belief = model(z, self.times[k], **cond)
            yield State(z, self.times[k], belief)
            std = self.std(belief, k, line)
            z = line.z.get(k, 0.0) * z + line.x.get(k, 0.0) * belief.x + std * noise(k, z)
        yield State(z, self.stop, None)


@final
@dataclasses.dataclass(frozen=True)
class LearnedWalk(AncestralWalk):
    """The walk of `LearnedDDPM`."""

    @property
    def name(self) -> str:
        return "LearnedDDPM"

    def std(self, belief: Estimate, k: int, line: Line) -> Tensor | float:
        share = belief.variance_share
        if share is None:
            raise SfumatoError("LearnedDDPM needs a model that learned its variance, and this one did not: use DDPM.")
        if line.noise == 0:
            return 0.0
        low, high = math.log(line.noise), math.log(_beta(*self.table.path[k : k + 2]))
        return (low + share * (high - low)).exp()


@final
@dataclasses.dataclass(frozen=True)
class OptimalWalk(AncestralWalk):
    """The walk of `OptimalDDPM`."""

    @property
    def name(self) -> str:
        return "OptimalDDPM"

    def std(self, belief: Estimate, k: int, line: Line) -> Tensor | float:
        if belief.variance is None:
            raise SfumatoError("OptimalDDPM needs a model that knows Var[x|z], and this one does not: use DDPM.")
        return (belief.variance * line.x.get(k, 0.0) ** 2 + line.noise**2).sqrt()
