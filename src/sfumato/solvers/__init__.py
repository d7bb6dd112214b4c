"""Solvers: builders of plans, and the one loop that runs them."""

from collections.abc import Callable

from sfumato.solvers import grids
from sfumato.solvers.build import Solver
from sfumato.solvers.ddim import DDIM, DDPM, Euler
from sfumato.solvers.multistep import Multistep
from sfumato.solvers.plan import Plan, State
from sfumato.solvers.runge_kutta import Heun, RungeKutta

# The names that the command line takes.
NAMES: dict[str, Callable[[], Solver]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "euler": Euler,
    "heun": Heun,
    "multistep": Multistep,
}


def default() -> Solver:
    """Second-order Adams-Bashforth in the flow row on the `auto` grid: finite at both ends of every schedule."""
    return Multistep(order=2)


__all__ = [
    "DDIM", "DDPM", "NAMES", "Euler", "Heun", "Multistep", "Plan", "RungeKutta", "Solver", "State", "default", "grids",
]  # fmt: skip
