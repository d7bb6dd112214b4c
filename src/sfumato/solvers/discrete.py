"""Ancestral sampling of any process: z_s ~ p(z_s | z_t) under the belief, over equal steps of t.

Of symbols each by itself: Sohl-Dickstein et al. 2015 (1503.03585), Section 2.2; with the belief in place of x,
Hoogeboom et al. 2021 (2102.05379). Of a Gaussian process it is DDPM (Ho et al. 2020, 2006.11239).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.process import Uniform
from sfumato.schedule import Schedule
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Solver
from sfumato.solvers.lines import Bridge, Jump
from sfumato.solvers.plan import Plan
from sfumato.state import numbers_like


@dataclasses.dataclass(frozen=True)
class EqualTimes(grids.Grid):
    """t_start + (t_stop - t_start) k / steps."""

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        return torch.tensor([t_start + (t_stop - t_start) * k / steps for k in range(steps + 1)], dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class SymbolStep(Jump):
    """A draw of every symbol under the belief."""

    process: Uniform

    def __call__(self, z: Tensor, belief: Any, s: Tensor | float, noise: Any) -> Tensor:
        prob = self.process.bridge(belief, s)
        return self.process.draw(prob, numbers_like(noise, prob[..., 0]))


@dataclasses.dataclass(frozen=True)
class Ancestral(Solver):
    """The reverse chain of any process, one call a step; what the belief draws with eta = 1."""

    any_process: ClassVar[bool] = True
    grid: grids.Grid = dataclasses.field(default_factory=EqualTimes)

    def build(self, b: Builder) -> Plan:
        for t in b.nodes[:-1]:
            b.times.append(t)
            b.jump(SymbolStep(b.process) if isinstance(b.process, Uniform) else Bridge(eta=1.0))
        return Plan("Ancestral", len(b.times), tuple(b.times), b.nodes[-1], (), tuple(b.lines))
