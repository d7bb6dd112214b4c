"""Where the noise of a walk comes from: a `noise.Noise`, or a `Source` of another law of its calls."""

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


class Source(abc.ABC):
    """Standard normal numbers for the rows of a walk, each at a call of its own."""

    @abc.abstractmethod
    def at(self, step: int | Tensor) -> Source:
        """At these calls, one for all rows or int64 (B,)."""

    @abc.abstractmethod
    def rows(self, rows: Tensor) -> Source:
        """For some of the rows."""

    @abc.abstractmethod
    def renumbered(self, index: Tensor) -> Source:
        """For rows of these sample numbers."""

    @abc.abstractmethod
    def like(self, state: State) -> State: ...


@final
class Function(Source):
    """A function (call, like), for rows that stay together."""

    def __init__(self, draw: Draw, step: int | Tensor = 0) -> None:
        self.draw, self.step = draw, step

    def at(self, step: int | Tensor) -> Function:
        return Function(self.draw, step)

    def rows(self, rows: Tensor) -> Source:
        raise SfumatoError(
            "A function (call, like) draws noise for all rows of a walk at once, and these rows part: give a "
            "noise.Noise, which names each row's sample."
        )

    def renumbered(self, index: Tensor) -> Source:
        return self.rows(index)

    def like(self, state: State) -> State:
        assert isinstance(self.step, int)
        return self.draw(self.step, state)


AnyNoise = Noise | Source | Draw


def as_source(noise: AnyNoise | None) -> Noise | Source | None:
    return noise if noise is None or isinstance(noise, Noise | Source) else Function(noise)


def renumbered(noise: Noise | Source, index: Tensor) -> Noise | Source:
    return dataclasses.replace(noise, index=index) if isinstance(noise, Noise) else noise.renumbered(index)


def normal_like(noise: Noise | Source, state: State) -> State:
    """Standard normal numbers for a state."""
    return noise.like(state) if isinstance(noise, Source) else numbers_like(noise, state)


def drawn(noise: Noise | Source, call: int, state: State) -> State:
    """Those of one call for all rows."""
    return noise.draw(call, state) if type(noise) is Function else normal_like(noise.at(call), state)


def for_belief(noise: Noise | Source, state: State) -> Any:
    """What `belief.to` draws from: the source by name, or its numbers."""
    return noise.like(state) if isinstance(noise, Source) else noise
