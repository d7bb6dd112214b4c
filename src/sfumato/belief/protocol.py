"""What every belief answers, and how its parts are cut and scaled."""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.schedule import Time
from sfumato.state import State


@runtime_checkable
class Belief(Protocol):
    """What every model returns about its state z at time t (a number or (B,))."""

    @property
    def z(self) -> State: ...

    @property
    def t(self) -> Tensor: ...

    @property
    def mean(self) -> State:
        """E[x | z]; of symbols that of the one-hot code, (B, *shape, K)."""

    def to(self, s: Time, eta: float = 0.0, noise: Noise | State | None = None) -> State:
        """A draw of z_s, s <= t, given z_t = z and the belief; eta 0 with as little noise as possible, 1 with that of
        the reverse Markov chain. noise: standard normal numbers like z, or a source of them."""

    def lerp(self, other: Self, weight: float | Tensor) -> Self:
        """self + weight (other - self) about the same state: guidance."""

    def nats(self, x: State) -> Tensor:
        """-log p(x | z), float64 (B,), each entry by itself: what the last step of a bound costs."""

    def rows(self, index: Tensor | slice) -> Self:
        """The belief about some rows."""

    def chunk(self, n: int) -> tuple[Self, ...]:
        """The beliefs about n equal parts of the batch."""


def broadcast(coefficient: Tensor, like: Tensor) -> Tensor:
    """A scalar or one number per batch item, shaped and typed to multiply `like` (B, ...)."""
    c = coefficient.to(like.dtype)
    if c.ndim == 0:
        return c
    return c.to(like.device).reshape(-1, *([1] * (like.ndim - 1)))


def parts(rows: int, n: int) -> list[slice]:
    """n equal stretches of so many rows."""
    size, rest = divmod(rows, n)
    if rest:
        raise SfumatoError(f"{rows} rows are no {n} equal parts.")
    return [slice(k * size, (k + 1) * size) for k in range(n)]
