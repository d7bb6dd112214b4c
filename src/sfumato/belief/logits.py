"""The law p(x_i | z) of each symbol, and beliefs about the parts of a state that is a dict."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol, final

import torch
from torch import Tensor

from sfumato import target
from sfumato.belief.protocol import broadcast, parts
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.schedule import Time, as_time
from sfumato.state import State, numbers_like


class NoSuchReading(SfumatoError, AttributeError):
    """An attribute that only beliefs about real numbers have."""


def _no_reading(belief: Any, name: str) -> NoSuchReading | AttributeError:
    if name in ("x", "eps", "alpha", "sigma", "variance", "logsnr", *target.NAMES):
        return NoSuchReading(
            f"A belief about symbols has no {name!r}, which is a reading of real numbers: it has mean, prob and "
            "log_prob; of a product each part has its own."
        )
    return AttributeError(f"{type(belief).__name__} has no attribute {name!r}")


class SymbolProcess(Protocol):
    """What `Logits` asks of the process of its symbols."""

    def bridge(self, belief: Logits, s: Time, eta: float = 1.0) -> Tensor:
        """p(z_s | z_t) of each symbol, (B, *shape, S)."""

    def evidence(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log q(z_i | x_i = k)."""

    def draw(self, prob: Tensor, noise: Noise | Tensor) -> Tensor:
        """A symbol of each law."""


@final
class Logits:
    """The belief p(x_i | z) about each of the symbols behind a state z (B, *shape) at time t.

    logits: (B, *shape, K), log-probabilities up to a constant; -inf for what is impossible. process: that of the
    symbols, which is needed to draw z_s. said: log p(x_i | the other symbols), where the model predicts it (`other`).
    """

    def __init__(
        self, logits: Tensor, z: Tensor, t: Time, process: SymbolProcess | None = None, said: Tensor | None = None
    ) -> None:
        self.logits, self.z, self.t, self.process, self._said = logits, z, as_time(t), process, said

    @cached_property
    def other(self) -> Tensor:
        """The evidence of the other symbols on each, log h(k) up to a constant: log p(k | z) - log q(z_i | k).

        Shape (B, *shape, K). Where z_i excludes a symbol, its h is not in p and counts as impossible, unless the model
        predicted h itself.
        """
        if self._said is not None:
            return self._said
        if self.process is None:
            raise SfumatoError("This belief does not know its process: Logits(..., process=...).")
        evidence = self.process.evidence(self.z, self.t)
        return torch.where(evidence > -torch.inf, self.logits.to(evidence) - evidence, -torch.inf)

    def __getattr__(self, name: str) -> Any:
        raise _no_reading(self, name)

    @cached_property
    def log_prob(self) -> Tensor:
        """log p(x_i = k | z), (B, *shape, K)."""
        return self.logits.log_softmax(-1)

    @cached_property
    def prob(self) -> Tensor:
        """p(x_i = k | z), (B, *shape, K)."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        """E of the one-hot code of x, which is p(x_i = k | z): (B, *shape, K)."""
        return self.prob

    def to(self, s: Time, eta: float = 0.0, noise: Noise | Tensor | None = None) -> Tensor:
        """z_s ~ p(z_s | z_t), each symbol by itself, int64 like z."""
        if self.process is None:
            raise SfumatoError("This belief does not know its process, and cannot draw: Logits(..., process=...).")
        if noise is None:
            raise SfumatoError("Symbols are drawn: a step between states of symbols needs noise.")
        return self.process.draw(self.process.bridge(self, s, eta), numbers_like(noise, self.z))

    def lerp(self, other: Logits, weight: float | Tensor) -> Logits:
        """log p = log p_self + weight (log p_other - log p_self), up to a constant; what either excludes stays so."""
        ours, theirs = self.log_prob, other.log_prob
        w = broadcast(weight, ours) if isinstance(weight, Tensor) else torch.as_tensor(weight, dtype=ours.dtype)
        possible = ours.isfinite() & theirs.isfinite()
        mixed = torch.where(possible, ours, 0.0) + w * torch.where(possible, theirs - ours, 0.0)
        known = torch.where(w == 0, ours, torch.where(w == 1, theirs, torch.where(possible, mixed, -torch.inf)))
        said = None
        if self._said is not None and other._said is not None:
            said = self._said + w * (other._said - self._said)
        return Logits(known, self.z, self.t, self.process, said)

    def under(self, process: SymbolProcess, z: Tensor, t: Time) -> Logits:
        """The same belief about the same state at the time t of equal level of another process."""
        return Logits(self.logits, z, t, process, self._said)

    def nats(self, x: Tensor) -> Tensor:
        """-sum_i log p(x_i | z), float64 (B,)."""
        return -self.log_prob.double().gather(-1, x[..., None]).flatten(1).sum(1)

    def rows(self, index: Tensor | slice) -> Logits:
        """The belief about some rows."""
        said = None if self._said is None else self._said[index]
        t = self.t[index] if self.t.ndim else self.t
        return Logits(self.logits[index], self.z[index], t, self.process, said)

    def chunk(self, n: int) -> tuple[Logits, ...]:
        """The beliefs about n equal parts of the batch."""
        return tuple(self.rows(part) for part in parts(len(self.z), n))


@final
class Beliefs(dict[str, Any]):
    """A belief for each part of a state that is a dict, all about the same t."""

    def __getattr__(self, name: str) -> Any:
        raise _no_reading(self, name)

    @property
    def z(self) -> State:
        return {name: belief.z for name, belief in self.items()}

    @property
    def t(self) -> Tensor:
        return next(iter(self.values())).t

    @property
    def mean(self) -> State:
        """E[x | z], part by part."""
        return {name: belief.mean for name, belief in self.items()}

    def to(self, s: Time, eta: float = 0.0, noise: Noise | State | None = None) -> State:
        """A draw of z_s, part by part, each with noise of its own."""

        def part(name: str) -> Any:
            return noise.fold(name) if isinstance(noise, Noise) else None if noise is None else noise[name]

        return {name: belief.to(s, eta, part(name)) for name, belief in self.items()}

    def lerp(self, other: Beliefs, weight: float | Tensor) -> Beliefs:
        """That of each part."""
        return Beliefs({name: belief.lerp(other[name], weight) for name, belief in self.items()})

    def nats(self, x: State) -> Tensor:
        """The sum over the parts, float64 (B,)."""
        return torch.stack([belief.nats(x[name]) for name, belief in self.items()]).sum(0)

    def rows(self, index: Tensor | slice) -> Beliefs:
        """The belief about some rows."""
        return Beliefs({name: belief.rows(index) for name, belief in self.items()})

    def chunk(self, n: int) -> tuple[Beliefs, ...]:
        """The beliefs about n equal parts of the batch."""
        found = {name: belief.chunk(n) for name, belief in self.items()}
        return tuple(Beliefs({name: each[k] for name, each in found.items()}) for k in range(n))
