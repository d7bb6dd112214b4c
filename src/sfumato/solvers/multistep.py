"""Multistep methods by (row, clock, order): the integral of the polynomial through past values of the row.

z_s = S_s (z_t / S_t + sum_i w_i y_i),   w_i = int_{c_t}^{c_s} l_i(c) dc,   l_i the Lagrange basis on the past nodes
"""

from __future__ import annotations

import dataclasses
import math

from sfumato.errors import SfumatoError
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Solver, ddim
from sfumato.solvers.clocks import clock
from sfumato.solvers.plan import Plan
from sfumato.solvers.runge_kutta import Tableau, explicit_step

# Stages strictly inside the step: the midpoint rule, and Heun's method of order 3.
STARTS = {
    2: Tableau(((), (1 / 2,)), (0.0, 1.0)),
    3: Tableau(((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
}


def lagrange_integrals(nodes: list[float], start: float, stop: float) -> list[float]:
    """int_start^stop of each Lagrange basis polynomial on the nodes."""
    # Relative to the step, so that the monomials stay of order one.
    h = stop - start
    u = [(c - start) / h for c in nodes]
    weights = []
    for i, node in enumerate(u):
        basis = [1.0]  # coefficients, the constant first
        for other in u[:i] + u[i + 1 :]:
            moved = zip([0.0, *basis], [*basis, 0.0], strict=True)
            basis = [(up - other * here) / (node - other) for up, here in moved]
        weights.append(h * sum(c / (p + 1) for p, c in enumerate(basis)))
    return weights


@dataclasses.dataclass(frozen=True)
class Multistep(Solver):
    """Adams-Bashforth in the row 'flow', 'F', 'x' or 'eps'; one call a step after the start.

    The first steps of orders 3 and 4 are Runge-Kutta steps of one order less, which costs 1 and 4 calls more: a start
    by lower orders would leave its own error, and order 3 would be order 2.
    row='x' integrates as DPM-Solver++ does (2211.01095), row='eps' as DPM-Solver and LMS do (2206.00927). The row x is
    not defined at the clean signal: its last step is then of order 1.
    """

    order: int = 2
    row: str = "flow"
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise SfumatoError(f"Multistep has orders 1 to 4, got {self.order}.")

    def build(self, b: Builder) -> Plan:
        rule = clock(self.row)
        past: list[int] = []
        for i in range(len(b.nodes) - 1):
            past = [b.call(b.nodes[i]), *past][: self.order]
            k, end = past[0], b.node(i + 1)
            clock_times = [rule.time(*b.path[j]) for j in past]
            usable = [j for j, c in zip(past, clock_times, strict=True) if math.isfinite(c)]
            if k not in usable or not math.isfinite(rule.time(*end)):
                b.advance(ddim(b.path[k], end, k))  # order 1 in every row, finite at every end
                continue
            if len(usable) < self.order - 1:
                explicit_step(b, rule, k, i, STARTS[self.order - 1])
                continue
            weights = lagrange_integrals([rule.time(*b.path[j]) for j in usable], clock_times[0], rule.time(*end))
            b.advance(b.move(rule, k, end, [(w, b.value(rule, j)) for w, j in zip(weights, usable, strict=True)]))
        return b.plan(f"Multistep(order={self.order}, row={self.row})", self.order)
