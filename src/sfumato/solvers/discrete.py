"""Ancestral sampling of symbols: z_s ~ p(z_s | z_t), each symbol by itself, over equal steps of t.

Sohl-Dickstein et al. 2015 (1503.03585), Section 2.2; with the belief in place of x, Hoogeboom et al. 2021 (2102.05379).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor

from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.schedule import Schedule
from sfumato.solvers.plan import Noise, State
from sfumato.solvers.walk import WalkSolver


@dataclasses.dataclass(frozen=True)
class AncestralWalk:
    """The walk through `times`, from prior to `stop`, for a model whose process is `Uniform`."""

    times: tuple[float, ...]
    stop: float
    name: str = "Ancestral"

    @property
    def steps(self) -> int:
        return len(self.times)

    @property
    def calls(self) -> int:
        return len(self.times)

    def walk(self, model: Model, z: Tensor, noise: Noise | None = None, **cond: Any) -> Iterator[State]:
        """Yields a State before each step and one at the end; its belief is `Logits`, its z int64."""
        if noise is None:
            raise SfumatoError("Ancestral sampling draws symbols: it needs noise.")
        process = cast(Any, model).process
        for call, (t, s) in enumerate(zip(self.times, (*self.times[1:], self.stop), strict=True)):
            belief: Any = model(z, t, **cond)
            yield State(z, t, cast(Estimate, belief))
            prob = process.bridge(belief, s)
            z = process.draw(prob, noise(call, prob[..., 0]))
        yield State(z, self.stop, None)


@dataclasses.dataclass(frozen=True)
class Ancestral(WalkSolver):
    """The reverse chain of the discrete processes, one call a step."""

    def plan(self, schedule: Schedule, steps: int = 20, t_start: float = 1.0, t_stop: float = 0.0) -> AncestralWalk:
        if steps < 1:
            raise SfumatoError(f"Sampling needs at least 1 step, not {steps}.")
        if not 0 <= t_stop < t_start <= 1:
            raise SfumatoError(f"Sampling runs from t_start down to t_stop, not from {t_start:g} to {t_stop:g}.")
        grid = [t_start + (t_stop - t_start) * k / steps for k in range(steps + 1)]
        return AncestralWalk(tuple(grid[:-1]), t_stop)
