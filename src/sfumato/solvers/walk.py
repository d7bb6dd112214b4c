"""Execute a plan: rows of states, each at its own call, advanced by the caller.

    walk = plan.start(model, z, noise, **cond)
    while not walk.done:
        walk.advance()                      # one call of the model for all rows that are not at the end

`Plan.run`, the loop of every sampler, is the simple case. Between two calls rows can be selected and duplicated
(`select`, for resampling), removed (`drop`) or left waiting (`advance(rows)`); `together` makes one call for several
walks. While all rows are at the same call, the model gets the time as a number, else as (B,).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.conditions import CARRIED, LEFT, PREVIOUS, Given, absent, joined
from sfumato.errors import SfumatoError
from sfumato.solvers.arithmetic import Arithmetic
from sfumato.solvers.draws import AnyNoise, as_source, drawn, for_belief, renumbered
from sfumato.solvers.lines import Corrector, Linear
from sfumato.state import State, cat_states, first_leaf, map_state, numbered, rows_of

if TYPE_CHECKING:
    from sfumato.solvers.plan import Plan


class Walk:
    """The rows z (B, ...) of a running plan, their noise and conditions, and what later calls need from the past."""

    def __init__(self, plan: Plan, model: Any, z: State, noise: AnyNoise | None, cond: Mapping[str, Any]) -> None:
        self.plan, self.model, self.z, self.cond = plan, model, z, dict(cond)
        self.noise = as_source(noise)
        if plan.stochastic and self.noise is None:
            raise SfumatoError(f"The solver {plan.name} is stochastic: pass a noise source.")
        self._call: int | Tensor = 0  # the next call: of all rows, or of each
        self._agenda, self._last = plan.agenda, plan.calls
        self._sums: Any = map_state(lambda leaf: Arithmetic(plan.program, leaf), z) if plan.sums else None
        self._carried: State | None = None
        self._remembers = bool(getattr(model, "remembers", False))
        self._carries: bool | Tensor = False  # whether all rows, or each (bool (B,)), have a `Corrector`'s state

    def __len__(self) -> int:
        return len(first_leaf(self.z))

    @property
    def made(self) -> int:
        """The number of calls that every row has made."""
        return self._call if isinstance(self._call, int) else int(self._call.min())

    @property
    def call(self) -> Tensor:
        """The number of calls that each row has made, int64 (B,): the index of its next call."""
        return torch.full((len(self),), self._call) if isinstance(self._call, int) else self._call

    @property
    def t(self) -> Tensor:
        """The time of each row, float64 (B,)."""
        return self.plan.moments[self.call]

    @property
    def ended(self) -> Tensor:
        """Which rows are at the plan's end, bool (B,)."""
        return self.call == self._last

    @property
    def done(self) -> bool:
        """Whether all rows are at the plan's end."""
        return self._call == self._last if isinstance(self._call, int) else bool(self.ended.all())

    @property
    def corrects(self) -> bool:
        """Whether all rows are at the same `Corrector`."""
        return isinstance(self._call, int) and isinstance(self.plan.lines[self._call], Corrector)

    def advance(self, rows: Tensor | Sequence[int] | None = None) -> Any:
        """One call of the model for all rows that are not at the end, or for `rows`; returns the belief of the call.

        The belief has its rows in the walk's order. A `Corrector` makes its own calls: the belief is that of the first,
        or None if the rows are at several calls and only such lines move.
        """
        k = self._call
        if rows is not None or type(k) is not int or type(self._carries) is not bool:
            belief, moved = _advance([(self, self._due(rows))])
            return None if belief is None else belief.rows(torch.argsort(torch.cat(moved)))
        if k == self._last:
            return None
        due = self._agenda[k]
        if isinstance(due.line, Corrector):
            return self._correct()
        belief = self.model(self.z, due.t, **self.cond)
        self.follow(belief)
        return belief

    def follow(self, belief: Any) -> None:
        """Step all rows, which must be at the same call, with the belief about them."""
        k, z = self._call, self.z
        assert type(k) is int
        line, _, s, plain, noisy = self._agenda[k]
        if plain:
            z = map_state(lambda sums, z, x: sums.step(k, z, x), self._sums, z, belief.mean)
            self.z = self._noised(k, line, z) if noisy else z
        else:
            if self._sums is not None:
                map_state(lambda sums, z, x: sums.remember(k, z, x), self._sums, z, belief.mean)
            noise = for_belief(self.noise.at(k), z) if self.noise is not None and line.draws else None
            self.z = line(z, belief, s, noise)
        self._remember(belief)
        self._call = k + 1

    def _remember(self, belief: Any) -> None:
        """Tell the next call what this one leaves: the clean signal, if the network is self-conditioned (2208.04202),
        and the latents of a network that carries some (2212.11972)."""
        left = {PREVIOUS: belief.mean if self._remembers and belief is not None else None}
        for name, value in {**left, CARRIED: getattr(belief, "carried", None)}.items():
            if value is not None:
                here = torch.ones(len(value), dtype=torch.bool, device=value.device)
                self.cond[name] = Given(value.detach(), here)

    def _correct(self) -> Any:
        """Step all rows by a `Corrector`; returns the belief of its first call."""
        assert isinstance(self._call, int)
        line, t, s, *_ = self._agenda[self._call]
        noise = self.noise.at(self._call) if self.noise is not None and line.draws else None
        model = CountingModel(self.model, self.cond)
        self.z, self._carried = line(model, self.z, t, s, self._carried, noise)
        self._carries = self._carried is not None
        self._remember(model.belief)
        self._call += 1
        return model.belief

    def _noised(self, k: int, line: Linear, z: State) -> State:
        """Add the noise of call k to a new state."""
        assert self.noise is not None
        n, c = drawn(self.noise, k, z), line.noise
        if isinstance(z, Tensor) and not z.requires_grad and not isinstance(c, Tensor):
            return z.add_(n, alpha=c)
        return map_state(lambda z, n: z + (c.to(z) if isinstance(c, Tensor) else c) * n, z, n)

    def _due(self, rows: Tensor | Sequence[int] | None = None) -> list[Tensor]:
        """The rows to advance, grouped by call and by whether they have a `Corrector`'s state."""
        live = ~self.ended
        index = torch.nonzero(live)[:, 0] if rows is None else numbered(rows, len(self))
        if len(index.unique()) < len(index):
            raise SfumatoError("The rows to advance contain duplicates: a row makes one call at a time.")
        index = index[live[index]]
        group = 2 * self.call[index] + self._carrying[index]
        return [index[group == k] for k in group.unique().tolist()]

    @property
    def _carrying(self) -> Tensor:
        carries = self._carries
        return torch.full((len(self),), carries) if isinstance(carries, bool) else carries

    def _part(self, index: Tensor) -> Walk:
        """A walk of some rows, in this order."""
        part = copy.copy(self)
        part.z, part.cond = rows_of(self.z, index), {name: _cut(value, index) for name, value in self.cond.items()}
        if self._sums is not None:
            part._sums = map_state(lambda sums: sums.part(index), self._sums)
        part._carries = _one_for_all(self._carrying[index])
        part._carried = None
        if self._carried is not None and part._carries is not False:
            part._carried = rows_of(self._carried, index)
        if self.noise is not None and self.plan.stochastic:
            part.noise = self.noise.rows(index)
        part._call = _one_call(self.call[index])
        return part

    def _take(self, rows: Tensor, part: Walk) -> None:
        """Write the rows of a part back to their places."""
        self.z = map_state(lambda old, new: _put(old, rows, new), self.z, part.z)
        if self._sums is not None:
            map_state(lambda sums, new: sums.take(rows, new), self._sums, part._sums)
        if part._carried is not None and self._carried is None:
            self._carried = map_state(lambda new: new.new_zeros(len(self), *new.shape[1:]), part._carried)
        if part._carried is not None:
            self._carried = map_state(lambda old, new: _put(old, rows, new), self._carried, part._carried)
        self._carries = _one_for_all(_put(self._carrying, rows, part._carrying))
        for name in LEFT:
            if name in part.cond:
                new = part.cond[name]
                none = Given(new.values.new_zeros(len(self), *new.values.shape[1:]), new.present.new_zeros(len(self)))
                pairs = zip(self.cond.get(name, none), new, strict=True)
                self.cond[name] = Given(*(_put(old, rows, value) for old, value in pairs))
        self._call = _one_call(_put(self.call, rows, part.call))

    def select(self, index: Tensor | Sequence[int], samples: Tensor | Sequence[int] | None = None) -> None:
        """Keep these rows, in this order; a row may be repeated, and the others are removed.

        History, conditions and noise move with a row, so its sample does not change. index: row numbers, or a mask,
        bool (B,). samples: new sample numbers for the noise of the rows from here on, so that duplicates diverge.
        """
        rows = numbered(index, len(self))
        numbers = None if samples is None else numbered(samples, of="numbers of samples")
        if numbers is not None and len(numbers) != len(rows):
            raise SfumatoError(f"Each selected row needs one sample number: {len(rows)} rows, {len(numbers)} numbers.")
        self.__dict__.update(self._part(rows).__dict__)
        if numbers is not None and self.noise is not None:
            self.noise = renumbered(self.noise, numbers)

    def drop(self, rows: Tensor | Sequence[int]) -> None:
        """Remove rows; the others keep their order."""
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[numbered(rows, len(self))] = False
        self.select(torch.nonzero(keep)[:, 0])


def together(walks: Sequence[Walk]) -> None:
    """Advance all rows of several walks of one model, with any plans and seeds, by a single model call."""
    if any(walk.model is not walks[0].model for walk in walks):
        raise SfumatoError("Walks that share a call must share one model.")
    if len({id(walk) for walk in walks}) < len(walks):
        raise SfumatoError("The walks that share a call contain duplicates: a row makes one call at a time.")
    _advance([(walk, walk._due()) for walk in walks])


def _advance(due: Sequence[tuple[Walk, Sequence[Tensor]]]) -> tuple[Any, list[Tensor]]:
    """Advance groups of rows of walks by one call of their model; returns its belief and the rows it is about."""
    groups = [(walk, rows, walk._part(rows)) for walk, each in due for rows in each]
    called = [(rows, part) for _, rows, part in groups if not part.corrects]
    belief: Any = _belief([part for _, part in called]) if called else None
    start = 0
    for walk, rows, part in groups:
        if part.corrects:
            part._correct()
        else:
            part.follow(belief.rows(slice(start, start + len(rows))))
            start += len(rows)
        walk._take(rows, part)
    return belief, [rows for rows, _ in called]


def _belief(walks: Sequence[Walk]) -> Any:
    """One call of the model for the rows of all walks, in the order of the walks."""
    examples = {name: value for walk in walks for name, value in walk.cond.items()}

    def of(walk: Walk, name: str) -> Any:  # a condition that a walk lacks is absent in its rows
        missing = torch.zeros(len(walk), dtype=torch.int64)
        return walk.cond[name] if name in walk.cond else absent(_cut(examples[name], missing))

    cond = {name: joined([of(walk, name) for walk in walks]) for name in examples}
    t = torch.cat([walk.t for walk in walks])
    time = float(t[0]) if bool((t == t[0]).all()) else t
    return walks[0].model(cat_states([walk.z for walk in walks]), time, **cond)


class CountingModel:
    """The model as a `Corrector` calls it: with its conditions bound, counting calls and keeping the first belief."""

    def __init__(self, model: Any, cond: Mapping[str, Any]) -> None:
        self.model, self.cond, self.calls, self.belief = model, cond, 0, None

    def __call__(self, z: State, t: Any, **more: Any) -> Any:
        self.calls += 1
        belief = self.model(z, t, **self.cond, **more)
        self.belief = belief if self.belief is None else self.belief
        return belief

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def _one_call(call: Tensor) -> Tensor | int:
    return int(call[0]) if len(call) and bool((call == call[0]).all()) else call


def _one_for_all(flags: Tensor) -> bool | Tensor:
    return flags if len(flags) and bool(flags.any()) and not bool(flags.all()) else bool(flags.any())


def _put(whole: Tensor, rows: Tensor, part: Tensor) -> Tensor:
    return whole.index_copy(0, rows.to(whole.device), part.to(whole.dtype))


def _cut(value: Given | Tensor, index: Tensor) -> Any:
    return value.rows(index) if isinstance(value, Given) else value[index]
