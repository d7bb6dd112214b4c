"""The arithmetic of a plan's lines, in as few tensor operations as the table allows.

    m_j = z_part z_j + x_part x_j                what later lines need of call j: one tensor where one suffices
    z_{k+1} = a_k z_k + b_k x_k + sum_j c_kj m_j

A line of a multistep method sees the past through one value of its row for each call, so that x_j and z_j occur in
one proportion and one m_j is kept of them. The m_j lie side by side in one buffer, and a line is one product of that
buffer with its coefficients: two operations a step, of whatever order. A call whose proportions differ keeps both.
Coefficients are applied in the dtype of the state, float32 at least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_PARALLEL = 1e-13  # proportions that differ by less differ by rounding
_AMPLIFIED = 10.0  # x_k is read back from m_k only where that multiplies rounding by less


class Terms(Protocol):
    """The coefficients of one line: index of the call -> coefficient."""

    @property
    def z(self) -> Mapping[int, float]: ...

    @property
    def x(self) -> Mapping[int, float]: ...


class Memory(NamedTuple):
    """m = z_part z + x_part x in the buffer's row `slot`; the larger of the parts is 1."""

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
    """One line: the memories to keep of (z, x), then a z + b x + the sum of coefficient * memory over `past`."""

    keep: tuple[Memory, ...]
    a: float
    b: float
    past: tuple[tuple[int, float], ...]


class Program(NamedTuple):
    """All lines of a plan; the weights of `past` as a table (lines, slots), and the own factor of each line; float64.

    A factor that is a tensor already costs half of one that torch must make a tensor of.
    """

    moves: tuple[Move, ...]
    weights: Tensor
    factors: Tensor


def compiled(lines: Sequence[Terms]) -> Program:
    """Which memories each call leaves, in which rows of the buffer, and each line in terms of them."""
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
    weights = [[dict(move.past).get(slot, 0.0) for slot in range(slots)] for move in moves]
    factors = [move.a or move.b for move in moves]
    return Program(tuple(moves), *(torch.tensor(numbers, dtype=torch.float64) for numbers in (weights, factors)))


def _later_uses(lines: Sequence[Terms]) -> list[list[tuple[int, float, float]]]:
    """For each call j, (k, coefficient of z_j, coefficient of x_j) of every line after its own that uses it."""
    uses: list[list[tuple[int, float, float]]] = [[] for _ in lines]
    for k, line in enumerate(lines):
        for j in {*line.z, *line.x} - {k}:
            uses[j].append((k, line.z.get(j, 0.0), line.x.get(j, 0.0)))
    return uses


def _directions(pairs: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """(z_part, x_part) of the memories that span these coefficients: none, one proportion, or z and x themselves."""
    if not pairs:
        return []
    size, z, x = max((math.hypot(z, x), z, x) for z, x in pairs)
    if size == 0:
        return []
    if any(abs(p * x - q * z) > _PARALLEL * size * size for p, q in pairs):
        return [(1.0, 0.0), (0.0, 1.0)]
    return [(z / x, 1.0)] if abs(x) >= abs(z) else [(1.0, x / z)]


def _through(memories: Sequence[Memory], z: float, x: float) -> list[tuple[int, float]]:
    """(slot, coefficient) with which the memories of a call make z z_j + x x_j."""
    if len(memories) == 1:
        (m,) = memories
        return [(m.slot, x if m.x_part == 1 else z)] if z or x else []
    return [(m.slot, c) for m, c in zip(memories, (z, x), strict=False) if c]


def _move(kept: tuple[Memory, ...], a: float, b: float, past: list[tuple[int, float]]) -> Move:
    """A line whose own x comes from the memory that was just kept, where one operation is saved by it."""
    if len(kept) == 1 and b and abs(kept[0].z_part) <= _AMPLIFIED * abs(kept[0].x_part):
        (m,) = kept
        return Move(kept, a - b * m.z_part / m.x_part, 0.0, ((m.slot, b / m.x_part), *past))
    if len(kept) == 2 and b:
        return Move(kept, a, 0.0, ((kept[1].slot, b), *past))
    return Move(kept, a, b, tuple(past))


class Arithmetic:
    """A program at work on states of one shape: `step` takes call k's state and estimate to the next state.

    Nothing that went in or came out is written to. From the first call on whose state or estimate asks for a gradient,
    every operation makes a new tensor.
    """

    def __init__(self, program: Program, like: Tensor) -> None:
        low = like.dtype in (torch.float16, torch.bfloat16)
        self.moves, self.result, self.dtype = program.moves, like.dtype, torch.float32 if low else like.dtype
        self.weights = program.weights.to(like.device, self.dtype).unbind(0)
        self.factors = program.factors.to(self.dtype).unbind(0)
        with torch.no_grad():
            buffer = torch.zeros(program.weights.shape[1], like.numel(), dtype=self.dtype, device=like.device)
        self.rows = [row.view(like.shape) for row in buffer.unbind(0)]
        self.columns = buffer.t()
        self.graph: dict[int, Tensor] | None = None  # the memories of a walk with gradients

    def step(self, k: int, z: Tensor, x: Tensor) -> Tensor:
        if not z.dtype is x.dtype is self.dtype:
            z, x = z.to(self.dtype), x.to(self.dtype)
        wanted = torch.is_grad_enabled() and (z.requires_grad or x.requires_grad)
        out = self._grown(k, z, x) if wanted or self.graph is not None else self._fused(k, z, x)
        return out if self.dtype is self.result else out.to(self.result)

    def _fused(self, k: int, z: Tensor, x: Tensor) -> Tensor:
        move = self.moves[k]
        for memory in move.keep:
            memory.of(z, x, out=self.rows[memory.slot])
        if move.past:
            out = torch.addmv(z.reshape(-1), self.columns, self.weights[k], beta=move.a).view_as(z)
            return out.add_(x, alpha=move.b) if move.b else out
        if not move.a:
            return torch.mul(x, self.factors[k])
        return torch.mul(z, self.factors[k]).add_(x, alpha=move.b)

    def _grown(self, k: int, z: Tensor, x: Tensor) -> Tensor:
        """The same line, with nothing written in place."""
        if self.graph is None:
            self.graph = dict(enumerate(self.rows))
        move = self.moves[k]
        out = torch.add(move.a * z, x, alpha=move.b) if move.b else move.a * z
        for memory in move.keep:
            self.graph[memory.slot] = memory.of(z, x)
        for slot, c in move.past:
            out = torch.add(out, self.graph[slot], alpha=c)
        return out
