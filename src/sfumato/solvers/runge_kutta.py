"""Explicit Runge-Kutta methods on a clock: z_s = S_s (z_t / S_t + (c_s - c_t) sum_i b_i y_i)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from sfumato.registry import register
from sfumato.solvers import grids
from sfumato.solvers.axis import Axis
from sfumato.solvers.build import Builder, Form, Solver, ddim
from sfumato.solvers.clocks import clock
from sfumato.solvers.plan import Plan


class Tableau(NamedTuple):
    """A Butcher tableau (1963): the weights `a` of the stages and `b` of the step."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    @property
    def shares(self) -> list[float]:
        """The positions of the stages within the step, as fractions."""
        return [sum(row) for row in self.a]


HEUN = Tableau(((), (1.0,)), (1 / 2, 1 / 2))
MIDPOINT = Tableau(((), (1 / 2,)), (0.0, 1.0))
HEUN3 = Tableau(((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4))
CLASSICAL = Tableau(((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def fits(b: Builder, axis: Axis, i: int, shares: Iterable[float]) -> bool:
    """Whether both ends of step i are finite and all stages at these fractions lie within the schedule's levels."""
    start, stop = (axis.place(b.nodes[j], b.node(j)) for j in (i, i + 1))
    if not (start.finite and stop.finite):
        return False
    return all(share == 1 or axis.between(start, stop, share) > 0 for share in shares)


def explicit_step(b: Builder, axis: Axis, first: int, i: int, tableau: Tableau, base: Form | None = None) -> None:
    """Add the step from node i, already called as `first`, to node i + 1.

    The stages are at the tableau's fractions of the step in the axis' variable. If that is not the clock, this is the
    pseudo Runge-Kutta method of 2202.09778 (Eq. 13), of order 2 at most: each stage moves by a mean value of the row.
    """
    t, end, rule = b.nodes[i], b.node(i + 1), axis.rule
    start, stop = axis.place(t, b.path[first]), axis.place(b.nodes[i + 1], end)
    values = [b.value(rule, first)]
    for row in tableau.a[1:]:
        share = sum(row)
        inner = b.nodes[i + 1] if share == 1 else axis.between(start, stop, share)
        h = rule.time(*b.point(inner)) - start.clock
        changes = [(h * w / share, y) for w, y in zip(row, values, strict=True)]
        b.advance(b.move(rule, first, b.point(inner), changes, base))
        values.append(b.value(rule, b.call(inner)))
    h = stop.clock - start.clock
    b.advance(b.move(rule, first, end, [(h * w, y) for w, y in zip(tableau.b, values, strict=True)], base))


class RungeKutta(Solver):
    """A tableau on a row's clock. The row is undefined at the clean signal, so the step to it uses the tableau `last`,
    whose stages lie inside the step. A step becomes a DDIM step if there is no `last`, if a stage would lie beyond the
    schedule's last noise level, or if the clock is infinite at an end.
    """

    row: str
    order: ClassVar[int]
    tableau: ClassVar[Tableau]
    last: ClassVar[Tableau | None] = None

    def build(self, b: Builder) -> Plan:
        axis = Axis(b.schedule, clock(self.row))
        for i in range(len(b.nodes) - 1):
            first, end = b.call(b.nodes[i]), b.node(i + 1)
            tableau = self.tableau if end[1] > 0 or max(self.tableau.shares) < 1 else self.last
            if tableau is not None and fits(b, axis, i, tableau.shares[1:]):
                explicit_step(b, axis, first, i, tableau)
            else:
                b.advance(ddim(b.path[first], end, first))
        return b.plan(f"{type(self).__name__}(row={self.row})", self.order)


@register("solver", "heun")
@dataclasses.dataclass(frozen=True)
class Heun(RungeKutta):
    """Order 2, two calls per step and one in the last: 2 steps - 1 calls (2206.00364, Algorithm 1 with row='eps')."""

    row: str = "flow"
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)
    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = HEUN


@register("solver", "midpoint")
@dataclasses.dataclass(frozen=True)
class Midpoint(RungeKutta):
    """Order 2: z_s = S_s (z_t / S_t + (c_s - c_t) y_m), y_m at the middle of the step in the clock. 2 steps calls."""

    row: str = "flow"
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)
    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = MIDPOINT


@register("solver", "rk4")
@dataclasses.dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical method of order 4 (Kutta 1901), 4 calls per step; the step to clean data has order 3, 3 calls."""

    row: str = "flow"
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)
    order: ClassVar[int] = 4
    tableau: ClassVar[Tableau] = CLASSICAL
    last: ClassVar[Tableau | None] = HEUN3
