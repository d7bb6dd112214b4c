"""The kinds of solvers that can be certified, each set up for runs between two noise levels."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.certification.bench import Level, Oracle, SeededNoise, Setup, Stop, level_at
from sfumato.errors import SfumatoError
from sfumato.noise import seeded
from sfumato.schedule import NODE_LIMIT, Schedule
from sfumato.schedules import VE, Flow, LinearBeta
from sfumato.solvers import Linear, Plan, Solver, grids

StepFunction = Callable[[Any, Tensor, float, float, Any], tuple[Tensor, Any]]  # (model, z, t, s, state) -> (z, state)

SCHEDULES: dict[str, Schedule] = {"VP": LinearBeta(), "VE": VE(), "flow": Flow()}


class Subject(abc.ABC):
    """A solver in the form that checks use. order: as declared, or None; fixed: its only number of steps, or None.

    local: whether it can run over any short interval, so that its first steps can be checked alone. counts: the numbers
    of steps at which its order is measured.
    """

    name: str
    order: int | None = None
    fixed: int | None = None
    local: bool = True
    floor: float = 1e-11  # errors below this are rounding
    counts: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)

    @property
    def schedules(self) -> dict[str, Any]:
        """The schedules to test it on, by name; None stands for its own noise levels."""
        return dict(SCHEDULES)

    @abc.abstractmethod
    def setup(self, schedule: Any, steps: int, interval: tuple[float, float] | None = None) -> Setup:
        """A setup for `steps` steps between two logsnr, or from noise to data; always the latter if not `local`."""

    def attempt(self, schedule: Any, steps: int, interval: tuple[float, float] | None = None) -> Setup | None:
        """`setup`, or None if the solver rejects that number of steps."""
        try:
            return self.setup(schedule, steps, interval)
        except ValueError:  # SfumatoError, and errors of foreign schedulers
            return None


def _times(schedule: Schedule, interval: tuple[float, float]) -> tuple[float, float]:
    start, stop = schedule.time(torch.tensor(interval, dtype=torch.float64)).tolist()
    return start, stop


class SolverSubject(Subject):
    """A solver with `plan(schedule, steps, t_start, t_stop)`, which returns a Plan."""

    def __init__(self, solver: Solver) -> None:
        plan = solver.plan(SCHEDULES["flow"], 8)
        self.solver, self.name, self.order = solver, plan.name, getattr(plan, "order", None)
        # a grid of training timesteps may start below t_start, and has no short intervals
        self.local = bool(getattr(getattr(solver, "grid", None), "starts_at", True))

    def setup(self, schedule: Any, steps: int, interval: tuple[float, float] | None = None) -> Setup:
        ends = _times(schedule, interval) if interval and self.local else (1.0, 0.0)
        plan = self.solver.plan(schedule, steps, *ends)
        return plan_setup(plan, schedule, ends[0] if self.local else plan.times[0])


class PlanSubject(Subject):
    """A compiled plan: one schedule, known by its levels, and one number of steps."""

    local = False

    def __init__(self, plan: Plan) -> None:
        self.plan, self.name, self.fixed, self.order = plan, plan.name, plan.steps, plan.order

    @property
    def schedules(self) -> dict[str, Any]:
        return {"its own": KnownLevels(dict(zip(self.plan.times, self.plan.path, strict=False)))}

    def setup(self, schedule: Any, steps: int, interval: tuple[float, float] | None = None) -> Setup:
        return plan_setup(self.plan, schedule, self.plan.times[0])

    def odd_lines(self) -> tuple[int, ...]:
        """The lines that miss their level for constant x and eps, in a deterministic plan whose other lines do not.

        If half of the lines or more do (Euler in t, the row F, a tuned plan), that is how the method works: none is
        odd.
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


def plan_setup(plan: Plan, schedule: Schedule, t_start: float) -> Setup:
    """A compiled plan from the level of t_start."""
    stop = plan.path[-1] if plan.path else (1.0, 0.0) if plan.stop == 0 else level_at(schedule, plan.stop)

    def go(oracle: Oracle, z: Tensor, noise: SeededNoise) -> list[Stop]:
        seen = [(state.z.clone(), state.t) for state in plan.run(oracle, z, noise)]
        return [*((z, level_at(schedule, t)) for z, t in seen[:-1]), (seen[-1][0], stop)]

    draws = sum(line.draws for line in plan.lines)
    return Setup(level_at(schedule, t_start), stop, t_start, schedule, go, draws)


@dataclasses.dataclass(frozen=True)
class KnownLevels(Schedule):
    """The levels of a plan, known only at its own times."""

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

    It is never stepped to sigma = 0, where a function of alpha and sigma alone may be undefined. Random numbers, if
    any, come from torch's own generator.
    """

    def __init__(self, step: StepFunction) -> None:
        self.step, self.name = step, str(getattr(step, "__name__", type(step).__name__))
        self.order = getattr(step, "order", None)

    def setup(self, schedule: Any, steps: int, interval: tuple[float, float] | None = None) -> Setup:
        nodes = grids.auto().times(schedule, steps, *_times(schedule, interval or (-NODE_LIMIT, NODE_LIMIT)))
        levels = [level_at(schedule, t) for t in nodes]

        def go(oracle: Oracle, z: Tensor, noise: SeededNoise) -> list[Stop]:
            stops, state = [(z.clone(), levels[0])], None
            with seeded(noise.seed):
                for t, s, level in zip(nodes, nodes[1:], levels[1:], strict=False):
                    z, state = self.step(oracle, z, t, s, state)
                    stops.append((z.clone(), level))
            return stops

        return Setup(levels[0], levels[-1], nodes[0], schedule, go)
