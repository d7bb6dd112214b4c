"""What the tests of the solvers share: a smooth mixture, and solvers by name with what they declare."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from sfumato.exact import GaussianMixture
from sfumato.schedule import Schedule
from sfumato.schedules import EDM, VE, Cosine, Flow, FromBetas, LinearBeta, Shifted, Sigmoid, SubVP
from sfumato.solvers import (
    DDIM,
    DDPM,
    DEIS,
    LMS,
    PNDM,
    RK4,
    DPMSolver,
    DPMSolverPP,
    Euler,
    Heun,
    Midpoint,
    Multistep,
    Singlestep,
    Solver,
    UniPC,
    grids,
)

STRUCTURE = {
    "vp": LinearBeta(),
    "cosine": Cosine(),
    "subvp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": Flow(),
    "table": FromBetas.ddpm(),
    "shifted": Shifted(Cosine(), 3.0),
    "sigmoid": Sigmoid(),
}
ROWS = ("flow", "F", "x", "eps")
Calls = Callable[[int], int]  # steps -> calls, between noise levels where every clock is finite


def each(n: int) -> Calls:
    """n calls a step."""
    return lambda steps: n * steps


def starts(order: int, corrected: bool = False) -> Calls:
    """One call a step; order - 2 first steps have as many stages as their order, one below that of the whole."""
    return lambda steps: steps + min(steps, max(order - 2, 0)) * (order - 2 + corrected)


# name -> (solver, its calls); the row F has its letter between underscores
CASES: dict[str, tuple[Solver, Calls]] = {
    "ddim": (DDIM(), each(1)),
    "ddim_half": (DDIM(eta=0.5), each(1)),
    "ddpm": (DDPM(), each(1)),
    "euler": (Euler(), each(1)),
    **{f"heun_{row}": (Heun(row=row), each(2)) for row in ROWS},
    **{f"midpoint_{row}": (Midpoint(row=row), each(2)) for row in ("flow", "eps")},
    **{f"rk4_{row}": (RK4(row=row), each(4)) for row in ROWS},
    **{f"multistep_{p}_{row}": (Multistep(p, row), starts(p)) for p in (1, 2, 3, 4) for row in ROWS},
    **{f"multistep_4_{row}_logsnr": (Multistep(4, row, variable="logsnr"), starts(4)) for row in ROWS},
    **{f"multistep_3_{row}_t": (Multistep(3, row, variable="t"), starts(3)) for row in ROWS},
    **{f"corrected_{p}_flow": (Multistep(p, corrector=True), starts(p, True)) for p in (1, 2, 3, 4)},
    **{f"corrected_3_{row}": (Multistep(3, row, corrector=True), starts(3, True)) for row in ("F", "x", "eps")},
    "corrected_3_x_logsnr": (Multistep(3, "x", variable="logsnr", corrector=True), starts(3, True)),
    "corrected_4_flow_t": (Multistep(4, "flow", variable="t", corrector=True), starts(4, True)),
    "corrected_3_flow_alike": (Multistep(3, corrector=3), each(1)),
    "low_4_flow": (Multistep(4, start="low"), each(1)),
    "low_3_flow_corrected": (Multistep(3, start="low", corrector=True), each(1)),
    "low_4_eps_both": (Multistep(4, "eps", start="low", end="low"), each(1)),
    "low_unipc_3": (UniPC(3, start="low"), each(1)),
    "low_3_x_both": (Multistep(3, "x", variable="logsnr", corrector=True, start="low", end="low"), each(1)),
    "dpm_2s": (DPMSolver(2), each(2)),
    "dpm_3s": (DPMSolver(3), each(3)),
    "dpm_3m": (DPMSolver(3, multistep=True), starts(3)),
    "dpmpp_2s": (DPMSolverPP(2, multistep=False), each(2)),
    "dpmpp_3s": (DPMSolverPP(3, multistep=False), each(3)),
    "dpmpp_2m_published": (Multistep(2, "x", variable="logsnr", phi2="B2"), each(1)),
    "dpmpp_3m": (DPMSolverPP(3), starts(3)),
    "singlestep_3_F_t": (Singlestep(3, "F", variable="t"), each(3)),
    "deis_3": (DEIS(3), starts(3)),
    "lms_4": (LMS(4), starts(4)),
    **{f"unipc_{p}_{b}": (UniPC(p, b), starts(p, True)) for p in (1, 2, 3) for b in ("B1", "B2")},
    "unipc_3_eps": (UniPC(3, row="eps"), starts(3, True)),
    "plms": (PNDM(), lambda steps: steps + 1),
    "pndm": (PNDM("prk"), lambda steps: steps + 3 * min(steps, 3)),
}


@functools.cache
def _nodes(grid: grids.Grid, schedule: Schedule, *where: float) -> tuple[float, ...]:
    return tuple(grid.times(schedule, *where))


@dataclasses.dataclass(frozen=True)
class Once(grids.Grid):
    """A grid whose nodes are found once for all solvers: their bisection is most of what a plan of few steps costs."""

    grid: grids.Grid

    def times(self, schedule, steps, t_start=1.0, t_stop=0.0):
        return list(_nodes(self.grid, schedule, steps, t_start, t_stop))

    def nodes(self, *where):
        return self.grid.nodes(*where)


def once(solver: Any) -> Any:
    """The solver with its nodes shared."""
    return dataclasses.replace(solver, grid=Once(solver.grid))


SOLVERS: dict[str, Solver] = {name: once(solver) for name, (solver, _) in CASES.items()}


def mixture():
    covs = [[[0.2, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.15]]]
    return GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], covs)
