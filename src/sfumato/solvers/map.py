"""Sampling a flow map: one call per step, from node to node along the ODE, with renewed noise on request.

    z_m = X(z_t, t, m),   z_s ~ q(z_s | z_m),   sigma_m / alpha_m = sqrt(1 - gamma^2) sigma_s / alpha_s

gamma = 0 stays on the ODE (m = s); gamma = 1 maps to the data and noises them again, as consistency models do.
Sources: Song et al. 2023 (2303.01469), Alg. 1; Kim et al. 2023 (2310.02279), Alg. 3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from sfumato import schema
from sfumato.belief import broadcast
from sfumato.errors import SfumatoError
from sfumato.process import Gaussian, angles
from sfumato.registry import register
from sfumato.schedule import Schedule
from sfumato.solvers import grids, lines
from sfumato.solvers.build import Builder, Solver
from sfumato.solvers.lines import Corrector
from sfumato.solvers.plan import Plan
from sfumato.state import numbers_like


@dataclasses.dataclass(frozen=True)
class Angle(grids.Grid):
    """Equal steps of the angle of a process, the clock of flow maps; without one of arctan(sigma / alpha)."""

    process: Any = None

    def of(self, process: Any) -> Angle:
        return self if isinstance(process, Schedule) else Angle(process)

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        process = Gaussian(schedule) if self.process is None else self.process
        start, stop = (float(angles.angle(process, t)) for t in (t_start, t_stop))
        theta = torch.linspace(start, 0.0 if t_stop == 0 else stop, steps + 1, dtype=torch.float64)
        return torch.cat((torch.tensor([t_start]), angles.time(process, theta[1:-1]), torch.tensor([t_stop])))


@register("solver", "map")
@dataclasses.dataclass(frozen=True)
class Map(Solver):
    """The steps of a flow map (`FlowMap`), exact at any number of steps if the map is.

    gamma: how much of the noise each step renews, from 0, none, to 1, all: only where the map has errors that
    accumulate can it help. The last step, to the clean signal, draws no noise.
    """

    any_process = asks_alone = True

    gamma: float = 0.0
    grid: grids.Grid = dataclasses.field(default_factory=Angle)

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise SfumatoError(f"gamma is the share of renewed noise, from 0 to 1, not {self.gamma:g}.")

    def build(self, b: Builder) -> Plan:
        for t, s in zip(b.nodes, b.nodes[1:], strict=False):
            b.call(t)
            b.jump(MapStep(self.gamma if s > 0 else 0.0))
        return b.plan(f"Map(gamma={self.gamma:g})" if self.gamma else "Map", 1)


@final
@dataclasses.dataclass
class MapStep(Corrector):
    """One call of the map and, for gamma above 0, the noise that it renews."""

    gamma: float = 0.0

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return self.gamma > 0

    def __call__(
        self, model: Any, z: Tensor, t: float, s: float, state: Tensor | None, noise: Any
    ) -> tuple[Tensor, None]:
        if not getattr(model.model, "two_times", False):
            raise SfumatoError(
                f"The solver map moves along a flow map, and a {type(model.model).__name__} is none: take another "
                "solver, or distil the model first (to guide a map, distil the guided teacher)."
            )
        if not self.gamma:
            return model(z, t, until=s).to(s), None
        process = model.process
        level = 0.0 if self.gamma == 1 else float(process.schedule.logsnr(s)) - math.log1p(-(self.gamma**2))
        m = 0.0 if self.gamma == 1 else float(process.schedule.time(level))
        z = model(z, t, until=m).to(m)
        alpha, sigma = process.schedule(s) if m == 0 else process.jump(m, s)
        return broadcast(alpha, z) * z + broadcast(sigma, z) * numbers_like(noise, z), None

    def to_dict(self) -> dict[str, Any]:
        """The step as JSON."""
        return {"map": self.gamma}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MapStep:
        """The inverse of `to_dict`."""
        return cls(float(data["map"]))


lines.KINDS["map"] = lines.Kind(schema.fields({"map": schema.number(0, 1)}, rest=None), MapStep.from_dict)
