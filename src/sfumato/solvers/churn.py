"""EDM's stochastic sampler: add a little noise, then take one ODE step from there.

    t -> t^ with (sigma/alpha)^ = (1 + gamma) sigma/alpha,   gamma = min(S_churn / steps, sqrt(2) - 1)
    z^ = a z + S_noise c xi,   a = alpha_t^ / alpha_t,   c^2 = sigma_t^^2 - a^2 sigma_t^2;   then Heun from t^ to s

Source: Karras et al. 2022 (2206.00364), Algorithm 2, for any (alpha, sigma).
"""

from __future__ import annotations

import dataclasses
import math

from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Form, Solver, ddim
from sfumato.solvers.clocks import clock
from sfumato.solvers.plan import Plan


@register("solver", "churn")
@dataclasses.dataclass(frozen=True)
class Churn(Solver):
    """2 steps - 1 calls. Weak order 2 with s_noise = 1, since the added noise takes p_t to p_t^ exactly.

    s_churn: the total amount of noise over the run. s_tmin, s_tmax: add noise only where sigma/alpha lies between them.
    s_noise: a factor on its standard deviation, above 1 if a network removes too much (1.003 in the paper). The start,
    which is pure noise, is not churned. order=1 takes Euler steps, one call each. The paper uses row='eps' on the grid
    Rho(7), and s_churn from 30 to 80 for trained networks; for an exact model smaller values are more accurate, since
    churn lengthens each step.
    """

    s_churn: float = 10.0
    s_tmin: float = 0.05
    s_tmax: float = 50.0
    s_noise: float = 1.0
    order: int = 2
    row: str = "flow"
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise SfumatoError(f"Churn has order 1 or 2, got {self.order}.")
        if not 0 <= self.s_churn < math.inf or not 0 < self.s_noise < math.inf:
            raise SfumatoError(f"Churn needs s_churn >= 0 and s_noise > 0, got {self.s_churn:g} and {self.s_noise:g}.")
        if not self.s_tmin <= self.s_tmax:
            raise SfumatoError(f"Churn needs s_tmin <= s_tmax, got {self.s_tmin:g} and {self.s_tmax:g}.")

    def build(self, b: Builder) -> Plan:
        steps, t = len(b.nodes) - 1, b.nodes[0]
        for i in range(steps):
            form = self._descend(b, t, i)
            if i == steps - 1:
                b.advance(form)
                break
            t = self._churned(b, b.nodes[i + 1], steps)
            (alpha, sigma), (alpha_up, sigma_up) = b.node(i + 1), b.point(t)
            ratio = alpha_up / alpha
            added = math.sqrt(max(sigma_up**2 - (ratio * sigma) ** 2, 0.0)) if t > b.nodes[i + 1] else 0.0
            b.advance({key: ratio * c for key, c in form.items()}, self.s_noise * added)
        return b.plan(f"Churn(s_churn={self.s_churn:g})", self.order)

    def _churned(self, b: Builder, t: float, steps: int) -> float:
        """The time t^ of the higher noise level, at most 1."""
        alpha, sigma = b.point(t)
        gamma = min(self.s_churn / steps, math.sqrt(2) - 1)
        if gamma == 0 or sigma == 0 or not self.s_tmin <= sigma / alpha <= self.s_tmax:
            return t
        return max(t, float(b.schedule.time(-2 * math.log((1 + gamma) * sigma / alpha))))

    def _descend(self, b: Builder, t: float, i: int) -> Form:
        """The state at node i + 1 from time t by Heun's method, or by DDIM if the clock is infinite at an end."""
        first, end, rule = b.call(t), b.node(i + 1), clock(self.row)
        start, stop = rule.time(*b.path[first]), rule.time(*end)
        if self.order == 1 or end[1] == 0 or not (math.isfinite(start) and math.isfinite(stop)):
            return ddim(b.path[first], end, first)
        h, slope = stop - start, b.value(rule, first)
        b.advance(b.move(rule, first, end, [(h, slope)]))
        second = b.value(rule, b.call(b.nodes[i + 1]))
        return b.move(rule, first, end, [(h / 2, slope), (h / 2, second)])
