"""What is not a table: a solver whose coefficients depend on the state walks by itself."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sfumato.model import Model
from sfumato.schedule import Schedule
from sfumato.solvers.plan import Noise, State


@runtime_checkable
class Walk(Protocol):
    """What `sampling` needs beside a `Plan`: a name, the start times[0], the stop, and the way between them."""

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> int: ...

    @property
    def calls(self) -> int: ...

    @property
    def times(self) -> tuple[float, ...]: ...

    @property
    def stop(self) -> float: ...

    def walk(self, model: Model, z: Tensor, noise: Noise | None = None, **cond: Any) -> Iterator[State]:
        """Yields a State before each step and one at the end, as `Plan.run` does."""
        ...


class WalkSolver(abc.ABC):
    """A rule that gives a Walk for a schedule and a number of steps."""

    @abc.abstractmethod
    def plan(self, schedule: Schedule, steps: int = 20, t_start: float = 1.0, t_stop: float = 0.0) -> Walk: ...
