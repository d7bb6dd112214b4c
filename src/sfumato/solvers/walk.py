"""A plan under way: rows of states, each at a call of its own, which move when they are told to.

    walk = plan.start(model, z, noise, **cond)
    while not walk.done:
        walk.advance()                      # one call of the model for all rows that are not at their end

`Plan.run` is its plain use, and the loop of every sampler. Between two calls rows may be chosen and doubled (`select`,
for resampling), left out (`drop`) or left behind (`advance(rows)`); `together` makes one call for several walks.
While all rows stand at one call the model gets its time as a number, else (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.solvers.arithmetic import Arithmetic
from sfumato.solvers.draws import AnyNoise, as_source, drawn, for_belief, normal_like, renumbered
from sfumato.solvers.lines import Corrector, Jump, Linear
from sfumato.state import State, cat_states, first_leaf, map_state, rows_of

if TYPE_CHECKING:
    from sfumato.solvers.plan import Plan


class Walk:
    """The rows z (B, ...) of a plan under way, their noise and conditions, and what later calls need of the past."""

    def __init__(self, plan: Plan, model: Any, z: State, noise: AnyNoise | None, cond: Mapping[str, Any]) -> None:
        self.plan, self.model, self.z, self.cond = plan, model, z, dict(cond)
        self.noise = as_source(noise)
        if plan.stochastic and self.noise is None:
            raise SfumatoError(f"The solver {plan.name} draws noise: pass a source of it.")
        self._call: int | Tensor = 0  # of all rows, or of each
        self._agenda, self._last = plan.agenda, plan.calls
        self._sums: Any = map_state(lambda leaf: Arithmetic(plan.program, leaf), z) if plan.sums else None
        self._single: Arithmetic | None = self._sums if isinstance(z, Tensor) else None
        self._carried: State | None = None

    def __len__(self) -> int:
        return len(first_leaf(self.z))

    @property
    def made(self) -> int:
        """How many calls all rows have made."""
        return self._call if isinstance(self._call, int) else int(self._call.min())

    @property
    def call(self) -> Tensor:
        """How many calls each row has made, int64 (B,): the number of the one that it stands before."""
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
        """Whether all rows are."""
        return self._call == self._last if isinstance(self._call, int) else bool(self.ended.all())

    def advance(self, rows: Tensor | Sequence[int] | None = None) -> Any:
        """One call of the model for all rows that are not at their end, or for these of them; the belief of the call.

        A `Corrector` calls the model as it likes: the belief is that of its first call, and None where rows of several
        calls moved and no other line was among theirs.
        """
        k = self._call
        if rows is not None or type(k) is not int:
            return self._advance_some(rows)
        if k == self._last:
            return None
        line, t, s, plain, noisy = self._agenda[k]
        if plain:
            z = self.z
            belief = self.model(z, t, **self.cond)
            z = self._single.step(k, z, belief.x) if self._single is not None else self._leaves(k, z, belief.mean)
            self.z = self._noised(k, line, z) if noisy else z
        else:
            belief = self._stepped(k, line, t, s)
        self._call = k + 1
        return belief

    def _leaves(self, k: int, z: State, x: State) -> State:
        return map_state(lambda sums, z, x: sums.step(k, z, x), self._sums, z, x)

    def _stepped(self, k: int, line: Any, t: float, s: float) -> Any:
        """Call k of a line that is no sum, for all rows at once; its belief."""
        z, noise = self.z, self.noise.at(k) if self.noise is not None and line.draws else None
        if isinstance(line, Corrector):
            watched = Watched(self.model, self.cond)
            self.z, self._carried = line(watched, z, t, s, self._carried, noise)
            return watched.belief
        belief = self.model(z, t, **self.cond)
        if self._sums is not None:
            map_state(lambda sums, z, x: sums.remember(k, z, x), self._sums, z, _mean(belief, z))
        self.z = line(z, belief, s, None if noise is None else for_belief(noise, z))
        return belief

    def _noised(self, k: int, line: Linear, z: State) -> State:
        """A new state with the noise of call k, for all rows at once."""
        assert self.noise is not None
        n, c = drawn(self.noise, k, z), line.noise
        if isinstance(z, Tensor) and not z.requires_grad and not isinstance(c, Tensor):
            return z.add_(n, alpha=c)
        return map_state(lambda z, n: z + (c.to(z) if isinstance(c, Tensor) else c) * n, z, n)

    # Rows that stand at different calls

    def _advance_some(self, rows: Tensor | Sequence[int] | None) -> Any:
        index = self._due(rows)
        if not len(index):
            return None
        z, t, cond = self._ask(index)
        belief = self.model(z, t, **cond)
        self._tell(index, belief)
        return belief

    def _due(self, rows: Tensor | Sequence[int] | None = None) -> Tensor:
        """Which rows want a call, of all or of these; those of them that stand at a `Corrector` have moved."""
        live = ~self.ended
        index = torch.nonzero(live)[:, 0] if rows is None else torch.as_tensor(rows, dtype=torch.int64)
        if len(index.unique()) < len(index):
            raise SfumatoError("A row makes one call at a time: the rows to advance are not all different.")
        index = index[live[index]]
        call = self.call[index]
        alone = [k for k in call.unique().tolist() if isinstance(self.plan.lines[k], Corrector)]
        for k in alone:
            self._correct(k, index[call == k])
        return index[~torch.isin(call, torch.tensor(alone))] if alone else index

    def _correct(self, k: int, rows: Tensor) -> None:
        """The step of call k, a `Corrector`, of some rows."""
        line, t, s, *_ = self._agenda[k]
        noise = self.noise.rows(rows).at(k) if self.noise is not None and line.draws else None
        carried = None if self._carried is None else rows_of(self._carried, rows)
        model = Watched(self.model, _rows(self.cond, rows))
        z, carried = line(model, rows_of(self.z, rows), t, s, carried, noise)
        if carried is not None:
            if self._carried is None:
                self._carried = map_state(lambda part: part.new_zeros(len(self), *part.shape[1:]), carried)
            self._carried = map_state(lambda old, new: _put(old, rows, new), self._carried, carried)
        self._move(rows, z)

    def _ask(self, rows: Tensor) -> tuple[State, Tensor | float, dict[str, Any]]:
        """What the model is asked about some rows."""
        call = self.call[rows]
        return rows_of(self.z, rows), _one(self.plan.moments[call]), _rows(self.cond, rows)

    def _tell(self, rows: Tensor, belief: Any) -> None:
        """Move these rows by the belief about them."""
        call, old = self.call[rows], rows_of(self.z, rows)
        noise = self.noise.rows(rows).at(call) if self.noise is not None and self.plan.stochastic else None
        new = old
        if self._sums is not None:
            new = map_state(lambda sums, z, x: sums.ragged(call, rows, z, x), self._sums, old, _mean(belief, old))
            if noise is not None and any(self._agenda[k].noisy for k in call.tolist()):
                xi = normal_like(noise, old)
                new = map_state(lambda sums, z, n: z + sums.noise(call, z) * n, self._sums, new, xi)
        for line, some in self._jumps(call):
            z = rows_of(old, some)
            source = for_belief(noise.rows(some), z) if noise is not None and line.draws else None
            part = line(z, belief.rows(some), _one(self.plan.moments[call[some] + 1]), source)
            new = map_state(lambda whole, part, some=some: _put(whole, some, part), new, part)
        self._move(rows, new)

    def _jumps(self, call: Tensor) -> list[tuple[Jump, Tensor]]:
        """Each `Jump` that is due, with the places of its rows."""
        found: dict[Jump, list[int]] = {}
        for i, k in enumerate(call.tolist()):
            line = self.plan.lines[k]
            if isinstance(line, Jump):
                found.setdefault(line, []).append(i)
        return [(line, torch.tensor(places)) for line, places in found.items()]

    def _move(self, rows: Tensor, new: State) -> None:
        """Put rows in their new place; where all stand at one call then, they are one again."""
        call = self.call.clone()
        call[rows] += 1
        self.z = map_state(lambda z, part: _put(z, rows, part), self.z, new)
        self._call = _together(call)

    # Other rows

    def select(self, index: Tensor | Sequence[int], samples: Tensor | Sequence[int] | None = None) -> None:
        """The walk of these rows, in this order; a row may come twice, and one that does not come is left out.

        History, conditions and noise go along, so that a row's samples stay what they were. samples: numbers of the
        samples that the rows draw their noise as from here on, by which twins part.
        """
        index = torch.as_tensor(index, dtype=torch.int64)
        self.z, self.cond = rows_of(self.z, index), _rows(self.cond, index)
        if self._sums is not None:
            map_state(lambda sums: sums.select(index), self._sums)
        if self._carried is not None:
            self._carried = rows_of(self._carried, index)
        if isinstance(self._call, Tensor):
            self._call = _together(self._call[index])
        if self.noise is not None and self.plan.stochastic:
            new = None if samples is None else torch.as_tensor(samples, dtype=torch.int64)
            self.noise = self.noise.rows(index) if new is None else renumbered(self.noise, new)

    def drop(self, rows: Tensor | Sequence[int]) -> None:
        """Leave rows out; the others keep their order."""
        keep = torch.ones(len(self), dtype=torch.bool)
        keep[torch.as_tensor(rows, dtype=torch.int64)] = False
        self.select(torch.nonzero(keep)[:, 0])


def together(walks: Sequence[Walk]) -> None:
    """Advance all rows of several walks of one model, of whatever plans and seeds, by one call for all of them."""
    due = [(walk, walk._due()) for walk in walks]
    due = [(walk, rows) for walk, rows in due if len(rows)]
    if not due:
        return
    first = due[0][0]
    if any(walk.model is not first.model or walk.cond.keys() != first.cond.keys() for walk, _ in due):
        raise SfumatoError("Walks that share a call need one model, and conditions of the same names.")
    states, times, conds = zip(*(walk._ask(rows) for walk, rows in due), strict=True)
    sizes = [len(rows) for _, rows in due]
    t = torch.cat([torch.as_tensor(t, dtype=torch.float64).expand(n) for t, n in zip(times, sizes, strict=True)])
    belief = first.model(cat_states(states), _one(t), **_joined(conds))
    start = 0
    for (walk, rows), n in zip(due, sizes, strict=True):
        walk._tell(rows, belief.rows(slice(start, start + n)))
        start += n


class Watched:
    """A model that a `Corrector` calls: its conditions are given, calls are counted, the first belief is kept."""

    def __init__(self, model: Any, cond: Mapping[str, Any]) -> None:
        self.model, self.cond, self.calls, self.belief = model, cond, 0, None

    def __call__(self, z: State, t: Any) -> Any:
        self.calls += 1
        belief = self.model(z, t, **self.cond)
        self.belief = belief if self.belief is None else self.belief
        return belief

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def _mean(belief: Any, z: State) -> State:
    return belief.x if isinstance(z, Tensor) else belief.mean


def _one(t: Tensor) -> Tensor | float:
    """Times (B,), or the one that they all are."""
    return float(t[0]) if bool((t == t[0]).all()) else t


def _together(call: Tensor) -> Tensor | int:
    return int(call[0]) if len(call) and bool((call == call[0]).all()) else call


def _put(whole: Tensor, rows: Tensor, part: Tensor) -> Tensor:
    return whole.index_copy(0, rows.to(whole.device), part.to(whole.dtype))


def _rows(cond: Mapping[str, Any], index: Tensor) -> dict[str, Any]:
    return {name: _each(value, lambda part: part[index]) for name, value in cond.items()}


def _each(value: Any, f: Callable[[Any], Any]) -> Any:
    """Of a condition's tensor, or of all that a tuple of values and presence holds."""
    return type(value)(*map(f, value)) if isinstance(value, tuple) else f(value)


def _joined(conds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out = {}
    for name, first in conds[0].items():
        values = [cond[name] for cond in conds]
        tuples = isinstance(first, tuple)
        out[name] = type(first)(*map(torch.cat, zip(*values, strict=True))) if tuples else torch.cat(values)
    return out
