"""What can be certified: a solver, one plan, a step function; each is seen as walks between two levels."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.certification.walks import Level, Oracle, Source, Trace, Walk, level_at
from sfumato.errors import SfumatoError
from sfumato.noise import seeded
from sfumato.schedule import NODE_LIMIT, Schedule
from sfumato.schedules import VE, Flow, LinearBeta
from sfumato.solvers import Linear, Plan, Solver, grids

Step = Callable[[Any, Tensor, float, float, Any], tuple[Tensor, Any]]  # (model, z, t, s, state) -> (z at s, state)

SCHEDULES: dict[str, Schedule] = {"VP": LinearBeta(), "VE": VE(), "flow": Flow()}


class Subject(abc.ABC):
    """A solver as the checks see it. order: as declared, or None; fixed: the only number of steps it has, or None.

    local: it can walk any short interval, so that its first steps can be looked at alone.
    """

    name: str
    order: int | None = None
    fixed: int | None = None
    local: bool = True
    floor: float = 1e-11  # errors below this are rounding

    @property
    def schedules(self) -> dict[str, Schedule | None]:
        """The curves that it is tried on, by name."""
        return dict(SCHEDULES)

    @abc.abstractmethod
    def walk(self, schedule: Schedule | None, steps: int, ends: tuple[float, float]) -> Walk:
        """Compiled for `steps` steps between two times."""

    def whole(self, schedule: Schedule | None) -> tuple[float, float]:
        """The times of a whole run, from noise to data."""
        return 1.0, 0.0


def _times(plan: Any) -> tuple[float, float]:
    return float(plan.times[0]), float(plan.stop)


class SolverSubject(Subject):
    """One of our solvers: anything with `plan(schedule, steps, t_start, t_stop)` that gives a Plan."""

    def __init__(self, solver: Solver, name: str | None, order: int | None) -> None:
        self.solver = solver
        plan = solver.plan(SCHEDULES["flow"], 8)
        self.name = name or plan.name
        self.order = getattr(plan, "order", None) if order is None else order
        # a grid of trained timesteps may start below t_start, and has no short intervals
        self.local = bool(getattr(getattr(solver, "grid", None), "starts_at", True))

    def walk(self, schedule: Schedule | None, steps: int, ends: tuple[float, float]) -> Walk:
        assert schedule is not None
        plan = self.solver.plan(schedule, steps, *(ends if self.local else (1.0, 0.0)))
        return plan_walk(plan, schedule, ends if self.local else _times(plan))


class PlanSubject(Subject):
    """A compiled plan: one schedule, known by its levels, and one number of steps."""

    local = False

    def __init__(self, plan: Plan, name: str | None, order: int | None) -> None:
        self.plan, self.name, self.fixed = plan, name or plan.name, plan.steps
        self.order = plan.order if order is None else order

    @property
    def schedules(self) -> dict[str, Schedule | None]:
        return {"its own": _Levels(dict(zip(self.plan.times, self.plan.path, strict=False)))}

    def walk(self, schedule: Schedule | None, steps: int, ends: tuple[float, float]) -> Walk:
        assert schedule is not None
        return plan_walk(self.plan, schedule, _times(self.plan))

    def whole(self, schedule: Schedule | None) -> tuple[float, float]:
        return _times(self.plan)

    def odd_lines(self) -> tuple[int, ...]:
        """The lines that miss their level for constant x and eps, in a deterministic plan whose other lines do not.

        Where half of them or more do (Euler in t, the row F, a tuned plan) it is the method's way, and no line is odd.
        """
        alphas, sigmas = zip(*self.plan.path, strict=True)
        missed = []
        for k, line in enumerate(self.plan.lines):
            if not isinstance(line, Linear):
                continue
            of_x = math.fsum([c * alphas[j] for j, c in line.z.items()] + list(line.x.values()))
            of_eps = math.fsum(c * sigmas[j] for j, c in line.z.items())
            size = 1 + sum(abs(c) * (1 + sigmas[j]) for j, c in (*line.z.items(), *line.x.items()))
            if max(abs(of_x - alphas[k + 1]), abs(of_eps - sigmas[k + 1])) > 1e-8 * size:
                missed.append(k)
        few = 2 * len(missed) < len(self.plan.lines) and not self.plan.stochastic
        return tuple(missed) if few else ()


def plan_walk(plan: Plan, schedule: Schedule, ends: tuple[float, float]) -> Walk:
    """A compiled plan from the level of ends[0]."""
    stop = plan.path[-1] if plan.path else (1.0, 0.0) if plan.stop == 0 else level_at(schedule, plan.stop)

    def go(oracle: Oracle, z: Tensor, source: Source) -> Trace:
        seen = [(state.z.clone(), state.t) for state in plan.run(oracle, z, source)]
        return Trace([*((z, level_at(schedule, t)) for z, t in seen[:-1]), (seen[-1][0], stop)])

    return Walk(level_at(schedule, ends[0]), stop, ends[0], schedule, go)


@dataclasses.dataclass(frozen=True)
class _Levels(Schedule):
    """The levels that a plan knows, at its own times alone."""

    known: dict[float, Level]

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        levels = [self.known[float(one)] for one in t.reshape(-1)]
        alpha, sigma = torch.tensor(levels, dtype=torch.float64).unbind(-1)
        return alpha.reshape(t.shape), sigma.reshape(t.shape)

    def curve_rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise SfumatoError("A plan knows the levels of its calls and not the curve between them.")

    def curve_time(self, logsnr: Tensor) -> Tensor:
        raise SfumatoError("A plan knows the levels of its calls and not the curve between them.")


class StepSubject(Subject):
    """A function (model, z, t, s, state) -> (z, state), called from node to node; state is None at first.

    It is never asked to end on sigma = 0, where a function of alpha and sigma alone may have no value. Its random
    numbers, if any, are torch's own.
    """

    def __init__(self, step: Step, name: str | None, order: int | None) -> None:
        self.step, self.name = step, name or str(getattr(step, "__name__", type(step).__name__))
        self.order = getattr(step, "order", None) if order is None else order

    def whole(self, schedule: Schedule | None) -> tuple[float, float]:
        assert schedule is not None
        start, stop = schedule.time(torch.tensor([-NODE_LIMIT, NODE_LIMIT], dtype=torch.float64)).tolist()
        return start, stop

    def walk(self, schedule: Schedule | None, steps: int, ends: tuple[float, float]) -> Walk:
        assert schedule is not None
        nodes = grids.auto().times(schedule, steps, *ends)
        levels = [level_at(schedule, t) for t in nodes]

        def go(oracle: Oracle, z: Tensor, source: Source) -> Trace:
            stops, state = [(z.clone(), levels[0])], None
            with seeded(source.seed):
                for t, s, level in zip(nodes, nodes[1:], levels[1:], strict=False):
                    z, state = self.step(oracle, z, t, s, state)
                    stops.append((z.clone(), level))
            return Trace(stops)

        return Walk(levels[0], levels[-1], nodes[0], schedule, go, open=False)
