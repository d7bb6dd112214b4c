"""DDPM's ancestral sampling: one mean, and three variances of the step z_t -> z_s.

    mean        a sigma_s^2 / sigma_t^2 z_t + alpha_s c^2 / sigma_t^2 x
    with        a = alpha_t / alpha_s,   c^2 = sigma_t^2 - a^2 sigma_s^2
    posterior   c^2 sigma_s^2 / sigma_t^2        "beta tilde": exact where the data is one point
    beta        c^2 S_s^2 / S_t^2                "beta": exact where the data is N(0, I);  S^2 = alpha^2 + sigma^2
    optimal     posterior + (alpha_s c^2 / sigma_t^2)^2 Var[x|z]      exact to second order for any data

Where S = 1 (variance-preserving) c^2 is DDPM's beta; with S the sampler is the same one under every schedule.
Sources: Ho et al. 2020 (2006.11239), Sec. 3.2; Bao et al. 2022 (2201.06503, 2206.07309).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.schedule import Schedule
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Solver
from sfumato.solvers.clocks import Point
from sfumato.solvers.ddim import bridge
from sfumato.solvers.plan import Noise, Plan, State
from sfumato.solvers.walk import WalkSolver

VARIANCES = ("posterior", "beta")


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
                "OptimalDDPM takes the model's."
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
class OptimalWalk:
    """The walk of `OptimalDDPM`: `table` is DDPM's, whose noise the model's variance adds to."""

    table: Plan

    @property
    def name(self) -> str:
        return "OptimalDDPM"

    @property
    def steps(self) -> int:
        return self.table.steps

    @property
    def calls(self) -> int:
        return self.table.calls

    @property
    def times(self) -> tuple[float, ...]:
        return self.table.times

    @property
    def path(self) -> tuple[Point, ...]:
        return self.table.path

    @property
    def stop(self) -> float:
        return self.table.stop

    def walk(self, model: Model, z: Tensor, noise: Noise | None = None, **cond: Any) -> Iterator[State]:
        """Walk from z at times[0] to the end; yields a State before each step and one at the end."""
        self.table.check(model)
        if noise is None:
            raise SfumatoError("The solver OptimalDDPM draws noise: pass a source of it.")
        for k, line in enumerate(self.table.lines):
            belief = model(z, self.times[k], **cond)
            yield State(z, self.times[k], belief)
            if belief.variance is None:
                raise SfumatoError("OptimalDDPM needs a model that knows Var[x|z], and this one does not: use DDPM.")
            gain = line.x.get(k, 0.0)
            std = (belief.variance * gain**2 + line.noise**2).sqrt()
            z = line.z.get(k, 0.0) * z + gain * belief.x + std * noise(k, z)
        yield State(z, self.stop, None)
