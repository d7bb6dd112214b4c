"""PNDM: a DDIM step with the Adams-Bashforth average of past noise predictions.

z_s = alpha_s (z_t - sigma_t e) / alpha_t + sigma_s e,   e = sum_j b_j eps_{t_j}
b = (1), (3, -1)/2, (23, -16, 5)/12, (55, -59, 37, -9)/24
"""

from __future__ import annotations

import dataclasses
import math

from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.solvers import grids
from sfumato.solvers.axis import Axis
from sfumato.solvers.build import Builder, Solver, ddim
from sfumato.solvers.clocks import clock
from sfumato.solvers.plan import Plan
from sfumato.solvers.runge_kutta import CLASSICAL, HEUN, Tableau, explicit_step

ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@register("solver", "plms")
@register("solver", "pndm", start="prk")
@dataclasses.dataclass(frozen=True)
class PNDM(Solver):
    """Order 2, one call per step after the start, on nodes at equal steps of t (2202.09778, Eq. 11 to 13).

    start: 'plms' takes the first step by the pseudo Heun method (steps + 1 calls); 'prk' the first three by the pseudo
    Runge-Kutta method (steps + 9 calls). The weights assume equal steps whatever the nodes, and average the noise over
    t where the ODE needs sigma / alpha: hence order 2, not 4. DEIS (variable t) avoids both errors.
    """

    start: str = "plms"
    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def __post_init__(self) -> None:
        if self.start not in ("plms", "prk"):
            raise SfumatoError(f"PNDM starts by 'plms' or 'prk', got {self.start!r}.")

    def build(self, b: Builder) -> Plan:
        axis = Axis(b.schedule, clock("eps"), "t")
        first: tuple[Tableau, int] = (CLASSICAL, 3) if self.start == "prk" else (HEUN, 1)
        past: list[int] = []
        for i in range(len(b.nodes) - 1):
            k, point = b.call(b.nodes[i]), b.node(i + 1)
            past = [k, *past][: len(ADAMS)]
            change = axis.rule.time(*point) - axis.rule.time(*b.path[k])
            if not math.isfinite(change):
                b.advance(ddim(b.path[k], point, k))  # sigma / alpha is infinite at pure noise
            elif len(past) <= first[1] and point[1] > 0:
                explicit_step(b, axis, k, i, first[0])
            else:
                terms = [(change * w, b.value(axis.rule, j)) for w, j in zip(ADAMS[len(past) - 1], past, strict=True)]
                b.advance(b.move(axis.rule, k, point, terms))
        return b.plan("PLMS" if self.start == "plms" else "PNDM", 2)
