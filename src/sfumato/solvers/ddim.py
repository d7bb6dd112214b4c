"""The eta family, DDIM (eta 0), DDPM's posterior (eta 1) and beyond; and plain Euler steps in t.

z_s = alpha_s x + sqrt(sigma_s^2 - std^2) eps + std xi
"""

from __future__ import annotations

import dataclasses
import math

from sfumato.belief import ancestral
from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.schedule import as_time
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Form, Solver, ddim
from sfumato.solvers.clocks import Point
from sfumato.solvers.plan import Plan


@register("solver", "ddim")
@dataclasses.dataclass(frozen=True)
class DDIM(Solver):
    """Order 1; eta scales the posterior's standard deviation (2010.02502, Eq. 12 and 16).

    The marginals are those of dz = [f z - (1 + eta^2)/2 g^2 score] dt + eta g dw. eta above 1 is possible while
    std <= sigma_s; `SASolver` with tau has no such limit.
    delta: z_s = alpha_s x + delta sigma_s xi instead, all of the noise drawn anew, as inverse heat dissipation does
    with 1.25 (2206.13397, Algorithm 2). A coefficient then keeps its law at delta^2 = 1 + alpha_s^2 Var(x | z_t) /
    sigma_s^2, which is little above 1 in short steps of `process.Heat`, and far above under other processes.
    """

    eta: float = 0.0
    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)
    delta: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise SfumatoError(f"DDIM needs eta >= 0, got {self.eta:g}.")
        if self.delta is not None and not (0 <= self.delta < math.inf and self.eta == 0):
            raise SfumatoError(f"DDIM takes a delta of at least 0, in the place of eta, got {self.delta!r}.")

    def build(self, b: Builder) -> Plan:
        for i in range(len(b.nodes) - 1):
            k, s = b.call(b.nodes[i]), b.node(i + 1)
            if self.delta is not None:
                b.advance({("x", k): s[0]}, self.delta * s[1])
            else:
                b.advance(*bridge(b.path[k], s, k, self.eta))
        if self.delta is not None:
            return b.plan(f"DDIM(delta={self.delta:g})", 1)
        return b.plan("DDPM" if self.eta == 1 else f"DDIM(eta={self.eta:g})" if self.eta else "DDIM", 1)


def bridge(t: Point, s: Point, k: int, eta: float) -> tuple[Form, float]:
    """The mean of z_s given z_t and the belief of call k, and its standard deviation."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ([as_time(c) for c in point] for point in (t, s))
    step = ancestral(alpha_t, sigma_t, alpha_s, sigma_s, eta)
    return {("z", k): float(step.z), ("x", k): float(step.x)}, float(step.std)


@register("solver", "euler")
@dataclasses.dataclass(frozen=True)
class Euler(Solver):
    """z_s = z_t + (s - t) dz/dt of the probability-flow ODE in the schedule's own time t. Order 1.

    The last step to the clean signal of a schedule with sigma(0) > 0 is a DDIM step, as is a step from a time where
    dz/dt is infinite (t = 1 of Sigmoid).
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
