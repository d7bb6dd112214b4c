"""How solvers build plans: linear forms over states, estimates and noise, and the builder that collects them."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any, ClassVar, final

from sfumato.errors import SfumatoError
from sfumato.schedule import Schedule
from sfumato.solvers import grids
from sfumato.solvers.clocks import Clock, Point
from sfumato.solvers.lines import AnyLine, Linear
from sfumato.solvers.plan import Plan, schedule_of

Form = dict[tuple[str, int], float]  # ("z" | "x", call) -> coefficient


def add(*terms: tuple[float, Form]) -> Form:
    """sum_i c_i form_i."""
    out: Form = {}
    for c, form in terms:
        for key, value in form.items():
            out[key] = out.get(key, 0.0) + c * value
    return out


class Builder:
    """Collects a plan: `call` adds a call of the denoiser at a time, `advance` defines the next state."""

    def __init__(self, process: Any, schedule: Schedule, times: list[float]) -> None:
        self.process, self.schedule, self.nodes = process, schedule, times
        self.times: list[float] = []
        self.path: list[Point] = []
        self.lines: list[AnyLine] = []
        self._points: dict[float, Point] = {}

    def point(self, t: float) -> Point:
        if t not in self._points:
            alpha, sigma = self.schedule(t)
            self._points[t] = float(alpha), float(sigma)
        return self._points[t]

    def node(self, i: int) -> Point:
        """(alpha, sigma) at a node; (1, 0), the clean signal, for a last node at t = 0."""
        if i == len(self.nodes) - 1 and self.nodes[-1] == 0:
            return 1.0, 0.0
        return self.point(self.nodes[i])

    def call(self, t: float) -> int:
        self.times.append(t)
        self.path.append(self.point(t))
        return len(self.times) - 1

    def value(self, clock: Clock, k: int) -> Form:
        """y of the clock's row at call k."""
        p, q = clock.read(*self.path[k])
        return add((p, {("z", k): 1.0}), (q, {("x", k): 1.0}))

    def advance(self, form: Form, noise: float = 0.0) -> None:
        z = {j: c for (kind, j), c in form.items() if kind == "z" and c != 0}
        x = {j: c for (kind, j), c in form.items() if kind == "x" and c != 0}
        self.lines.append(Linear(z, x, noise))

    def jump(self, line: AnyLine) -> None:
        """Append a line that is not `Linear`."""
        self.lines.append(line)

    def move(
        self, clock: Clock, k: int, to: Point, changes: Iterable[tuple[float, Form]], base: Form | None = None
    ) -> Form:
        """z_s = S_s (z_t / S_t + sum of weight * y); z_t is the state of call k, or the corrected one (`base`)."""
        ratio = clock.scale(*to) / clock.scale(*self.path[k])
        return add((ratio, base or {("z", k): 1.0}), *((clock.scale(*to) * w, y) for w, y in changes))

    def plan(self, name: str, order: int) -> Plan:
        path = (*self.path, self.node(len(self.nodes) - 1))
        return Plan(name, len(self.nodes) - 1, tuple(self.times), self.nodes[-1], path, tuple(self.lines), order)


def ddim(t: Point, s: Point, k: int, base: Form | None = None) -> Form:
    """z_s = alpha_s x + sigma_s eps, eps = (z_t - alpha_t x) / sigma_t (2010.02502, Eq. 12), exact at both ends."""
    kept = s[1] / t[1]
    return add((kept, base or {("z", k): 1.0}), (1.0, {("x", k): s[0] - kept * t[0]}))


class Solver(abc.ABC):
    """A rule that compiles to a Plan for a process and a number of steps.

    grid: where the nodes of the steps lie. any_process: whether it supports every process, or only those with states
    alpha x + sigma eps.
    """

    grid: grids.Grid = grids.auto()
    any_process: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, b: Builder) -> Plan: ...

    @final
    def plan(self, process: Any, steps: int = 20, t_start: float = 1.0, t_stop: float = 0.0) -> Plan:
        """The plan for `steps` intervals from t_start to t_stop (0: the clean signal).

        process: the model's process, or a Schedule, meaning the Gaussian process with it.
        """
        schedule = schedule_of(process)
        if schedule is None and not self.any_process:
            raise SfumatoError(
                f"{type(self).__name__} works on real numbers and cannot sample the states of "
                f"{type(process).__name__}: use {' or '.join(serving())}."
            )
        schedule = process.clock if schedule is None else schedule
        plan = self.build(Builder(process, schedule, self.grid.times(schedule, steps, t_start, t_stop)))
        if not isinstance(plan, Plan):
            raise SfumatoError(
                f"{type(self).__name__}.build must return a plan, as Builder.plan does, not {plan!r:.60}."
            )
        return plan


def serving() -> list[str]:
    """The names of the solvers that support every process."""
    kinds, names = [Solver], []
    for kind in kinds:
        kinds += kind.__subclasses__()
        names += [f"solvers.{kind.__name__}()"] if kind.any_process is True else []
    return names
