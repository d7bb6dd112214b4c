"""Masked symbols revealed by number: so many a call, in an order, each drawn from p(x_i | z) at its call.

    call k of T     ceil(masks left / calls left) symbols; with at least as many steps as symbols, one a call

One symbol a call samples the exact law of an exact model in every order, since the chain rule holds in any order that
is fixed by what is visible. Several a call are drawn independently of each other, as in ancestral sampling.

    first-hitting   at the times at which the reverse process reveals them: each symbol's own share of noise is uniform
    random          any symbol as likely as another
    left-to-right   by position
    confidence      the largest max_k p(k) first (Chang et al. 2022, 2202.04200, of the distribution, not of a draw)
    entropy         the smallest entropy first
    margin          the largest difference of the two most probable symbols first (Kim et al. 2025, 2502.06768)

Sources: Zheng et al. 2024 (2409.02908) for first-hitting; Hoogeboom et al. 2021 (2110.02037) for any order.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch
from torch import Tensor

from sfumato.belief import Logits
from sfumato.errors import SfumatoError, suggest
from sfumato.noise import Noise
from sfumato.process import Masked
from sfumato.registry import register
from sfumato.schedule import Schedule
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Solver
from sfumato.solvers.lines import Corrector
from sfumato.solvers.plan import Plan

ORDERS = ("first-hitting", "random", "left-to-right", "confidence", "entropy", "margin")


@dataclasses.dataclass(frozen=True)
class EqualShares(grids.Grid):
    """Times between which the keep probability grows by equal amounts, for the clock of a process of symbols."""

    def nodes(self, schedule: Schedule, steps: int, t_start: float, t_stop: float) -> Tensor:
        first, last = (float(schedule.alpha(t)) ** 2 for t in (t_start, t_stop))
        inner = torch.linspace(first, 1.0 if t_stop == 0 else last, steps + 1, dtype=torch.float64)[1:-1]
        return torch.cat((inner.new_tensor([t_start]), schedule.time(torch.logit(inner)), inner.new_tensor([t_stop])))


@final
@dataclasses.dataclass
class Line(Corrector):
    """One call: reveal the next 1 / left of the masks.

    It calls the model itself, at the time of each row's own share of masks, as in training by exact counts, or at its
    hitting time; and not at all once nothing is masked.

    start: the time of the plan's first call, when the noise of first-hitting begins.
    """

    order: str
    left: int
    start: float
    temperature: float
    top_p: float

    def __call__(self, model: Any, z: Tensor, t: float, s: float, state: Any, noise: Any) -> tuple[Tensor, None]:
        if not isinstance(noise, Noise):
            raise SfumatoError(
                "Revealing symbols draws several numbers for each: pass the noise as sf.Noise(seed, index)."
            )
        process = model.process
        masked = z == process.mask
        self.calls = int(masked.any())
        if not self.calls:
            return z, None
        at = process.time(masked.flatten(1).double().mean(1))
        if self.order == "first-hitting":
            numbers = noise.at(0).fold("time").normal(tuple(z.shape[1:]), z.device)  # of the whole walk
            at = hitting_time(process, masked, numbers, self.start)
        else:
            numbers = noise.fold("order").normal(tuple(z.shape[1:]), z.device)
        belief = model(z, at)
        shown = chosen(self.order, belief, masked, self.left, numbers)
        prob = belief.tempered(self.temperature, self.top_p).prob[shown]
        drawn = process.draw(prob, noise.normal(tuple(z.shape[1:]), z.device)[shown])
        return z.masked_scatter(shown, drawn), None


def hitting_time(process: Masked, masked: Tensor, numbers: Tensor, start: float) -> Tensor:
    """The time, (B,), at which the first of the masks of each row is revealed: the largest of their shares of noise,
    which are uniform up to that at `start`."""
    most = 1 - process.keep(start)
    return process.time((torch.special.ndtr(numbers.double()) * most).where(masked, 0.0).flatten(1).amax(1))


def chosen(order: str, belief: Logits, masked: Tensor, left: int, numbers: Tensor) -> Tensor:
    """The symbols to reveal, bool (B, *shape): the first ceil(masks / left) masks of each row in the order.

    numbers: normal ones (B, *shape), the order itself where the belief does not decide.
    """
    if order == "left-to-right":
        score = (
            -torch.arange(masked[0].numel(), device=masked.device)
            .reshape(masked[0].shape)
            .expand(masked.shape)
            .double()
        )
    elif order == "confidence":
        score = belief.prob.amax(-1)
    elif order == "entropy":
        score = -belief.entropy
    elif order == "margin":
        score = belief.prob.topk(2, -1).values.diff(dim=-1)[..., 0].neg()
    else:
        score = numbers
    flat = score.where(masked, -torch.inf).flatten(1)
    place = flat.argsort(dim=1, descending=True, stable=True).argsort(1).reshape(masked.shape)
    count = -(-masked.flatten(1).sum(1) // left)
    return masked & (place < count.reshape(-1, *[1] * (masked.ndim - 1)))


@register("solver", "reveal")
@dataclasses.dataclass(frozen=True)
class Reveal(Solver):
    """Reveal masks by number, in an order: one a call where there are enough steps, then exact for an exact model.

    order: first-hitting, random, left-to-right, confidence, entropy or margin (`solvers.reveal`). temperature, top_p:
    of the belief that symbols are drawn from (`Logits.tempered`).
    """

    grid: grids.Grid = dataclasses.field(default_factory=EqualShares)
    order: str = "first-hitting"
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise SfumatoError(f"Symbols cannot be revealed in the order {self.order!r}: {suggest(self.order, ORDERS)}")

    @property
    def any_process(self) -> bool:  # type: ignore[override]  # of symbols, some
        return True

    def build(self, b: Builder) -> Plan:
        if not isinstance(b.process, Masked):
            raise SfumatoError(
                f"Only masked symbols are revealed, and these states are of {type(b.process).__name__}: use another "
                "solver, such as solvers.Ancestral() for symbols."
            )
        if b.nodes[-1] > 0:
            raise SfumatoError(
                "Revealing by number ends with all symbols: leave out t_stop, or use solvers.Ancestral()."
            )
        for k, t in enumerate(b.nodes[:-1]):
            b.call(t)
            b.jump(Line(self.order, len(b.nodes) - 1 - k, b.nodes[0], self.temperature, self.top_p))
        return dataclasses.replace(b.plan(f"Reveal({self.order})", 1), path=())
