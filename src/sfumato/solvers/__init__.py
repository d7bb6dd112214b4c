"""Solvers: builders of plans, and the one loop that runs them."""

from collections.abc import Callable

from sfumato.solvers import grids
from sfumato.solvers.build import Solver
from sfumato.solvers.churn import Churn
from sfumato.solvers.ddim import DDIM, Euler
from sfumato.solvers.ddpm import DDPM, OptimalDDPM
from sfumato.solvers.langevin import AnnealedLangevin, PredictorCorrector
from sfumato.solvers.multistep import Multistep
from sfumato.solvers.plan import Plan, State
from sfumato.solvers.reverse_sde import EulerMaruyama, SASolver, SDEDPMSolver
from sfumato.solvers.runge_kutta import Heun, RungeKutta
from sfumato.solvers.walk import Walk, WalkSolver

# The names that the command line takes.
NAMES: dict[str, Callable[[], Solver]] = {
    "annealed-langevin": AnnealedLangevin,
    "churn": Churn,
    "ddim": DDIM,
    "ddpm": DDPM,
    "ddpm-beta": lambda: DDPM(variance="beta"),
    "euler": Euler,
    "euler-maruyama": EulerMaruyama,
    "heun": Heun,
    "multistep": Multistep,
    "predictor-corrector": PredictorCorrector,
    "sa-solver": SASolver,
    "sde-dpm++2m": SDEDPMSolver,
    "sde-dpm++3m": lambda: SDEDPMSolver(3),
}


def default() -> Solver:
    """Second-order Adams-Bashforth in the flow row on the `auto` grid: finite at both ends of every schedule."""
    return Multistep(order=2)


__all__ = [
    "DDIM", "DDPM", "NAMES", "AnnealedLangevin", "Churn", "Euler", "EulerMaruyama", "Heun", "Multistep", "OptimalDDPM",
    "Plan", "PredictorCorrector", "RungeKutta", "SASolver", "SDEDPMSolver", "Solver", "State", "Walk", "WalkSolver",
    "default", "grids",
]  # fmt: skip
