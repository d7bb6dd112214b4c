"""What is believed to be missing from a string: how many of each symbol, in each of its gaps."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol, final

from torch import Tensor

from sfumato.belief.logits import mixed, no_reading
from sfumato.belief.protocol import parts
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.schedule import Time, as_time


class StringProcess(Protocol):
    """What `Insertions` needs from the process of its strings."""

    def missing(self, x: Tensor, z: Tensor) -> Tensor:
        """The number of each symbol that x has in each gap of z, (B, *shape, K)."""

    def inserted(self, belief: Insertions, s: Time, noise: Noise | Tensor) -> Tensor:
        """z_s ~ p(z_s | z_t), by at most one insertion in each gap."""


@final
class Insertions:
    """The belief about the symbols that are missing from strings z (B, *shape) at time t.

    log_mean: log E[number of symbols k missing in the gap before position i | z], (B, *shape, K); -inf where the string
    has no such gap.
    """

    def __init__(self, log_mean: Tensor, z: Tensor, t: Time, process: StringProcess) -> None:
        self.log_mean, self.z, self.t, self.process = log_mean, z, as_time(t), process

    def __getattr__(self, name: str) -> Any:
        raise no_reading(self, name)

    @cached_property
    def mean(self) -> Tensor:
        """E[number missing | z] of each symbol in the gap before each position, (B, *shape, K)."""
        return self.log_mean.exp()

    def to(self, s: Time, eta: float = 0.0, noise: Noise | Tensor | None = None) -> Tensor:
        """z_s ~ p(z_s | z_t): at most one insertion in each gap, whatever eta is."""
        if noise is None:
            raise SfumatoError("A step of strings is random and needs the argument noise.")
        return self.process.inserted(self, s, noise)

    def lerp(self, other: Insertions, weight: float | Tensor) -> Insertions:
        """log mean = log mean_self + weight (log mean_other - log mean_self): guidance of the rates."""
        return Insertions(mixed(self.log_mean, other.log_mean, weight), self.z, self.t, self.process)

    def under(self, process: StringProcess, z: Tensor, t: Time) -> Insertions:
        """The same belief, about the state z at time t of another process at the same level."""
        return Insertions(self.log_mean, z, t, process)

    def nats(self, x: Tensor) -> Tensor:
        """sum of mean - n log mean over n missing, float64 (B,): -log p(x | z) of independent Poisson insertions."""
        missing, mean = self.process.missing(x, self.z), self.mean.double()
        return (mean - missing.xlogy(mean)).flatten(1).sum(1)

    def rows(self, index: Tensor | slice) -> Insertions:
        """The belief about some samples of the batch."""
        t = self.t[index] if self.t.ndim else self.t
        return Insertions(self.log_mean[index], self.z[index], t, self.process)

    def chunk(self, n: int) -> tuple[Insertions, ...]:
        """The beliefs about n equal parts of the batch."""
        return tuple(self.rows(part) for part in parts(len(self.z), n))
