"""The eta family: DDIM (eta 0) and DDPM's ancestral sampling (eta 1), and plain Euler in t.

    z_s = alpha_s x + sqrt(sigma_s^2 - std^2) eps + std xi
"""

from __future__ import annotations

import dataclasses

import torch

from sfumato.process.gaussian import ancestral
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Form, Solver, ddim
from sfumato.solvers.plan import Plan


@dataclasses.dataclass(frozen=True)
class DDIM(Solver):
    """Order 1; eta scales the posterior's standard deviation (2010.02502, Eq. 12 and 16)."""

    eta: float = 0.0
    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def build(self, b: Builder) -> Plan:
        for i in range(len(b.nodes) - 1):
            k = b.call(b.nodes[i])
            ends = torch.tensor([*b.path[k], *b.node(i + 1)], dtype=torch.float64)
            step = ancestral(*ends, eta=self.eta)
            b.advance({("z", k): float(step.z), ("x", k): float(step.x)}, float(step.std))
        return b.plan("DDPM" if self.eta == 1 else f"DDIM(eta={self.eta:g})" if self.eta else "DDIM", 1)


def DDPM(grid: grids.Grid | None = None) -> DDIM:
    """Ancestral sampling with the posterior's variance (2006.11239, Eq. 7): DDIM with eta = 1."""
    return DDIM(eta=1.0, grid=grid or grids.Uniform())


@dataclasses.dataclass(frozen=True)
class Euler(Solver):
    """z_s = z_t + (s - t) dz/dt of the probability-flow ODE in the schedule's own time t. Order 1.

    A last step to the clean signal of a schedule with sigma(0) > 0 goes straight along the belief (DDIM).
    """

    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def build(self, b: Builder) -> Plan:
        for i in range(len(b.nodes) - 1):
            t, s = b.nodes[i : i + 2]
            k = b.call(t)
            clean_jump = s == 0 and b.point(0.0)[1] > 0
            b.advance(ddim(b.path[k], b.node(i + 1), k) if clean_jump else self._step(b, k, s - t))
        return b.plan("Euler", 1)

    def _step(self, b: Builder, k: int, h: float) -> Form:
        (alpha, sigma), rates = b.path[k], b.schedule.rates(b.times[k])
        da, ds = (float(r) for r in rates)
        return {("z", k): 1 + h * ds / sigma, ("x", k): h * (da - alpha * ds / sigma)}
