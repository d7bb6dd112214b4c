"""Singlestep exponential integrators: a polynomial through stages within the step, in logsnr or another variable.

    z_i = S_i (z_t / S_t + sum_j w_ij y_j),   w_ij = int_{c_t}^{c_i} l_j(v(c)) dc,   l_j on the stages that i uses

In logsnr these are DPM-Solver-2 and -3 (row eps; 2206.00927, Algorithms 1 and 2) and DPM-Solver++ (2S) and (3S)
(row x; 2211.01095); in the clock the midpoint rule and Heun's method of order 3.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from sfumato.errors import SfumatoError
from sfumato.solvers import grids
from sfumato.solvers.axis import Axis
from sfumato.solvers.build import Builder, Form, Solver, ddim
from sfumato.solvers.clocks import clock
from sfumato.solvers.plan import Plan
from sfumato.solvers.runge_kutta import fits


class Stage(NamedTuple):
    """A position within the step (1 is its end), and the earlier stages that its polynomial interpolates."""

    share: float
    through: tuple[int, ...]


STAGES: dict[int, tuple[Stage, ...]] = {
    1: (Stage(1, (0,)),),
    2: (Stage(1 / 2, (0,)), Stage(1, (1,))),
    3: (Stage(1 / 3, (0,)), Stage(2 / 3, (0, 1)), Stage(1, (0, 2))),
}


def exponential_step(
    b: Builder, axis: Axis, first: int, i: int, stages: tuple[Stage, ...], base: Form | None = None
) -> None:
    """Add the step from node i, already called as `first`, to node i + 1; the stages must fit in between (`fits`)."""
    stop = axis.place(b.nodes[i + 1], b.node(i + 1))
    calls, places = [first], [axis.place(b.nodes[i], b.path[first])]
    for stage in stages:
        t, to, place = b.nodes[i + 1], b.node(i + 1), stop
        if stage.share < 1:
            t = axis.between(places[0], stop, stage.share)
            to = b.point(t)
            place = axis.place(t, to)
        weights = axis.weights([places[j] for j in stage.through], places[0], place)
        values = [b.value(axis.rule, calls[j]) for j in stage.through]
        b.advance(b.move(axis.rule, first, to, zip(weights, values, strict=True), base))
        if stage.share < 1:
            calls.append(b.call(t))
            places.append(place)


@dataclasses.dataclass(frozen=True)
class Singlestep(Solver):
    """Orders 1 to 3, `order` calls per step. A step whose stages do not fit (`fits`) becomes a DDIM step."""

    order: int = 2
    row: str = "x"
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)
    variable: str = "logsnr"
    name: str = ""

    def __post_init__(self) -> None:
        if self.order not in STAGES:
            raise SfumatoError(f"Singlestep has order 1 to 3, got {self.order}.")

    def build(self, b: Builder) -> Plan:
        axis = Axis(b.schedule, clock(self.row), self.variable)
        for i in range(len(b.nodes) - 1):
            k, end = b.call(b.nodes[i]), b.node(i + 1)
            if fits(b, axis, i, [stage.share for stage in STAGES[self.order]]):
                exponential_step(b, axis, k, i, STAGES[self.order])
            else:
                b.advance(ddim(b.path[k], end, k))
        name = self.name or f"Singlestep(order={self.order}, row={self.row}, variable={self.variable})"
        return b.plan(name, self.order)
