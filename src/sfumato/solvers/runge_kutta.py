"""Explicit Runge-Kutta methods on a clock: z_s = S_s (z_t / S_t + h sum_i b_i y_i), h = c_s - c_t."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple

from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Solver, ddim
from sfumato.solvers.clocks import Clock, clock
from sfumato.solvers.plan import Plan


class Tableau(NamedTuple):
    """The rows of weights of the stages, and the weights of the step (Butcher 1963)."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


def explicit_step(b: Builder, rule: Clock, first: int, i: int, tableau: Tableau) -> None:
    """The step from node i, called already as `first`, to node i + 1."""
    end = b.node(i + 1)
    c_t = rule.time(*b.path[first])
    h = rule.time(*end) - c_t
    values = [b.value(rule, first)]
    for row in tableau.a[1:]:
        share = sum(row)
        t = b.nodes[i + 1] if share == 1 else float(b.schedule.time(rule.logsnr(c_t + share * h)))
        b.advance(b.move(rule, first, b.point(t), [(h * w, y) for w, y in zip(row, values, strict=False)]))
        values.append(b.value(rule, b.call(t)))
    b.advance(b.move(rule, first, end, [(h * w, y) for w, y in zip(tableau.b, values, strict=True)]))


class RungeKutta(Solver):
    """A tableau (a, b, c). A step whose stages touch the clean signal, where no row is defined, is a DDIM step,
    as is one from or to a point where the clock is infinite.
    """

    row: str
    order: ClassVar[int]
    a: ClassVar[tuple[tuple[float, ...], ...]]
    b: ClassVar[tuple[float, ...]]

    def build(self, b: Builder) -> Plan:
        rule = clock(self.row)
        for i in range(len(b.nodes) - 1):
            first = b.call(b.nodes[i])
            end = b.node(i + 1)
            touches = end[1] == 0 and max(sum(row) for row in self.a) >= 1
            if touches or not all(math.isfinite(rule.time(*point)) for point in (b.path[first], end)):
                b.advance(ddim(b.path[first], end, first))
            else:
                explicit_step(b, rule, first, i, Tableau(self.a, self.b))
        return b.plan(type(self).__name__, self.order)


@dataclasses.dataclass(frozen=True)
class Heun(RungeKutta):
    """Order 2, two calls a step and one in the last: 2 steps - 1 calls (2206.00364, Algorithm 1 with row='eps')."""

    row: str = "flow"
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)
    order: ClassVar[int] = 2
    a: ClassVar[tuple[tuple[float, ...], ...]] = ((), (1.0,))
    b: ClassVar[tuple[float, ...]] = (0.5, 0.5)
