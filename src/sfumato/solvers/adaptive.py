"""Adaptive solvers of the probability-flow ODE: Dormand-Prince and other methods of `torchdiffeq`.

    dw/dtau = y,   w = z / (alpha + sigma),   tau = sigma / (alpha + sigma),   y = E[eps|z] - E[x|z]

The flow row of `clocks`, finite at both ends of every schedule. Source: Dormand and Prince 1980; Chen et al. 2018
(1806.07366) for the library.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.schedule import NODE_LIMIT, Schedule
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Solver
from sfumato.solvers.clocks import clock
from sfumato.solvers.lines import Corrector
from sfumato.solvers.plan import Plan

METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
_FLOW = clock("flow")


@register("solver", "adaptive")
@dataclasses.dataclass(frozen=True)
class Adaptive(Solver):
    """Adaptive steps with |error| <= atol + rtol |w| in the root mean square over the whole batch.

    method: one of torchdiffeq's dopri5, dopri8, bosh3, fehlberg2, adaptive_heun. `steps` is only the number of states
    that a trajectory shows; each costs one call on top of the method's own. The whole batch shares its steps, so a
    sample depends on its batch within the tolerance. Needs the extra `adaptive`.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-6
    grid: ClassVar[grids.Grid] = grids.Uniform()  # type: ignore[misc]  # only its ends matter

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SfumatoError(f"Unknown adaptive method {self.method!r}: use one of {', '.join(METHODS)}.")
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise SfumatoError(f"Adaptive needs tolerances above 0, got rtol {self.rtol:g} and atol {self.atol:g}.")

    def build(self, b: Builder) -> Plan:
        """A plan whose first line integrates from t_start to t_stop; the other lines read states off that solution."""
        start, stop, steps = b.nodes[0], b.nodes[-1], len(b.nodes) - 1
        last = stop
        if stop == 0 and b.point(0.0)[1] == 0:  # E[eps|z] is discontinuous at sigma = 0: stop just before
            last = float(b.schedule.time(NODE_LIMIT))
        begin, end = (_FLOW.time(*b.point(t)) for t in (start, last))
        taus = tuple(torch.linspace(begin, end, steps + 1, dtype=torch.float64).tolist())
        solution = Solution(self, b.schedule, (start, last), taus)
        for k, tau in enumerate(taus if stop == 0 else taus[:-1]):
            b.call(solution.point(tau)[0])
            b.jump(AdaptiveStep(solution, k))
        name = f"Adaptive({self.method}, rtol={self.rtol:g}, atol={self.atol:g})"
        return dataclasses.replace(b.plan(name, 1), steps=steps)


@final
@dataclasses.dataclass(frozen=True)
class Solution:
    """The flow of a model between two times, within a solver's tolerances; taus: the flow times of its states."""

    solver: Adaptive
    schedule: Schedule
    ends: tuple[float, float]
    taus: tuple[float, ...]

    def point(self, tau: float) -> tuple[float, float]:
        """(t, S) at a flow time."""
        t = float(self.schedule.time(_FLOW.logsnr(tau)))
        for bound in reversed(self.ends):  # undo the rounding of the inverse at the ends
            t = bound if abs(t - bound) < 1e-12 else t
        alpha, sigma = (float(v) for v in self.schedule(t))
        return t, alpha + sigma

    def states(self, model: Any, z: Tensor) -> Tensor:
        """w at every tau, float64 (B, steps + 1, ...); the model is called in the dtype of z."""
        odeint = torchdiffeq().odeint

        def slope(tau: Tensor, w: Tensor) -> Tensor:
            t, norm = self.point(float(tau))
            belief = model((norm * w).to(z.dtype), t)
            return (belief.eps - belief.x).to(w.dtype)

        taus = torch.tensor(self.taus, dtype=torch.float64, device=z.device)
        first = z.to(torch.float64) / self.point(self.taus[0])[1]
        tolerances = {"rtol": self.solver.rtol, "atol": self.solver.atol}
        try:
            states = odeint(slope, first, taus, method=self.solver.method, **tolerances)
        except AssertionError as error:  # raised by torchdiffeq when a step underflows
            raise SfumatoError(f"Adaptive cannot meet its tolerances ({error}): use larger ones.") from None
        if not bool(states[-1].isfinite().all()):
            raise SfumatoError("Adaptive reached a state that is not finite: use larger tolerances or check the model.")
        return states.transpose(0, 1)


@final
@dataclasses.dataclass
class AdaptiveStep(Corrector):
    """The step from tau_k to the next state: the first line integrates to the end and carries all states along."""

    solution: Solution
    k: int
    calls: int = 1
    draws: bool = False

    def __call__(
        self, model: Any, z: Tensor, t: float, s: float, state: Tensor | None, noise: Any
    ) -> tuple[Tensor, Tensor]:
        belief, before = model(z, t), model.calls
        state = self.solution.states(model, z) if state is None else state
        self.calls = 1 + model.calls - before
        if self.k + 1 == len(self.solution.taus):  # the clean signal
            return belief.x, state
        norm = self.solution.point(self.solution.taus[self.k + 1])[1]
        return (norm * state[:, self.k + 1]).to(z.dtype), state


def torchdiffeq() -> Any:
    """The library of that name. Raises SfumatoError where it is not installed."""
    try:
        import torchdiffeq as found
    except ImportError:
        raise SfumatoError(
            "Adaptive solvers and the adjoint ODE need torchdiffeq, which is not installed: "
            "pip install 'sfumato[adaptive]'."
        ) from None
    return found
