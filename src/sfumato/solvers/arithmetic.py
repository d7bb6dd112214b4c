"""Evaluate the lines of a plan in as few tensor operations as possible.

    m_j = z_part z_j + x_part x_j                what later lines need from call j: one tensor if possible
    z_{k+1} = a_k z_k + b_k x_k + sum_j c_kj m_j

A multistep method uses one value of its row per past call, so z_j and x_j always occur in the same proportion and a
single m_j suffices. All m_j share one buffer, and a line is one product of that buffer with its coefficients: two
operations per step at any order. A call that is used in different proportions stores both z_j and x_j, as does one with
vector coefficients (one per element). Coefficients are applied in the dtype of the state, at least float32.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.solvers.lines import Coefficient, Linear, is_nonzero

_PARALLEL = 1e-13  # proportions closer than this are equal up to rounding
_AMPLIFIED = 10.0  # x_k is recovered from m_k only if that amplifies rounding by less


class Memory(NamedTuple):
    """m = z_part z + x_part x, stored in row `slot` of the buffer; the larger part is 1."""

    slot: int
    z_part: float
    x_part: float

    def of(self, z: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        if not (self.z_part and self.x_part):
            only = z if self.z_part else x
            return only if out is None else out.copy_(only)
        if self.x_part == 1:
            return torch.add(x, z, alpha=self.z_part, out=out)
        return torch.add(z, x, alpha=self.x_part, out=out)


class Move(NamedTuple):
    """One line: store the memories `keep` of (z, x), then compute a z + b x + sum of coefficient * memory in `past`."""

    keep: tuple[Memory, ...]
    a: Any
    b: Any
    past: tuple[tuple[int, Any], ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """All lines of a plan; `weights` of `past` as a table (lines, slots), `factors` of each line's own state; float64.

    Factors are tensors, because torch takes twice as long with Python numbers. If any coefficient is a vector,
    `weights` and `factors` have no rows and all lines are computed term by term.
    """

    moves: tuple[Move, ...]
    slots: int
    numbers: bool  # whether no coefficient is a vector

    @functools.cached_property
    def weights(self) -> Tensor:
        rows = [[dict(move.past).get(slot, 0.0) for slot in range(self.slots)] for move in self.moves]
        return torch.tensor(rows, dtype=torch.float64) if self.numbers else torch.zeros(0, self.slots)

    @functools.cached_property
    def factors(self) -> Tensor:
        own = [move.a or move.b for move in self.moves] if self.numbers else []
        return torch.tensor(own, dtype=torch.float64)


def compiled(lines: Sequence[Linear]) -> Program:
    """Compile lines: choose the memories that each call stores, assign buffer rows, express each line through them."""
    uses = _later_uses(lines)
    last = [max((k for k, *_ in use), default=-1) for use in uses]
    free: list[int] = []
    slots, live, moves = 0, dict[int, tuple[Memory, ...]](), []
    for k, line in enumerate(lines):
        kept = []
        for z_part, x_part in _directions([pair for _, *pair in uses[k]]):
            if not free:
                free, slots = [slots], slots + 1
            kept.append(Memory(free.pop(), z_part, x_part))
        past = [
            term for j, memories in live.items() for term in _through(memories, line.z.get(j, 0.0), line.x.get(j, 0.0))
        ]
        moves.append(_move(tuple(kept), line.z.get(k, 0.0), line.x.get(k, 0.0), past))
        live[k] = tuple(kept)
        for j in [j for j in live if last[j] <= k]:
            free += [memory.slot for memory in live.pop(j)]
    return Program(tuple(moves), slots, all(line.numbers for line in lines))


def _later_uses(lines: Sequence[Linear]) -> list[list[tuple[int, Coefficient, Coefficient]]]:
    """For each call j, (k, coefficient of z_j, coefficient of x_j) of every later line k that uses it."""
    uses: list[list[tuple[int, Coefficient, Coefficient]]] = [[] for _ in lines]
    for k, line in enumerate(lines):
        for j in {*line.z, *line.x} - {k}:
            uses[j].append((k, line.z.get(j, 0.0), line.x.get(j, 0.0)))
    return uses


def _directions(pairs: Sequence[Sequence[Any]]) -> list[tuple[float, float]]:
    """(z_part, x_part) of the memories that span these coefficients: none, one proportion, or z and x themselves."""
    numbers = [(z, x) for z, x in pairs if not (isinstance(z, Tensor) or isinstance(x, Tensor))]
    if len(numbers) < len(pairs):
        used = [any(is_nonzero(pair[i]) for pair in pairs) for i in (0, 1)]
        return [part for part, needed in zip(((1.0, 0.0), (0.0, 1.0)), used, strict=True) if needed]
    if not numbers:
        return []
    size, z, x = max((math.hypot(z, x), z, x) for z, x in numbers)
    if size == 0:
        return []
    if any(abs(p * x - q * z) > _PARALLEL * size * size for p, q in numbers):
        return [(1.0, 0.0), (0.0, 1.0)]
    return [(z / x, 1.0)] if abs(x) >= abs(z) else [(1.0, x / z)]


def _through(memories: Sequence[Memory], z: Coefficient, x: Coefficient) -> list[tuple[int, Coefficient]]:
    """(slot, coefficient) pairs that express z z_j + x x_j through the memories of call j."""
    if len(memories) == 1:
        (m,) = memories
        return [(m.slot, x if m.x_part == 1 else z)] if is_nonzero(z) or is_nonzero(x) else []
    return [(m.slot, c) for m, c in zip(memories, (z, x), strict=False) if is_nonzero(c)]


def _move(kept: tuple[Memory, ...], a: Coefficient, b: Coefficient, past: list[tuple[int, Coefficient]]) -> Move:
    """The `Move` of a line; it reads its own x from the memory just stored if that saves an operation."""
    if len(kept) == 1 and is_nonzero(b) and abs(kept[0].z_part) <= _AMPLIFIED * abs(kept[0].x_part):
        (m,) = kept
        return Move(kept, a - b * m.z_part / m.x_part, 0.0, ((m.slot, b / m.x_part), *past))
    if len(kept) == 2 and is_nonzero(b):
        return Move(kept, a, 0.0, ((kept[1].slot, b), *past))
    return Move(kept, a, b, tuple(past))


def _plus(out: Tensor, c: Coefficient, y: Tensor) -> Tensor:
    return out + c.to(y) * y if isinstance(c, Tensor) else torch.add(out, y, alpha=c)


class Arithmetic:
    """Runs a program on states of one shape: `step` takes call k's state and estimate to the next state.

    Inputs and results are never modified in place. Once a state or estimate requires a gradient, every operation
    allocates a new tensor.
    """

    def __init__(self, program: Program, like: Tensor) -> None:
        low = like.dtype in (torch.float16, torch.bfloat16)
        self.program, self.moves = program, program.moves
        self.result, self.dtype, self.whole = like.dtype, torch.float32 if low else like.dtype, not low
        self.weights = program.weights.to(like.device, self.dtype).unbind(0)
        self.factors = program.factors.to(self.dtype).unbind(0)
        with torch.no_grad():
            self._set_memory(torch.zeros(program.slots, *like.shape, dtype=self.dtype, device=like.device))

    def _set_memory(self, memory: Tensor) -> None:
        """Set the memory, (slots, B, *shape)."""
        self._memory, self.rows = memory, memory.unbind(0)
        self.graph = dict(enumerate(self.rows)) if memory.requires_grad else None  # memories with gradients, by slot
        self.term_by_term = memory.requires_grad or not self.program.numbers
        self.columns = memory.reshape(len(memory), math.prod(memory.shape[1:])).t()

    @property
    def memory(self) -> Tensor:
        if not self.graph:
            return self._memory
        return torch.stack([self.graph[slot] for slot in range(len(self.rows))])

    def remember(self, k: int, z: Tensor, x: Tensor) -> None:
        """Store what later lines need from a call whose own line is not `Linear`."""
        if self.moves[k].keep:
            self.step(k, z, x)

    def step(self, k: int, z: Tensor, x: Tensor) -> Tensor:
        dtype = self.dtype
        if z.dtype is not dtype or x.dtype is not dtype:
            z, x = z.to(dtype), x.to(dtype)
        if self.term_by_term or ((z.requires_grad or x.requires_grad) and torch.is_grad_enabled()):
            out = self._out_of_place(k, z, x)
            return out if self.dtype is self.result else out.to(self.result)
        move = self.moves[k]
        for memory in move.keep:
            memory.of(z, x, out=self.rows[memory.slot])
        if move.past:
            out = z.reshape(-1).addmv(self.columns, self.weights[k], beta=move.a).view_as(z)
            out = out.add_(x, alpha=move.b) if move.b else out
        elif move.a:
            out = z.mul(self.factors[k]).add_(x, alpha=move.b)
        else:
            out = x.mul(self.factors[k])
        return out if self.whole else out.to(self.result)

    def _out_of_place(self, k: int, z: Tensor, x: Tensor) -> Tensor:
        """The same line without in-place operations."""
        if self.graph is None:
            self.graph, self.term_by_term = dict(enumerate(self.rows)), True
        move = self.moves[k]
        out = move.a.to(z) * z if isinstance(move.a, Tensor) else move.a * z
        out = _plus(out, move.b, x) if is_nonzero(move.b) else out
        for memory in move.keep:
            self.graph[memory.slot] = memory.of(z, x)
        for slot, c in move.past:
            out = _plus(out, c, self.graph[slot])
        return out

    def part(self, rows: Tensor) -> Arithmetic:
        """A copy for some of the rows, with their memory."""
        part = copy.copy(self)
        part._set_memory(self.memory.index_select(1, rows.to(self._memory.device)))
        return part

    def take(self, rows: Tensor, part: Arithmetic) -> None:
        """Copy the memory of these rows back from a part."""
        self._set_memory(self.memory.index_copy(1, rows.to(self._memory.device), part.memory))
