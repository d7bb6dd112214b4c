"""Steps of symbols by the rates of the reverse process, R(z -> y), instead of its law over the whole step.

    tau       one jump with probability 1 - exp(-sum_y R h), to y in proportion to R; h the length of the step in t
    euler     a jump to y with probability R h, as far as these sum to less than 1
    bridge    the law of each symbol over the step, as `Ancestral` with eta = 1 (SEDD's analytic sampler)

The first two err by O(h) even for one symbol; for masks whose keep probability is linear in t Euler is the bridge. A
symbol has no order, so that it jumps at most once a step where counts would make Poisson many jumps.

    corrector     after each step, a jump by R_forward + R for the time c h, which leaves p_t as it is for small c h
    trapezoid     z' by R_t for theta h, then from z' by (a R' - (a - 1) R_t)_+ for (1 - theta) h, R' the rates there,
                  a = 1 / (2 theta (1 - theta)): order 2 where no rate is clipped

The last step, to t = 0, is a bridge: rates would leave noise in the samples.
Sources: Campbell et al. 2022 (2205.14987), Sec. 4.3 and 4.4; Gat et al. 2024 (2407.15595) for one jump; Lou et al. 2023
(2310.16834), Sec. 4.2; Ren et al. 2025 (2502.00234), Alg. 2, for the trapezoid.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch
from torch import Tensor

from sfumato.belief import Logits, broadcast
from sfumato.errors import SfumatoError, suggest
from sfumato.process import Symbols
from sfumato.registry import register
from sfumato.solvers import grids
from sfumato.solvers.build import Builder
from sfumato.solvers.discrete import EqualTimes, SymbolSolver
from sfumato.solvers.draws import for_belief
from sfumato.solvers.lines import Bridge, Corrector, Jump
from sfumato.solvers.plan import Plan

PREDICTORS = ("tau", "euler", "bridge")
_START = 1 - 1e-9  # rates may be infinite at t = 1


def reverse_rates(belief: Logits) -> Tensor:
    """R(z -> y) per unit of t, (B, *shape, S); 0 at y = z."""
    process: Any = belief.process
    t = belief.t.clamp_max(_START)
    rate = belief.under(process, belief.z, t).rate
    return rate * broadcast(process.clock.dlogsnr(t).abs(), rate)


def forward_rates(process: Symbols, z: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """The rates of the jumps z -> y of the noise, per unit of t, (B, *shape, S); 0 at y = z."""
    rate = process.away(z, t, dtype)
    return rate * broadcast(process.clock.dlogsnr(t).abs(), rate)


def landed(process: Symbols, z: Tensor, jumps: Tensor, euler: bool = False) -> Tensor:
    """The law of each symbol after at most one jump, (B, *shape, S); jumps: the expected number of jumps to each."""
    total = jumps.sum(-1, keepdim=True)
    away = total.clamp_max(1.0) if euler else -torch.expm1(-total)
    return process.hot(z, jumps.dtype) * (1 - away) + jumps * (away / total.clamp_min(torch.finfo(jumps.dtype).tiny))


@final
@dataclasses.dataclass(frozen=True)
class Leap(Jump):
    """One jump by the rates at t."""

    euler: bool

    def law(self, belief: Logits, s: Tensor | float) -> Tensor:
        """The law of each symbol at s, (B, *shape, S)."""
        rate, process = reverse_rates(belief), belief.process
        return landed(process, belief.z, rate * broadcast(belief.t - s, rate), self.euler)  # type: ignore[arg-type]

    def __call__(self, z: Tensor, belief: Any, s: Tensor | float, noise: Any) -> Tensor:
        return belief.process.draw(self.law(belief, s), noise)


@final
@dataclasses.dataclass(frozen=True)
class ForwardBackward(Jump):
    """One jump by the rates of noise and of the reverse process together, for a time `span`, at the same t."""

    span: float

    def law(self, belief: Logits) -> Tensor:
        """The law of each symbol, (B, *shape, S)."""
        rate, process = reverse_rates(belief), belief.process
        assert isinstance(process, Symbols)
        both = rate + forward_rates(process, belief.z, belief.t, rate.dtype)
        return landed(process, belief.z, both * self.span, euler=True)

    def __call__(self, z: Tensor, belief: Any, s: Tensor | float, noise: Any) -> Tensor:
        return belief.process.draw(self.law(belief), noise)


@register("solver", "tau-leaping")
@register("solver", "forward-backward", predictor="bridge", corrector=0.3)
@dataclasses.dataclass(frozen=True)
class Leaping(SymbolSolver):
    """Steps by rates (predictor: tau, euler or bridge), each followed by a jump back and forth.

    corrector: its time as a share of the step, 0 for none; it costs one call a step, but none after the last.
    """

    grid: grids.Grid = dataclasses.field(default_factory=EqualTimes)
    predictor: str = "tau"
    corrector: float = 0.0

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTORS:
            raise SfumatoError(f"Symbols have no step {self.predictor!r}: {suggest(self.predictor, PREDICTORS)}")
        if not self.corrector >= 0:
            raise SfumatoError(f"The time of a corrector is at least 0, not {self.corrector:g}.")

    def build(self, b: Builder) -> Plan:
        self.require(b.process, Symbols, "Rates are those of symbols")
        for t, s in zip(b.nodes, b.nodes[1:], strict=False):
            b.call(t)
            b.jump(Bridge(1.0) if s == 0 or self.predictor == "bridge" else Leap(self.predictor == "euler"))
            if self.corrector and s > 0:
                b.call(s)
                b.jump(ForwardBackward(self.corrector * (t - s)))
        return b.plan(f"Leaping({self.predictor}, corrector={self.corrector:g})", 1)


@final
@dataclasses.dataclass
class Stage(Corrector):
    """One of the two stages: the first carries its rates to the second, whose `extra` is a - 1."""

    extra: float | None

    def __call__(
        self, model: Any, z: Tensor, t: float, s: float, state: Any, noise: Any
    ) -> tuple[Tensor, Tensor | None]:
        belief = model(z, t)
        law, rate = self.law(belief, s, state)
        return belief.process.draw(law, for_belief(noise, z)), rate if self.extra is None else None

    def law(self, belief: Logits, s: float, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """(law of each symbol at s, rates), (B, *shape, S) each; before: the rates of the first stage."""
        rate = reverse_rates(belief)
        if self.extra is not None and before is not None:
            rate = ((1 + self.extra) * rate - self.extra * before).clamp_min(0)
        process: Any = belief.process
        return landed(process, belief.z, rate * (belief.t - s)), rate


@register("solver", "theta-trapezoid")
@dataclasses.dataclass(frozen=True)
class ThetaTrapezoid(SymbolSolver):
    """Two jumps a step, the second by extrapolated rates: order 2, two calls a step and one for the last.

    theta: where in the step the second call is made, between 0 and 1.
    """

    grid: grids.Grid = dataclasses.field(default_factory=EqualTimes)
    theta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.theta < 1:
            raise SfumatoError(f"The second call of a trapezoid is made at a theta in (0, 1), not at {self.theta:g}.")

    def build(self, b: Builder) -> Plan:
        self.require(b.process, Symbols, "Rates are those of symbols")
        extra = 1 / (2 * self.theta * (1 - self.theta)) - 1
        for t, s in zip(b.nodes, b.nodes[1:], strict=False):
            b.call(t)
            if s == 0:
                b.jump(Bridge(1.0))
                continue
            b.jump(Stage(None))
            b.call(t - self.theta * (t - s))
            b.jump(Stage(extra))
        return b.plan(f"ThetaTrapezoid(theta={self.theta:g})", 2)
