"""The noise of a walk: a `noise.Noise`, or another `NoiseSource`."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, final

from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.state import State, numbers_like

Draw = Callable[[int, Tensor], Tensor]  # (call, like) -> standard normal numbers of its shape


class NoiseSource(abc.ABC):
    """Standard normal numbers for the rows of a walk, which may be at different calls."""

    @abc.abstractmethod
    def at(self, step: int | Tensor) -> NoiseSource:
        """The source at these calls, one for all rows or int64 (B,)."""

    @abc.abstractmethod
    def rows(self, rows: Tensor) -> NoiseSource:
        """The source for some of the rows."""

    @abc.abstractmethod
    def renumbered(self, index: Tensor) -> NoiseSource:
        """The source with these sample numbers for its rows."""

    @abc.abstractmethod
    def like(self, state: State) -> State: ...


@final
class Function(NoiseSource):
    """A function (call, like) as a source, for rows that are all at the same call."""

    def __init__(self, draw: Draw, step: int | Tensor = 0) -> None:
        self.draw, self.step = draw, step

    def at(self, step: int | Tensor) -> Function:
        return Function(self.draw, step)

    def rows(self, rows: Tensor) -> NoiseSource:
        raise SfumatoError(
            "A function (call, like) draws noise for all rows of a walk at once, but these rows are split up: use a "
            "noise.Noise, which draws for each sample separately."
        )

    def renumbered(self, index: Tensor) -> NoiseSource:
        return self.rows(index)

    def like(self, state: State) -> State:
        assert isinstance(self.step, int)
        return self.draw(self.step, state)


AnyNoise = Noise | NoiseSource | Draw


def as_source(noise: AnyNoise | None) -> Noise | NoiseSource | None:
    if isinstance(noise, Noise):
        return noise.ahead()
    return noise if noise is None or isinstance(noise, NoiseSource) else Function(noise)


def renumbered(noise: Noise | NoiseSource, index: Tensor) -> Noise | NoiseSource:
    return dataclasses.replace(noise, index=index, kept=None) if isinstance(noise, Noise) else noise.renumbered(index)


def drawn(noise: Noise | NoiseSource, call: int, state: State) -> State:
    """Standard normal numbers of one call for all rows of a state."""
    source = noise.at(call)
    return source.like(state) if isinstance(source, NoiseSource) else numbers_like(source, state)


def for_belief(noise: Noise | NoiseSource, state: State) -> Any:
    """The noise in the form that `belief.to` accepts: a `Noise` itself, or the numbers of a `NoiseSource`."""
    return noise.like(state) if isinstance(noise, NoiseSource) else noise
