"""The distribution p(x_i | z) of each symbol, and beliefs about the parts of a state that is a dict."""

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


def no_reading(belief: Any, name: str) -> NoSuchReading | AttributeError:
    if name in ("x", "eps", "alpha", "sigma", "variance", "logsnr", *target.NAMES):
        return NoSuchReading(
            f"A belief about symbols has no {name!r}, which is defined for real numbers only: use mean, prob or "
            "log_prob; in a product each part has its own belief."
        )
    return AttributeError(f"{type(belief).__name__} has no attribute {name!r}")


class SymbolProcess(Protocol):
    """What `Logits` needs from the process of its symbols."""

    def bridge(self, belief: Logits, s: Time, eta: float = 1.0, restart: float = 0.0) -> Tensor:
        """p(z_s | z_t) of each symbol, (B, *shape, S)."""

    def step(self, belief: Logits, s: Time, eta: float, restart: float, noise: Noise | Tensor) -> Tensor:
        """z_s ~ p(z_s | z_t) of each symbol."""

    def spread(self, prob: Tensor, t: Time) -> Tensor:
        """sum_k p(k) q(z_t | x = k), (B, *shape, S)."""

    def into(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """The rate of jumps y -> z per unit of the level, which broadcasts to (B, *shape, S)."""

    def evidence(self, z: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log q(z_i | x_i = k)."""

    def draw(self, prob: Tensor, noise: Noise | Tensor) -> Tensor:
        """Draw a symbol from each distribution."""


@final
class Logits:
    """The belief p(x_i | z) about each of the symbols behind a state z (B, *shape) at time t.

    logits: (B, *shape, K), log-probabilities up to a constant, -inf for impossible symbols; None if they follow from
    other. process: the process of the symbols, needed to draw z_s. other: log p(x_i | the other symbols), if the model
    predicts it.
    """

    def __init__(
        self,
        logits: Tensor | None,
        z: Tensor,
        t: Time,
        process: SymbolProcess | None = None,
        other: Tensor | None = None,
    ) -> None:
        self.z, self.t, self.process, self._other = z, as_time(t), process, other
        if logits is not None:
            self.logits = logits

    @cached_property
    def logits(self) -> Tensor:
        """log p(x_i = k | z) up to a constant, from the evidence of the others and of z_i, (B, *shape, K)."""
        other, process = self._other, self._of()
        assert other is not None
        return other + process.evidence(self.z, self.t, other.dtype)

    def of_masks(self, at: Tensor) -> Tensor:
        """log p(x_i | z) up to a constant of masked symbols `at` (bool, like z), which tell nothing of x_i: (n, K)."""
        return (self.logits if self._other is None else self._other)[at]

    @cached_property
    def other(self) -> Tensor:
        """The evidence on each symbol from all others, log h(k) = log p(k | z) - log q(z_i | k) up to a constant.

        Shape (B, *shape, K). A symbol that z_i rules out counts as impossible, since p does not determine its h, unless
        the model predicted h itself.
        """
        if self._other is not None:
            return self._other
        evidence = self._of().evidence(self.z, self.t)
        return torch.where(evidence > -torch.inf, self.logits.to(evidence) - evidence, -torch.inf)

    def __getattr__(self, name: str) -> Any:
        raise no_reading(self, name)

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
        """E[one-hot(x) | z] = p(x_i = k | z), (B, *shape, K)."""
        return self.prob

    @cached_property
    def entropy(self) -> Tensor:
        """-sum_k p(x_i = k | z) log p(x_i = k | z), in nats, (B, *shape)."""
        return torch.special.entr(self.prob).sum(-1)

    @cached_property
    def zeta(self) -> Tensor:
        """p(z_i = y | z_j for j != i) = sum_k h(k) q(y | k), for every noisy symbol y, (B, *shape, S).

        As `ratio` and `rate` it needs `other`: of a symbol that z_i rules out a posterior alone does not tell it.
        """
        return self._of().spread(self.other.softmax(-1), self.t)

    @cached_property
    def ratio(self) -> Tensor:
        """r(y) = p(z with z_i := y) / p(z), the concrete score of 2310.16834, (B, *shape, S)."""
        return self.zeta / self.zeta.gather(-1, self.z[..., None])

    @cached_property
    def rate(self) -> Tensor:
        """The rate of the reverse chain's jumps z_i -> y per unit of the level, (B, *shape, S); 0 at y = z_i."""
        rate = self._of().into(self.z, self.t, self.ratio.dtype) * self.ratio
        return rate.scatter(-1, self.z[..., None], 0.0)

    def _of(self) -> SymbolProcess:
        if self.process is None:
            raise SfumatoError("This belief has no process: build it as Logits(..., process=...).")
        return self.process

    def to(
        self, s: Time, eta: float = 0.0, noise: Noise | Tensor | None = None, restart: float = 0.0
    ) -> Tensor:  # fmt: skip
        """z_s ~ p(z_s | z_t), each symbol independently, int64 like z; restart: the share of fresh draws q(z_s | x)."""
        if noise is None:
            raise SfumatoError("A step of symbols is random and needs the argument noise.")
        return self._of().step(self, s, eta, restart, numbers_like(noise, self.z))

    def lerp(self, other: Logits, weight: float | Tensor) -> Logits:
        """log p = log p_self + weight (log p_other - log p_self) up to a constant; symbols that either belief excludes
        stay excluded (for weights other than 0 and 1)."""
        evidence = None
        if self._other is not None and other._other is not None:
            evidence = mixed(self._other, other._other, weight)
        return Logits(mixed(self.log_prob, other.log_prob, weight), self.z, self.t, self.process, evidence)

    def tempered(self, temperature: float = 1.0, top_p: float = 1.0) -> Logits:
        """The belief with h^(1 / temperature) for what the others say, h, and of it the most probable symbols of total
        probability top_p alone, renormalised: the chance that a mask is revealed stays as it is.

        Symbols that top_p leaves out stay where z_i allows no other.
        """
        if temperature == top_p == 1:
            return self
        h, process = tempered(self.other, temperature), self._of()
        evidence = process.evidence(self.z, self.t, h.dtype)
        cut = tempered(h, 1.0, top_p)
        some = ((cut + evidence) > -torch.inf).any(-1, keepdim=True)
        h = torch.where(some, cut, h)
        return Logits(h + evidence, self.z, self.t, process, h)

    def under(self, process: SymbolProcess, z: Tensor, t: Time) -> Logits:
        """The same belief, about the state z at time t of another process at the same level."""
        return Logits(self.logits, z, t, process, self._other)

    def nats(self, x: Tensor) -> Tensor:
        """-sum_i log p(x_i | z), float64 (B,)."""
        return -self.log_prob.double().gather(-1, x[..., None]).flatten(1).sum(1)

    def rows(self, index: Tensor | slice) -> Logits:
        """The belief about some samples of the batch."""
        other = None if self._other is None else self._other[index]
        t = self.t[index] if self.t.ndim else self.t
        logits = None if other is not None and "logits" not in vars(self) else self.logits[index]
        return Logits(logits, self.z[index], t, self.process, other)

    def chunk(self, n: int) -> tuple[Logits, ...]:
        """The beliefs about n equal parts of the batch."""
        return tuple(self.rows(part) for part in parts(len(self.z), n))


def drawn_symbols(prob: Tensor, noise: Noise | Tensor) -> Tensor:
    """A symbol from each distribution prob (B, *shape, n), int64: its quantile at u = Phi(noise)."""
    cdf = prob.double().cumsum(-1)
    u = torch.special.ndtr(numbers_like(noise, prob[..., 0]).double()) * cdf[..., -1]
    return (u[..., None] >= cdf).sum(-1).clamp_max(prob.shape[-1] - 1)


def tempered(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """log h^(1 / temperature) up to a constant, of the most probable symbols of total probability top_p alone, the
    others -inf; logits (.., K) of h."""
    numbers = isinstance(temperature, int | float) and isinstance(top_p, int | float)
    if not (numbers and temperature > 0 and 0 < top_p <= 1):
        raise SfumatoError(f"A belief needs a temperature above 0 and top_p in (0, 1], not {temperature} and {top_p}.")
    logits = (logits / temperature).log_softmax(-1)
    if top_p == 1:
        return logits
    falling, symbol = logits.exp().sort(-1, descending=True)
    within = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, symbol, falling.cumsum(-1) - falling < top_p)
    return logits.masked_fill(~within, -torch.inf).log_softmax(-1)


def mixed(ours: Tensor, theirs: Tensor, weight: float | Tensor) -> Tensor:
    """ours + weight (theirs - ours) of logarithms; -inf where either is, unless the weight is 0 or 1."""
    w = broadcast(weight, ours) if isinstance(weight, Tensor) else torch.as_tensor(weight, dtype=ours.dtype)
    possible = ours.isfinite() & theirs.isfinite()
    between = torch.where(possible, ours, 0.0) + w * torch.where(possible, theirs - ours, 0.0)
    return torch.where(w == 0, ours, torch.where(w == 1, theirs, torch.where(possible, between, -torch.inf)))


@final
class Beliefs(dict[str, Any]):
    """A belief for each part of a state that is a dict, all about the same t."""

    def __getattr__(self, name: str) -> Any:
        raise no_reading(self, name)

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
        """A draw of z_s, part by part, with independent noise."""

        def part(name: str) -> Any:
            return noise.fold(name) if isinstance(noise, Noise) else None if noise is None else noise[name]

        return {name: belief.to(s, eta, part(name)) for name, belief in self.items()}

    def lerp(self, other: Beliefs, weight: float | Tensor) -> Beliefs:
        """`lerp` of each part."""
        return Beliefs({name: belief.lerp(other[name], weight) for name, belief in self.items()})

    def nats(self, x: State) -> Tensor:
        """The sum of the parts' nats, float64 (B,)."""
        return torch.stack([belief.nats(x[name]) for name, belief in self.items()]).sum(0)

    def rows(self, index: Tensor | slice) -> Beliefs:
        """The belief about some samples of the batch."""
        return Beliefs({name: belief.rows(index) for name, belief in self.items()})

    def chunk(self, n: int) -> tuple[Beliefs, ...]:
        """The beliefs about n equal parts of the batch."""
        chunks = {name: belief.chunk(n) for name, belief in self.items()}
        return tuple(Beliefs({name: each[k] for name, each in chunks.items()}) for k in range(n))
