"""The eta family: DDIM (eta 0) and DDPM's ancestral sampling (eta 1), and plain Euler in t.

z_s = alpha_s x + sqrt(sigma_s^2 - std^2) eps + std xi
"""

from __future__ import annotations

import dataclasses
import math

from sfumato.errors import SfumatoError
from sfumato.process.gaussian import ancestral
from sfumato.schedule import as_time
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Form, Solver, ddim
from sfumato.solvers.plan import Plan


@dataclasses.dataclass(frozen=True)
class DDIM(Solver):
    """Order 1; eta scales the posterior's standard deviation (2010.02502, Eq. 12 and 16)."""

    eta: float = 0.0
    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise SfumatoError(f"DDIM needs eta >= 0, got {self.eta:g}.")

    def build(self, b: Builder) -> Plan:
        for i in range(len(b.nodes) - 1):
            k = b.call(b.nodes[i])
            (alpha_t, sigma_t), (alpha_s, sigma_s) = (map(as_time, point) for point in (b.path[k], b.node(i + 1)))
            step = ancestral(alpha_t, sigma_t, alpha_s, sigma_s, eta=self.eta)
            b.advance({("z", k): float(step.z), ("x", k): float(step.x)}, float(step.std))
        return b.plan("DDPM" if self.eta == 1 else f"DDIM(eta={self.eta:g})" if self.eta else "DDIM", 1)


def DDPM(grid: grids.Grid | None = None) -> DDIM:
    """Ancestral sampling with the posterior's variance (2006.11239, Eq. 7): DDIM with eta = 1."""
    return DDIM(eta=1.0, grid=grid or grids.Uniform())


@dataclasses.dataclass(frozen=True)
class Euler(Solver):
    """z_s = z_t + (s - t) dz/dt of the probability-flow ODE in the schedule's own time t. Order 1.

    A last step to the clean signal of a schedule with sigma(0) > 0 goes straight along the belief (DDIM), as does a
    step from a time where dz/dt is infinite (t = 1 of Sigmoid).
    """

    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def build(self, b: Builder) -> Plan:
        for i in range(len(b.nodes) - 1):
            t, s = b.nodes[i : i + 2]
            k = b.call(t)
            straight = s == 0 and b.point(0.0)[1] > 0 or not all(math.isfinite(r) for r in b.schedule.rates(t))
            b.advance(ddim(b.path[k], b.node(i + 1), k) if straight else self._step(b, k, s - t))
        return b.plan("Euler", 1)

    def _step(self, b: Builder, k: int, h: float) -> Form:
        (alpha, sigma), rates = b.path[k], b.schedule.rates(b.times[k])
        da, ds = (float(r) for r in rates)
        return {("z", k): 1 + h * ds / sigma, ("x", k): h * (da - alpha * ds / sigma)}
