"""How solvers build plans: linear forms over states, estimates and noise, and the builder that collects them."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.process import Spectral, require_flow
from sfumato.process.curves import Curves
from sfumato.schedule import Schedule
from sfumato.solvers import grids
from sfumato.solvers.clocks import Clock, Point
from sfumato.solvers.lines import AnyLine, Corrector, Linear
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

    def __init__(
        self, process: Any, schedule: Schedule, times: list[float], points: dict[float, Point] | None = None
    ) -> None:
        self.process, self.schedule, self.nodes = process, schedule, times
        self.sums = schedule_of(process) is not None  # whether states are alpha x + sigma eps, so that calls are points
        self.times: list[float] = []
        self.path: list[Point] = []
        self.lines: list[AnyLine] = []
        self._points = dict(points or {})

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
        if self.sums:
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
        path = (*self.path, self.node(len(self.nodes) - 1)) if self.sums else ()
        return Plan(name, len(self.nodes) - 1, tuple(self.times), self.nodes[-1], path, tuple(self.lines), order)


def ddim(t: Point, s: Point, k: int, base: Form | None = None) -> Form:
    """z_s = alpha_s x + sigma_s eps, eps = (z_t - alpha_t x) / sigma_t (2010.02502, Eq. 12), exact at both ends."""
    kept = s[1] / t[1]
    return add((kept, base or {("z", k): 1.0}), (1.0, {("x", k): s[0] - kept * t[0]}))


class Solver(abc.ABC):
    """A rule that compiles to a Plan for a process and a number of steps.

    grid: where the nodes of the steps lie. any_process: whether it supports every process, or only those with states
    alpha x + sigma eps. asks_alone: whether its steps are the model's own, and no sums of states and estimates.
    """

    grid: grids.Grid = grids.auto()
    any_process: ClassVar[bool] = False
    asks_alone: ClassVar[bool] = False

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
        require_flow(process, getattr(self, "eta", None))
        schedule = process.clock if schedule is None else schedule
        times = self.grid.of(process).times(schedule, steps, t_start, t_stop)
        if isinstance(process, Spectral) and not self.asks_alone:
            return stacked(self, process, tuple(times))
        return self.built(process, schedule, times)

    def built(
        self, process: Any, schedule: Schedule, times: list[float], points: dict[float, Point] | None = None
    ) -> Plan:
        """The plan with nodes at these times on one schedule, of which some points are known."""
        plan = self.build(Builder(process, schedule, times, points))
        if not isinstance(plan, Plan):
            raise SfumatoError(
                f"{type(self).__name__}.build must return a plan, as Builder.plan does, not {plan!r:.60}."
            )
        return plan


MOST_WEIGHT = 2.5  # the largest sum of |weights|, in steps, of one coefficient: beyond, ten steps of a blur explode


@functools.lru_cache(maxsize=32)
def stacked(solver: Solver, process: Spectral, times: tuple[float, ...]) -> Plan:
    """The plans of all coefficients of a spectral process as one, whose coefficients are vectors.

    Coefficients of equal curves share a plan. SfumatoError for a solver whose calls lie at other times for each of
    them, or that calls the model itself.
    """
    if getattr(solver, "amplification", 0) > MOST_WEIGHT:
        solver = dataclasses.replace(solver, amplification=MOST_WEIGHT)  # type: ignore[type-var]
    curves = process.schedule
    assert isinstance(curves, Curves)
    rates, where = _distinct(torch.as_tensor(curves.rate))
    alpha, sigma = (part.T.tolist() for part in curves.at(rates[None])(torch.tensor(times, dtype=torch.float64)))
    plans: list[Plan] = []
    for rate, *points in zip(rates.tolist(), alpha, sigma, strict=True):
        known = dict(zip(times, zip(*points, strict=True), strict=True))
        plans.append(solver.built(process, curves.at(rate), list(times), known))
        first = plans[0]
        if plans[-1].times != first.times or any(isinstance(line, Corrector) for line in first.lines):
            raise SfumatoError(
                f"{first.name} takes stages at noise levels of its own, and the coefficients of "
                f"{type(process).__name__} have one each: use a solver with one call a step, such as multistep-in-t, "
                "dpm++2m or ddim."
            )
    clock = Builder(process, process.clock, list(times))
    lines = [_stack([plan.lines[k] for plan in plans], where[0]) for k in range(first.calls)]
    path = (*(clock.point(t) for t in first.times), clock.node(len(times) - 1))
    order = min(plan.order for plan in plans)
    return dataclasses.replace(first, path=path, lines=tuple(lines), order=order)


def _distinct(rates: Tensor) -> tuple[Tensor, Tensor]:
    """(the different rates, which of them each coefficient has), of which rounding errors are no difference."""
    unit = float(rates.abs().max()) * 2.0**-40 or 1.0
    keys, where = torch.unique((rates / unit).round(), return_inverse=True)
    return torch.empty(len(keys), dtype=rates.dtype).scatter_(0, where.flatten(), rates.flatten()), where


def _stack(lines: list[AnyLine], where: Tensor) -> AnyLine:
    """One line with a coefficient for each element, from those of the distinct ones; where: which one, (*shape)."""
    own = [line for line in lines if isinstance(line, Linear)]
    if len(own) < len(lines):
        return lines[0]

    def together(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[where]

    z, x = (
        {j: together([getattr(line, name).get(j, 0.0) for line in own])
         for j in sorted({j for line in own for j in getattr(line, name)})}
        for name in "zx"
    )  # fmt: skip
    return Linear(z, x, together([float(line.noise) for line in own]) if any(line.draws for line in own) else 0.0)


def serving() -> list[str]:
    """The names of the solvers that support every process."""
    kinds, names = [Solver], []
    for kind in kinds:
        kinds += kind.__subclasses__()
        names += [f"solvers.{kind.__name__}()"] if kind.any_process is True else []
    return names
