"""Multistep methods by (row, variable, order): integrate the polynomial through past values of the row.

    z_s = S_s (z_t / S_t + sum_i w_i y_i),   w_i = int_{c_t}^{c_s} l_i(v(c)) dc     predictor: past nodes
    z_s <- z_s + S_s sum_i (w'_i - w_i) y_i                                        corrector: the new node too

The corrector costs no extra call: it uses y at the predicted state, and the next step starts from the corrected one.
`named.py` lists which published method is which row and variable.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.solvers import grids
from sfumato.solvers.axis import Axis, Place
from sfumato.solvers.build import Builder, Form, Solver, add, ddim
from sfumato.solvers.clocks import clock
from sfumato.solvers.plan import Plan
from sfumato.solvers.runge_kutta import CLASSICAL, explicit_step, fits
from sfumato.solvers.singlestep import STAGES, exponential_step

# end='near': a step that covers more than these fractions of the clock left to the data is predicted by order 3 or 2.
NEAR = (0.22, 0.5)
# Sum of |weights| divided by the step, on equal steps: Adams-Bashforth of order 1 to 4.
PLAIN = (1.0, 2.0, 11 / 3, 20 / 3)


class Known(NamedTuple):
    """A past call and its place on the axis."""

    call: int
    place: Place


class PredictedStep(NamedTuple):
    """A predicted step: the calls it used, newest first, their weights, and the calls that a corrector may use."""

    used: list[Known]
    weights: list[float]
    known: list[Known]


@register("solver", "multistep")
@dataclasses.dataclass(frozen=True)
class Multistep(Solver):
    """Orders 1 to 4 in the row 'flow', 'F', 'x' or 'eps'; one call per step after the start.

    variable: the variable of the polynomial: the row's own 'clock' (Adams-Bashforth), 'logsnr' or 't'.
    corrector: True corrects each state to order + 1; a number from 2 to order + 1 is the corrector's order.
    start: 'rk' takes the first steps by Runge-Kutta stages within the step, which keeps the order (1 extra call at
    order 3, 4 at order 4); 'low' uses lower orders, without extra calls, which limits the order to 2 (3 with a
    corrector). end: 'low' reduces the order to 1 towards the end; 'full' does not; 'near' predicts by order 3 if a step
    covers more than 22 % of the clock left to the data, and by order 2 beyond 50 %, where extrapolation from such
    distant values fails; the corrector keeps its order.
    amplification: the largest sum of |weights| in units of the step, the factor by which a step amplifies model errors.
    Each step, and its corrector, uses the highest order within this bound. On equal steps the orders 1 to 4 need 1, 2,
    3.7 and 6.7, correctors at most 1.5; after a shorter step all need more.
    phi2: the weight of the slope if the polynomial is a line in logsnr: 'exact' is its integral; 'B1' and 'B2' are half
    of h and of e^h - 1 (2302.04867, Section 3.2); 'B2' is the published DPM-Solver++ (2M).
    A step to or from a point where the clock or the variable is infinite is a DDIM step (for row x: the clean signal).
    """

    order: int = 2
    row: str = "flow"
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)
    variable: str = "clock"
    corrector: bool | int = False
    start: str = "rk"
    end: str = "full"
    amplification: float = math.inf
    phi2: str = "exact"
    name: str = ""

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise SfumatoError(f"Multistep has order 1 to 4, got {self.order}.")
        if self.corrector is not False and not 2 <= self._nodes <= self.order + 1:
            raise SfumatoError(
                f"The corrector of Multistep(order={self.order}) has order 2 to {self.order + 1}, got {self.corrector}."
            )
        for field, allowed in (
            ("start", ("rk", "low")),
            ("end", ("full", "low", "near")),
            ("phi2", ("exact", "B1", "B2")),
        ):
            if getattr(self, field) not in allowed:
                raise SfumatoError(f"Multistep takes {field} = {' or '.join(allowed)}, got {getattr(self, field)!r}.")
        if not self.amplification >= 1:
            raise SfumatoError(f"Multistep needs amplification >= 1, that of order 1; got {self.amplification:g}.")
        if self.phi2 != "exact" and self.variable != "logsnr":
            raise SfumatoError(f"phi2 = {self.phi2} needs variable = 'logsnr', got {self.variable!r}.")

    @property
    def _nodes(self) -> int:
        """The number of nodes of the corrector's polynomial, including the new one; 0 without a corrector."""
        return self.order + 1 if self.corrector is True else int(self.corrector)

    def _declared(self, full: bool = False) -> int:
        """The order of the whole method; full: without the losses from `start` and `end`."""
        predicted = max(p for p in range(1, self.order + 1) if p == 1 or PLAIN[p - 1] <= self.amplification)
        reached = min(self._nodes, predicted + 1) if self.corrector else predicted
        if full:
            return reached
        low = [2 + bool(self.corrector)] if self.start == "low" else []
        return min(reached, *low, *([2] if self.end == "low" else []), reached)

    def build(self, b: Builder) -> Plan:
        axis = Axis(b.schedule, clock(self.row), self.variable)
        known: list[Known] = []
        last: PredictedStep | None = None
        steps = len(b.nodes) - 1
        for i in range(steps):
            k = b.call(b.nodes[i])
            new = Known(k, axis.place(b.nodes[i], b.path[k]))
            base = self._corrected(b, axis, last, new) if last and new.place.finite else None
            known = [new, *known][: self.order] if new.place.finite else []
            point = b.node(i + 1)
            end = axis.place(b.nodes[i + 1], point)
            last = None
            if not known or not axis.reaches(end) or self.phi2 != "exact" and not end.finite:
                b.advance(ddim(b.path[k], point, k, base))  # order 1, finite at both ends of every schedule
            elif not self._start(b, axis, i, len(known), base):
                reach = self._reach(new.place, end, steps - i)
                used, weights = self._bounded(axis, known[:reach], new.place, end)
                last = PredictedStep(used, weights, known[:reach] if self.end == "low" else known)
                b.advance(b.move(axis.rule, k, point, self._terms(b, axis, last), base))
        return b.plan(self.name or self._describe(), self._declared())

    def _reach(self, start: Place, end: Place, left: int) -> int:
        """The largest number of past values for a step with `left` steps to go."""
        if self.end == "low":
            return left
        if self.end == "near":
            low, high = sorted((start.clock, end.clock))  # the clock of x rises towards the data, the others fall
            covered = 1 - low / high
            return 2 if covered > NEAR[1] else 3 if covered > NEAR[0] else self.order
        return self.order

    def _bounded(self, axis: Axis, used: list[Known], start: Place, end: Place) -> tuple[list[Known], list[float]]:
        """As many of the calls, newest first, as the amplification allows, and their weights."""
        # a clock that stands still, as that of a constant under heat, has one node alone
        places = [one.place.variable for one in used]
        moving = end.clock != start.clock and len(set(places)) == len(places)
        for count in range(len(used) if moving else 1, 0, -1):
            weights = self._weights(axis, used[:count], start, end)
            if sum(map(abs, weights)) <= self.amplification * abs(end.clock - start.clock) * (1 + 1e-9):
                break
        return used[:count], weights

    def _start(self, b: Builder, axis: Axis, i: int, count: int, base: Form | None) -> bool:
        """Take step i by Runge-Kutta if too few past values are known for the order; returns whether it did."""
        order = self._declared(full=True) - 1  # one less: the local error then has the global order
        k, point = len(b.times) - 1, b.node(i + 1)
        if self.start == "low" or count >= order - bool(self.corrector):
            return False
        if order in STAGES and fits(b, axis, i, [stage.share for stage in STAGES[order]]):
            exponential_step(b, axis, k, i, STAGES[order], base)
            return True
        if order == 4 and point[1] > 0:
            explicit_step(b, Axis(b.schedule, axis.rule), k, i, CLASSICAL, base)
            return True
        return False

    def _terms(self, b: Builder, axis: Axis, step: PredictedStep) -> list[tuple[float, Form]]:
        return [(w, b.value(axis.rule, one.call)) for w, one in zip(step.weights, step.used, strict=True)]

    def _corrected(self, b: Builder, axis: Axis, last: PredictedStep, new: Known) -> Form | None:
        """The corrected state at the newest call: the predicted state with the predictor's change replaced."""
        if not self.corrector:
            return None
        used = [new, *last.known][: self._nodes]
        used, weights = self._bounded(axis, used, last.used[0].place, new.place)
        step = PredictedStep(used, weights, used)
        scale = axis.rule.scale(*b.path[new.call])
        changes = [(scale * w, y) for w, y in self._terms(b, axis, step)]
        changes += [(-scale * w, y) for w, y in self._terms(b, axis, last)]
        return add((1.0, {("z", new.call): 1.0}), *changes)

    def _weights(self, axis: Axis, used: list[Known], start: Place, end: Place) -> list[float]:
        if self.phi2 == "exact" or len(used) != 2:
            return axis.weights([one.place for one in used], start, end)
        # y_t + (y_other - y_t) / r: the integral of the slope term is half of B(h)
        step, change = end.variable - start.variable, end.clock - start.clock
        slope = change / 2 if self.phi2 == "B2" else step * float(axis.rule.rate(np.array(end.lam))) / 2
        places = [one.place for one in used]
        (other,) = [place for place in places if place != start]
        weight = slope * step / (other.variable - start.variable)
        return [change - weight if place == start else weight for place in places]

    def _describe(self) -> str:
        fields = {"order": self.order, "row": self.row}
        for name, default in (
            ("variable", "clock"),
            ("corrector", False),
            ("start", "rk"),
            ("end", "full"),
            ("amplification", math.inf),
            ("phi2", "exact"),
        ):
            if getattr(self, name) != default:
                fields[name] = getattr(self, name)
        return f"Multistep({', '.join(f'{name}={value}' for name, value in fields.items())})"
