"""Masked symbols revealed by number: so many a call, in an order, each drawn from p(x_i | z) at its call.

    call k of T     equal: ceil(masks left / calls left) symbols; with at least as many steps as symbols, one a call
                    cosine: floor(N cos(pi k / 2T)) of N masks are left after it, few at first (2202.04200, Sec. 3.2)
                    numbers: m_0 > m_1 > .. > 0, masks of m_0 before the first call and after each, as `sf.tune` finds
                    gamma: as many as sum H_i - max H_i <= gamma allows, by their entropies H_i (2505.24857)

One symbol a call samples the exact law of an exact model in every order that is fixed by what is visible, by the chain
rule. Several a call are drawn independently of each other, as in ancestral sampling: with gamma the law then differs
from an exact model's by KL <= gamma a call.

    first-hitting   at the times at which the reverse process reveals them: each symbol's own share of noise is uniform
    random          any symbol as likely as another
    left-to-right   by position
    confidence      the largest max_k p(k) first (Chang et al. 2022, 2202.04200, of the distribution, not of a draw)
    entropy         the smallest entropy first
    margin          the largest difference of the two most probable symbols first (Kim et al. 2025, 2502.06768)

Two orders draw a symbol for every mask and choose by the probability of what was drawn, which favours probable symbols:
their samples are not those of the model with any number of calls.

    maskgit         the largest log p(drawn) + gumbel (T - k) / T g first, g of Gumbel's law (2202.04200)
    mask-predict    all masks are filled, and the least probable of all that were not known at first masked again, with
                    the p at which each was drawn; in the paper the most probable is drawn, top_p -> 0 (1904.09324)

Sources: Zheng et al. 2024 (2409.02908) for first-hitting; Hoogeboom et al. 2021 (2110.02037) for any order.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise as numbers
from sfumato import schema
from sfumato.belief import Logits, tempered
from sfumato.errors import SfumatoError, suggest
from sfumato.noise import Noise
from sfumato.process import Masked
from sfumato.process.mixing import mask_times
from sfumato.registry import register
from sfumato.schedule import Schedule
from sfumato.solvers import grids, lines
from sfumato.solvers.build import Builder
from sfumato.solvers.discrete import SymbolSolver
from sfumato.solvers.grids import MOST_STEPS
from sfumato.solvers.lines import Corrector
from sfumato.solvers.plan import Plan

DRAWN = ("maskgit", "mask-predict")
ORDERS = ("first-hitting", "random", "left-to-right", "confidence", "entropy", "margin", *DRAWN)
SIZES = ("equal", "cosine")


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
    """One call: reveal the next masks, with `left` of `of` calls to come, this one among them.

    It calls the model itself, at the time of each row's own share of masks, as in training by exact counts, or at its
    hitting time; and not at all once nothing is masked. What it carries is drawn at the first call, once for all
    (`_first`).

    start: the time of the plan's first call, when the noise of first-hitting begins.
    """

    solver: Reveal
    left: int
    of: int
    start: float

    def __call__(self, model: Any, z: Tensor, t: float, s: float, state: Any, noise: Any) -> tuple[Tensor, Any]:
        if not isinstance(noise, Noise):
            raise SfumatoError(
                "Revealing symbols draws several numbers for each: pass the noise as sf.Noise(seed, index)."
            )
        process, how = model.process, self.solver
        masked = z == process.mask
        now = masked.flatten(1).sum(1)
        if state is None:
            state = self._first(process, masked, now, noise)
        self.calls = int(now.any())
        if not self.calls:
            return z, state
        if how.order == "first-hitting":
            at = state[:, 2].where(masked, 0.0).flatten(1).amax(1)
        else:
            at = mask_times(process, masked[0].numel()).to(z.device)[now]
        belief = model(z, at)
        rest = how.rest(belief, masked, now, state[:, 0], self.left, self.of)
        if how.order in DRAWN:
            draws, shown = noise.normal(tuple(z.shape[1:]), z.device), masked
        else:
            draws, shown = state[:, 1], chosen(how.order, belief, masked, now, rest, state[:, 0])
        law = tempered(belief.of_masks(shown), how.temperature, how.top_p).exp()
        z = z.masked_scatter(shown, process.draw(law, draws[shown]))
        if how.order not in DRAWN:
            return z, state
        score = belief.prob.double().gather(-1, z[..., None])[..., 0].log()
        if how.gumbel:
            u = noise.fold("gumbel").uniform(tuple(z.shape[1:]), z.device, torch.float64)
            score = score - how.gumbel * (self.left - 1) / self.of * (-u.log()).log()
        score = torch.where(masked, score, state[:, 0])
        return torch.where(hidden(how.order, score, masked, rest), process.mask, z), score[:, None]

    def _first(self, process: Masked, masked: Tensor, now: Tensor, noise: Noise) -> Tensor:
        """What is carried from the first call on, float64 (B, 1 to 3, *shape): how many masks are left once a symbol is
        revealed, or of `DRAWN` the score at which it was, infinite for what was known; the number that it is drawn by,
        but of `DRAWN`, which draw it anew; and the time at which it is revealed, of first-hitting."""
        order, shape, keys = self.solver.order, tuple(masked.shape[1:]), torch.zeros_like(masked, dtype=torch.float64)
        if order in ("first-hitting", "random"):
            keys = noise.fold("time").normal(shape, masked.device).double()
        if order in DRAWN:
            return keys.where(masked, torch.inf)[:, None]
        place = numbers.ranks(keys.where(masked, -torch.inf).flatten(1).neg())  # equal ones from left to right
        behind = (now[:, None] - 1 - place).double().reshape(masked.shape).where(masked, torch.inf)
        carried = [behind, noise.normal(shape, masked.device).double()]
        if order == "first-hitting":
            carried.append(hitting_time(process, keys, self.start))
        return torch.stack(carried, 1)

    def to_dict(self) -> dict[str, Any]:
        """The line as JSON."""
        how = {name: value for name, value in vars(self.solver).items() if name != "grid"}
        sizes = how["sizes"]
        how["sizes"] = list(sizes) if isinstance(sizes, tuple) else sizes
        return {"reveal": how, "left": self.left, "of": self.of, "start": self.start}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Line:
        """The inverse of `to_dict`, for what `SCHEMA` has passed."""
        how = dict(data["reveal"])
        how["sizes"] = tuple(how["sizes"]) if isinstance(how["sizes"], list) else how["sizes"]
        return cls(Reveal(**how), data["left"], data["of"], data["start"])


_MASKS = schema.whole(0, 1 << 31)
SCHEMA = schema.fields(
    {
        "reveal": schema.fields(
            {
                "order": schema.choice(*ORDERS), "temperature": schema.number(0), "top_p": schema.number(0, 1),
                "sizes": schema.either("a name or numbers", schema.choice(*SIZES), schema.listed(_MASKS, 2)),
                "gumbel": schema.number(), "gamma": schema.optional(schema.number(0)),
            }
        ),
        "left": schema.whole(1, MOST_STEPS), "of": schema.whole(1, MOST_STEPS), "start": schema.number(0, 1),
    },
    rest=None,
)  # fmt: skip
lines.KINDS["reveal"] = lines.Kind(SCHEMA, Line.from_dict)


def hitting_time(process: Masked, keys: Tensor, start: float) -> Tensor:
    """The time at which each mask is revealed, like its key, a standard normal number: shares of noise are uniform up
    to that at `start`."""
    return process.time(torch.special.ndtr(keys.double()) * (1 - process.keep(start)))


def chosen(order: str, belief: Logits, masked: Tensor, now: Tensor, rest: Tensor, behind: Tensor) -> Tensor:
    """The symbols to reveal, bool (B, *shape): the first masks of each row, `rest` (B,) of `now` (B,) being left.

    behind: how many are left once a symbol is revealed, the order itself where the belief does not decide.
    """
    if order == "confidence":
        score = belief.prob.amax(-1)
    elif order == "entropy":
        score = -belief.entropy
    elif order == "margin":
        score = belief.prob.topk(2, -1).values.diff(dim=-1)[..., 0].neg()
    else:
        return masked & (behind >= rest.reshape(-1, *[1] * (masked.ndim - 1)))
    return _first(score, masked, now - rest)


def hidden(order: str, score: Tensor, masked: Tensor, rest: Tensor) -> Tensor:
    """The symbols to mask of those just drawn, bool (B, *shape): the `rest` (B,) lowest scores, of "mask-predict" among
    all that were not known at first."""
    return _first(-score, masked if order == "maskgit" else score < torch.inf, rest)


def _first(score: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """The `count` (B,) largest scores of each row among some, bool (B, *shape)."""
    falling = score.where(among, -torch.inf).flatten(1).neg()
    place = numbers.ranks(falling).reshape(among.shape)
    return among & (place < count.reshape(-1, *[1] * (among.ndim - 1)))


def within(entropy: Tensor, masked: Tensor, gamma: float) -> Tensor:
    """How many masks may be revealed together, int64 (B,): the most with sum H - max H <= gamma, lowest H first."""
    rising = entropy.double().where(masked, torch.inf).flatten(1).sort(1).values
    before = rising.cumsum(1).roll(1, 1)
    before[:, 0] = 0.0
    return ((before <= gamma) & (rising < torch.inf)).sum(1)


@register("solver", "maskgit", order="maskgit", sizes="cosine", gumbel=4.5)
@register("solver", "mask-predict", order="mask-predict", top_p=1e-9)
@register("solver", "reveal")
@dataclasses.dataclass(frozen=True)
class Reveal(SymbolSolver):
    """Reveal masks by number, in an order: one a call where there are enough steps, then exact for an exact model.

    order: first-hitting, random, left-to-right, confidence, entropy or margin, or of what was drawn, maskgit or
    mask-predict (`solvers.reveal`). sizes: equal, cosine, or as many numbers as calls and one. gumbel: of maskgit.
    gamma: the bound on the entropy of what is revealed together, in nats, in the place of sizes, for order="entropy";
    the last call reveals all that is left. temperature, top_p: of the belief that symbols are drawn from
    (`Logits.tempered`).
    """

    grid: grids.Grid = dataclasses.field(default_factory=EqualShares)
    order: str = "first-hitting"
    temperature: float = 1.0
    top_p: float = 1.0
    sizes: str | tuple[int, ...] = "equal"
    gumbel: float = 0.0
    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise SfumatoError(f"Symbols cannot be revealed in the order {self.order!r}: {suggest(self.order, ORDERS)}")
        if isinstance(self.sizes, str):
            if self.sizes not in SIZES:
                raise SfumatoError(f"Symbols cannot be revealed by sizes {self.sizes!r}: {suggest(self.sizes, SIZES)}")
        elif len(self.sizes) < 2 or self.sizes[-1] or any(a <= b for a, b in itertools.pairwise(self.sizes)):
            raise SfumatoError("The sizes are the falling numbers of masks before and after each call, the last one 0.")
        else:
            object.__setattr__(self, "sizes", tuple(self.sizes))
        if self.gumbel and self.order not in DRAWN:
            raise SfumatoError(f"Gumbel noise is for an order of what was drawn, {' or '.join(DRAWN)}.")
        if self.gamma is not None and (self.order != "entropy" or not self.gamma >= 0):
            raise SfumatoError("A bound gamma is a number of at least 0, and needs order='entropy'.")

    def rest(self, belief: Logits, masked: Tensor, now: Tensor, score: Tensor, left: int, of: int) -> Tensor:
        """How many masks of each row are left of `now` (B,) after a call, int64 (B,): at least one less."""
        if left == 1:
            return torch.zeros_like(now)
        if self.gamma is not None:
            return now - within(belief.entropy, masked, self.gamma)
        if self.sizes == "equal":
            return now - -(-now // left)
        at_first = (score < torch.inf).flatten(1).sum(1)
        if isinstance(self.sizes, tuple):
            planned = at_first * (self.sizes[of - left + 1] / self.sizes[0])
            return torch.minimum(planned.round().long(), now)
        curve = (at_first * math.sin(math.pi / 2 * (left - 1) / of)).floor().long()  # cos of what is done
        return torch.minimum(curve.clamp_min(left - 1), now - 1).clamp_min(0)

    def build(self, b: Builder) -> Plan:
        self.require(b.process, Masked, "Only masked symbols are revealed")
        if b.nodes[-1] > 0:
            raise SfumatoError(
                "Revealing by number ends with all symbols: leave out t_stop, or use solvers.Ancestral()."
            )
        if isinstance(self.sizes, tuple) and len(self.sizes) != len(b.nodes):
            raise SfumatoError(f"These sizes are those of {len(self.sizes) - 1} steps, not of {len(b.nodes) - 1}.")
        for k, t in enumerate(b.nodes[:-1]):
            b.call(t)
            b.jump(Line(self, len(b.nodes) - 1 - k, len(b.nodes) - 1, b.nodes[0]))
        return b.plan(f"Reveal({self.order})", 1)
