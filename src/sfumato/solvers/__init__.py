"""Solvers: they compile to plans, which one loop runs."""

from collections.abc import Callable, Mapping

from sfumato.registry import Named
from sfumato.solvers import grids
from sfumato.solvers.adaptive import Adaptive
from sfumato.solvers.brownian import Brownian
from sfumato.solvers.build import Solver
from sfumato.solvers.churn import Churn
from sfumato.solvers.ddim import DDIM, Euler
from sfumato.solvers.ddpm import DDPM, LearnedDDPM, OptimalDDPM
from sfumato.solvers.discrete import Ancestral, SymbolSolver
from sfumato.solvers.langevin import AnnealedLangevin, PredictorCorrector
from sfumato.solvers.leaping import Leaping, ThetaTrapezoid
from sfumato.solvers.lines import Bridge, Corrector, Jump, Linear
from sfumato.solvers.map import Map
from sfumato.solvers.multistep import Multistep
from sfumato.solvers.named import DEIS, LMS, DPMSolver, DPMSolverPP, UniPC
from sfumato.solvers.plan import Plan, State
from sfumato.solvers.pndm import PNDM
from sfumato.solvers.reveal import Reveal
from sfumato.solvers.reverse_sde import EulerMaruyama, SASolver, SDEDPMSolver
from sfumato.solvers.runge_kutta import RK4, Heun, Midpoint, RungeKutta
from sfumato.solvers.singlestep import Singlestep
from sfumato.solvers.walk import Walk, together

NAMES: Mapping[str, Callable[..., Solver]] = Named("solver")


def default(exact: bool = False) -> Solver:
    """The default solver: Adams-Bashforth and a corrector, both of order up to 4, in the flow row; one call per step.

    The first steps have lower order and are corrected, steps near the data are predicted with order 3 and 2, and each
    step uses the highest order whose |weights| sum to at most `amplification` steps: 7.3 for exact models, enough for
    order 4 on equal steps, and 2.5 for networks, mostly order 2 with a corrector of order 4. A trained network is less
    smooth than the E[x|z] of an exact model, and extrapolation amplifies what a polynomial cannot fit; its grid has
    more nodes at high noise, where images take their coarse shape. Chosen by the distance to the exact ODE on mixtures
    in 2-D and 64-D and, for networks, to their own fine solve, with and without guidance (`benchmarks/solvers.py`).
    """
    if exact:
        return Multistep(order=4, corrector=4, start="low", end="near", amplification=7.3)
    grid = grids.FlowTime(share=0.1, noise=0.3)
    return Multistep(order=4, corrector=4, start="low", end="near", amplification=2.5, grid=grid)


__all__ = [
    "DDIM", "DDPM", "DEIS", "LMS", "NAMES", "PNDM", "RK4", "Adaptive", "Ancestral", "AnnealedLangevin", "Bridge",
    "Brownian", "Churn", "Corrector", "DPMSolver", "DPMSolverPP", "Euler", "EulerMaruyama", "Heun", "Jump",
    "LearnedDDPM", "Leaping", "Linear", "Map", "Midpoint", "Multistep", "OptimalDDPM", "Plan",
    "PredictorCorrector", "Reveal", "RungeKutta", "SASolver", "SDEDPMSolver", "Singlestep", "Solver", "State",
    "SymbolSolver", "ThetaTrapezoid", "UniPC", "Walk", "default", "grids", "together",
]  # fmt: skip
