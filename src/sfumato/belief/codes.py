"""The belief about vectors that stand for symbols: a law of the symbols, and all that is linear in its mean."""

from __future__ import annotations

from typing import Any, Protocol, final

from torch import Tensor

from sfumato.belief.estimate import Estimate
from sfumato.belief.logits import Logits, drawn_symbols
from sfumato.noise import Noise
from sfumato.schedule import Schedule


class Codebook(Protocol):
    """What `Codes` needs from the process of its vectors."""

    @property
    def schedule(self) -> Schedule: ...

    def mean(self, prob: Tensor) -> Tensor:
        """sum_k p(k) E_k, like z."""

    def symbols(self, x: Tensor) -> Tensor:
        """The symbols of clean vectors."""


@final
class Codes(Estimate):
    """x = sum_k p(k) E_k and eps = (z - alpha x) / sigma under the law p(x_i = k | z) of each symbol.

    law: the `Logits` of the symbols, (B, C, .., K), about z (B, d C, ..). A blend of two beliefs (`lerp`) mixes log p,
    as it does for symbols, so that x stays a mean of vectors.
    """

    def __init__(self, law: Logits, process: Codebook) -> None:
        x = process.mean(law.prob)
        super().__init__(law.z, law.t, process.schedule, y=x, x=x, named="x")
        self.law, self._process = law, process

    @property
    def prob(self) -> Tensor:
        """p(x_i = k | z), (B, C, .., K)."""
        return self.law.prob

    @property
    def log_prob(self) -> Tensor:
        """log p(x_i = k | z), (B, C, .., K)."""
        return self.law.log_prob

    @property
    def entropy(self) -> Tensor:
        """-sum_k p(k) log p(k), in nats, (B, C, ..)."""
        return self.law.entropy

    def drawn(self, noise: Noise | Tensor) -> Tensor:
        """A symbol from each law, int64 (B, C, ..)."""
        return drawn_symbols(self.prob, noise)

    def nats(self, x: Tensor) -> Tensor:
        """-sum_i log p(x_i | z), float64 (B,), for symbols or their vectors."""
        return self.law.nats(self._process.symbols(x))

    def lerp(self, other: Any, weight: float | Tensor) -> Codes:
        """log p = log p_self + weight (log p_other - log p_self), up to a constant."""
        return Codes(self.law.lerp(other.law, weight), self._process)

    def under(self, process: Any, z: Tensor, t: Tensor) -> Codes:
        """The same belief, about the state z at time t of another process with the same logsnr."""
        return Codes(self.law.under(process, z, t), process)

    def rows(self, index: Tensor | slice) -> Codes:
        """The belief about some samples of the batch."""
        return Codes(self.law.rows(index), self._process)
