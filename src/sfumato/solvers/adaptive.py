"""Adaptive solvers of the probability-flow ODE: Dormand-Prince and the others of `torchdiffeq`.

    dw/dtau = y,   w = z / (alpha + sigma),   tau = sigma / (alpha + sigma),   y = E[eps|z] - E[x|z]

The flow row of `clocks`, finite at both ends of every schedule. Source: Dormand and Prince 1980; Chen et al. 2018
(1806.07366) for the library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.registry import register
from sfumato.schedule import Schedule
from sfumato.solvers.clocks import clock
from sfumato.solvers.grids import LOGSNR_LIMIT
from sfumato.solvers.plan import Noise, State
from sfumato.solvers.walk import WalkSolver

METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
_FLOW = clock("flow")


@register("solver", "adaptive")
@dataclasses.dataclass(frozen=True)
class Adaptive(WalkSolver):
    """Steps as long as the tolerances allow: |error| <= atol + rtol |w| in the root mean square over the whole batch.

    method: one of torchdiffeq's dopri5, dopri8, bosh3, fehlberg2, adaptive_heun. The number of steps asked for is how
    many states a trajectory shows; each costs a call beside those that the method makes. The steps are those of the
    batch, so that a sample depends on its batch within the tolerance. Needs the extra `adaptive`.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-6

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SfumatoError(f"Unknown adaptive method {self.method!r}: known are {', '.join(METHODS)}.")
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise SfumatoError(f"Adaptive needs tolerances above 0, got rtol {self.rtol:g} and atol {self.atol:g}.")

    def plan(self, schedule: Schedule, steps: int = 20, t_start: float = 1.0, t_stop: float = 0.0) -> AdaptiveWalk:
        """The way from t_start to t_stop (0: the clean signal), to be gone with any model of this schedule."""
        if steps < 1 or not 0 <= t_stop < t_start <= 1:
            raise SfumatoError(
                f"Sampling needs steps >= 1 and 0 <= t_stop < t_start <= 1, got {steps}, {t_stop:g} and {t_start:g}."
            )
        last = t_stop
        if t_stop == 0 and float(schedule.sigma(0.0)) == 0:  # E[eps|z] is not continuous there: end a little before
            last = float(schedule.time(LOGSNR_LIMIT))
        return AdaptiveWalk(self, schedule, steps, float(t_start), float(t_stop), last)


@dataclasses.dataclass
class AdaptiveWalk:
    """A way for `sampling`; `calls` is how often the last walk called the model."""

    solver: Adaptive
    schedule: Schedule
    steps: int
    start: float
    stop: float
    last: float
    calls: int = 0

    @property
    def name(self) -> str:
        return f"Adaptive({self.solver.method}, rtol={self.solver.rtol:g}, atol={self.solver.atol:g})"

    @property
    def times(self) -> tuple[float, ...]:
        return (self.start,)

    def _point(self, tau: float) -> tuple[float, float]:
        """(t, S) at a flow time."""
        t = float(self.schedule.time(_FLOW.logsnr(tau)))
        for bound in (self.last, self.start):  # the inverse is exact to rounding alone
            t = bound if abs(t - bound) < 1e-12 else t
        alpha, sigma = (float(v) for v in self.schedule(t))
        return t, alpha + sigma

    def walk(self, model: Model, z: Tensor, noise: Noise | None = None, **cond: Any) -> Iterator[State]:
        """States at `steps` equal intervals of tau, and the end; the model is called in the dtype of z."""
        odeint, dtype = _torchdiffeq(), z.dtype
        self.calls = 0

        def slope(tau: Tensor, w: Tensor) -> Tensor:
            t, norm = self._point(float(tau))
            self.calls += 1
            belief = model((norm * w).to(dtype), t, **cond)
            return (belief.eps - belief.x).to(w.dtype)

        begin, end = (_FLOW.time(*map(float, self.schedule(t))) for t in (self.start, self.last))
        taus = torch.linspace(begin, end, self.steps + 1, dtype=torch.float64, device=z.device)
        first = z.to(torch.float64) / self._point(begin)[1]
        tolerances = {"rtol": self.solver.rtol, "atol": self.solver.atol}
        try:
            states = odeint(slope, first, taus, method=self.solver.method, **tolerances)
        except AssertionError as error:  # torchdiffeq's word for a step that has shrunk to nothing
            raise SfumatoError(f"{self.name} cannot keep its tolerances ({error}): give larger ones.") from None
        if not bool(states[-1].isfinite().all()):
            raise SfumatoError(
                f"{self.name} met numbers that are not finite: give larger tolerances, or check the model."
            )
        for tau, w in zip(taus.tolist(), states, strict=True):
            t, norm = self._point(tau)
            state = (norm * w).to(dtype)
            if tau == end and self.stop > 0:
                yield State(state, self.stop, None)
                return
            self.calls += 1
            belief = model(state, t, **cond)
            yield State(state, t, belief)
        yield State(belief.x, self.stop, None)


def _torchdiffeq() -> Any:
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise SfumatoError(
            "Adaptive solvers need torchdiffeq, which is not installed: pip install 'sfumato[adaptive]'."
        ) from None
    return odeint
