"""Zigzag sampling: each step of guidance is undone under a lower scale and taken again."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, final

from torch import Tensor

from sfumato.belief import Estimate
from sfumato.errors import SfumatoError, finite
from sfumato.guidance.guided import Guided
from sfumato.solvers import Plan, Solver, grids
from sfumato.solvers.build import Builder, ddim
from sfumato.solvers.clocks import Point
from sfumato.solvers.lines import Corrector
from sfumato.solvers.walk import CountingModel


@dataclasses.dataclass(frozen=True)
class Zigzag(Solver):
    """z_s = S_g(z_t),   z_t' = S_low^-1(z_s),   z_s' = S_g(z_t'):   DDIM steps S, for a model of `sf.guide` by scale g

    low: the scale under which the step is undone, by the belief at z_s; 0, the paper's, is the model without the
    conditions. Three calls a step, one in the last. Law on Gaussians: in the limit of many steps that of `Guided` with
    the scale 2 g - low, since two steps under g and one back under `low` are then one under 2 g - low; few steps differ
    by an error of order 1. Source: Bai et al. 2024 (2412.10891), Algorithm 1, through all the steps.
    """

    low: float = 0.0
    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", finite("low of Zigzag", self.low))

    def build(self, b: Builder) -> Plan:
        for i, t in enumerate(b.nodes[:-1]):
            k, to = b.call(t), b.node(i + 1)
            if i == len(b.nodes) - 2:
                b.advance(ddim(b.path[k], to, k))
            else:
                b.jump(_Turn(self.low, b.path[k], to))
        return b.plan(f"Zigzag(low={self.low:g})", 1)


@final
@dataclasses.dataclass
class _Turn(Corrector):
    """One step from (alpha, sigma) = start to end, back under the scale `low`, and there again."""

    low: float
    start: Point
    end: Point
    draws = False
    calls = 3

    def __call__(self, model: CountingModel, z: Tensor, t: float, s: float, state: Any, noise: Any) -> tuple[Any, Any]:
        guided = model.model
        if type(guided) is not Guided or not isinstance(guided.scale, float):
            raise SfumatoError("Zigzag lowers one scale of guidance: sample sf.guide(model, scale) with it.")
        lower = copy.copy(guided)
        lower.scale = self.low
        there = _step(self.start, self.end, z, model(z, t))
        back = _step(self.end, self.start, there, lower(there, s, **model.cond))
        return _step(self.start, self.end, back, model(back, t)), None


def _step(start: Point, end: Point, z: Tensor, belief: Estimate) -> Tensor:
    """alpha_s x + sigma_s eps at the end, from z and the belief at the start."""
    kept = end[1] / start[1]
    return (kept * z + (end[0] - kept * start[0]) * belief.x).to(z.dtype)
