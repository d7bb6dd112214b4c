"""Draw the noise of a plan as increments of one Wiener process, whatever its steps.

    xi_k = (W(c_{k+1}) - W(c_k)) / sqrt(c_{k+1} - c_k)
    c = sigmoid(logsnr / 8) = alpha^(1/4) / (alpha^(1/4) + sigma^(1/4))

The clock c rises from 0 at pure noise to 1 at the clean signal for every schedule. With more steps the sample of a seed
therefore converges, and to the same limit under any schedule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.registry import make, register
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Solver
from sfumato.solvers.clocks import Point
from sfumato.solvers.ddpm import DDPM
from sfumato.solvers.draws import NoiseSource
from sfumato.solvers.plan import Plan


def level_clock(point: Point) -> float:
    """c of (alpha, sigma), finite at both ends."""
    alpha, sigma = (value**0.25 for value in point)
    return alpha / (alpha + sigma)


def spans(name: str, path: Sequence[Point], noisy: Sequence[bool]) -> dict[int, tuple[float, float]]:
    """For each call that draws noise, the interval of the clock that it covers, starting where the last one ended."""
    covered, start = {}, level_clock(path[0])
    for k, draws in enumerate(noisy):
        if draws:
            end = level_clock(path[k + 1])
            if end - start < noise.WienerProcess.FINEST:
                raise SfumatoError(
                    f"The noise of the solver {name} cannot follow a Brownian path (call {k} does not reduce the noise "
                    "level, or by too little): sample without brownian."
                )
            covered[k], start = (start, end), end
    return covered


def along(plan: Plan, seed: int, index: Tensor) -> Path:
    """The noise source for a plan in which row i follows the Wiener process of (seed, index_i)."""
    if not plan.path:
        raise SfumatoError(f"The solver {plan.name} has no (alpha, sigma) path for Brownian noise: leave brownian out.")
    steps = spans(plan.name, plan.path, [line.draws for line in plan.lines])
    return Path(noise.WienerProcess(seed, index), steps)


@final
@dataclasses.dataclass(frozen=True)
class Path(NoiseSource):
    """The increments of one Wiener process per row over the clock intervals of the calls."""

    wiener: noise.WienerProcess
    spans: dict[int, tuple[float, float]]
    step: int | Tensor = 0

    def at(self, step: int | Tensor) -> Path:
        return dataclasses.replace(self, step=step)

    def rows(self, rows: Tensor) -> Path:
        step = self.step[rows] if isinstance(self.step, Tensor) else self.step
        return dataclasses.replace(self, wiener=self._of(torch.as_tensor(self.wiener.index)[rows]), step=step)

    def renumbered(self, index: Tensor) -> Path:
        return dataclasses.replace(self, wiener=self._of(index))

    def _of(self, index: Tensor) -> noise.WienerProcess:
        return noise.WienerProcess(self.wiener.seed, index)

    def like(self, state: Tensor) -> Tensor:
        if isinstance(self.step, int):
            start, end = self.spans[self.step]
            return self.wiener.between(start, end, state) / math.sqrt(end - start)
        out = torch.zeros_like(state)
        for step in self.step.unique().tolist():
            rows = torch.nonzero(self.step == step)[:, 0]
            if step in self.spans:
                out[rows] = self.rows(rows).at(step).like(state[rows])
        return out


@register("solver", "brownian")
@final
@dataclasses.dataclass(frozen=True)
class Brownian(Solver):
    """A solver whose noise follows one Brownian path per sample: with more steps the sample of a seed converges.

    solver: a solver or its name.
    """

    solver: Solver = dataclasses.field(default_factory=DDPM)

    def __post_init__(self) -> None:
        object.__setattr__(self, "solver", make("solver", self.solver))

    @property
    def grid(self) -> grids.Grid:  # type: ignore[override]
        return self.solver.grid

    @property
    def any_process(self) -> bool:  # type: ignore[override]
        return self.solver.any_process

    def build(self, b: Builder) -> Plan:
        return self.solver.build(b).along_paths()
