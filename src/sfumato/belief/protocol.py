"""The protocol of all beliefs, and helpers to broadcast coefficients and split batches."""

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
        """E[x | z]; for symbols E[one-hot(x) | z], (B, *shape, K)."""

    def to(self, s: Time, eta: float = 0.0, noise: Noise | State | None = None) -> State:
        """A draw of z_s, s <= t, given z_t = z and the belief; eta 0 adds as little noise as possible, eta 1 as much as
        the reverse Markov chain. noise: standard normal numbers like z, or a `Noise` source."""

    def lerp(self, other: Self, weight: float | Tensor) -> Self:
        """self + weight (other - self) about the same state: guidance."""

    def nats(self, x: State) -> Tensor:
        """-log p(x | z) with independent elements, float64 (B,): the reconstruction term of a variational bound."""

    def rows(self, index: Tensor | slice) -> Self:
        """The belief about some samples of the batch."""

    def chunk(self, n: int) -> tuple[Self, ...]:
        """The beliefs about n equal parts of the batch."""


def broadcast(coefficient: Tensor, like: Tensor) -> Tensor:
    """A scalar, one number per batch item, or one per element, (1, ...) or (B, ...), to multiply `like` (B, ...)."""
    c = coefficient.to(like.dtype)
    if c.ndim == 0:
        return c
    if c.ndim == like.ndim:
        return c.to(like.device)
    return c.to(like.device).reshape(-1, *([1] * (like.ndim - 1)))


def parts(rows: int, n: int) -> list[slice]:
    """Split `rows` rows into n equal slices."""
    size, rest = divmod(rows, n)
    if rest:
        raise SfumatoError(f"{rows} rows do not divide into {n} equal parts.")
    return [slice(k * size, (k + 1) * size) for k in range(n)]
