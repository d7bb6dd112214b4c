"""Langevin dynamics at fixed noise levels: as a corrector between steps, and annealed from level to level.

    z <- z + e score + sqrt(2 e) xi  =  (1 - delta) z + delta alpha x + sigma sqrt(2 delta) xi,   e = delta sigma^2

leaves p_t invariant as delta -> 0; a finite step has a bias of O(delta).
Sources: Song and Ermon 2019 (1907.05600), Algorithm 1; Song et al. 2021 (2011.13456), Algorithms 2-5.
"""

from __future__ import annotations

import dataclasses
import math

from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Form, Solver, ddim
from sfumato.solvers.clocks import Point
from sfumato.solvers.ddim import bridge
from sfumato.solvers.plan import Plan


def langevin(at: Point, k: int, delta: float) -> tuple[Form, float]:
    """The update with step delta sigma^2, and the standard deviation of its noise."""
    alpha, sigma = at
    return {("z", k): 1 - delta, ("x", k): delta * alpha}, sigma * math.sqrt(2 * delta)


@register("solver", "predictor-corrector")
@dataclasses.dataclass(frozen=True)
class PredictorCorrector(Solver):
    """A step of the eta family, then `corrections` Langevin updates at the new level (2011.13456, Alg. 2-3).

    The paper's step is e = 2 (snr |xi| / |score|)^2 with norms measured on the batch. Here their expected values are
    used, |xi|^2 = D and |score|^2 = D / sigma^2, so that e = 2 snr^2 sigma^2 is a fixed coefficient and samples do not
    depend on their batch (the paper's extra factor alpha for VP is per step, nearly 1).
    eta = 1 predicts with the reverse SDE, 0 with the ODE. The bias of the updates, O(snr^2), does not vanish with more
    steps, so the order is 0. Calls: steps + corrections (steps - 1); the clean signal is not corrected.
    """

    snr: float = 0.16
    corrections: int = 1
    eta: float = 1.0
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)

    def __post_init__(self) -> None:
        if not 0 < self.snr < 1:
            raise SfumatoError(f"PredictorCorrector needs 0 < snr < 1, got {self.snr:g}: beyond 1 its updates diverge.")
        if self.corrections < 0:
            raise SfumatoError(f"PredictorCorrector needs corrections >= 0, got {self.corrections}.")
        if not 0 <= self.eta < math.inf:
            raise SfumatoError(f"PredictorCorrector needs eta >= 0, got {self.eta:g}.")

    def build(self, b: Builder) -> Plan:
        for i in range(len(b.nodes) - 1):
            k, end = b.call(b.nodes[i]), b.node(i + 1)
            b.advance(*bridge(b.path[k], end, k, self.eta))
            for _ in range(self.corrections if end[1] > 0 else 0):
                b.advance(*langevin(end, b.call(b.nodes[i + 1]), 2 * self.snr**2))
        return b.plan(f"PredictorCorrector(snr={self.snr:g}, corrections={self.corrections}, eta={self.eta:g})", 0)


@register("solver", "annealed-langevin")
@dataclasses.dataclass(frozen=True)
class AnnealedLangevin(Solver):
    """`updates` Langevin updates at each level, z <- z + a/2 score + sqrt(a) xi, a = step sigma^2 (1907.05600, Alg. 1).

    step is the paper's epsilon / sigma_L^2 (0.2 there, with 10 levels of 100 updates); a small step lags behind the
    decreasing levels, a large one increases the bias. z / alpha is kept from level to level (for VE, z itself).
    The nodes of the grid are the levels; the last call takes E[x|z], which removes the remaining noise (2009.05475).
    Calls: steps updates + 1 to the clean signal, (steps + 1) updates to an earlier stop; a level without signal (the
    start of a flow) gets a single call. The order is 0: the Langevin bias, O(step), remains with any number of levels.
    """

    updates: int = 10
    step: float = 0.5
    grid: grids.Grid = dataclasses.field(default_factory=grids.LogSNR)

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise SfumatoError(f"AnnealedLangevin needs updates >= 1, got {self.updates}.")
        if not 0 < self.step < 4:
            raise SfumatoError(f"AnnealedLangevin needs 0 < step < 4, got {self.step:g}: beyond 4 its updates diverge.")

    def build(self, b: Builder) -> Plan:
        end = b.node(len(b.nodes) - 1)
        levels = b.nodes[:-1] if end[1] == 0 else b.nodes
        for i, t in enumerate(levels):
            for _ in range(self.updates - 1 if b.point(t)[0] > 0 else 0):
                b.advance(*langevin(b.point(t), b.call(t), self.step / 2))
            k, following = b.call(t), b.point(levels[min(i + 1, len(levels) - 1)])
            b.advance(*self._move(b.path[k], following, k))
        if end[1] == 0:
            k = b.call(levels[-1])
            b.advance(ddim(b.path[k], end, k))
        return b.plan(f"AnnealedLangevin(updates={self.updates}, step={self.step:g})", 0)

    def _move(self, at: Point, to: Point, k: int) -> tuple[Form, float]:
        """The last update at a level, rescaled to the next level; from a level without signal a DDIM step."""
        if at[0] == 0:
            return ddim(at, to, k), 0.0
        ratio = to[0] / at[0]
        form, noise = langevin(at, k, self.step / 2)
        return {key: ratio * c for key, c in form.items()}, ratio * noise
