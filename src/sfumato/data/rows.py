"""Samples that are read when they are asked for: what a tensor (N, *shape) is to the rest, without the memory.

    x[5], x[10:20], x[index]  ->  a tensor in memory, as of a tensor

`Mapped` are rows of an array on the disk, `Part` some rows of others. What the rows cost to get is counted by cause.
"""

from __future__ import annotations

import abc
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from torch import Tensor

from . import arrays

BLOCKS_FROM = 2 << 30  # bytes: what is smaller is mixed as a whole
READING, DECODING = "disk", "decoding"  # causes, as `training.waiting` names them


class Spent:
    """Seconds by cause, counted by any number of threads."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def on(self, cause: str) -> Iterator[None]:
        """Within the block time counts for a cause."""
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            with self._lock:
                self._seconds[cause] = self._seconds.get(cause, 0.0) + took

    @property
    def total(self) -> float:
        with self._lock:
            return sum(self._seconds.values())

    @property
    def most(self) -> str | None:
        """The cause that took longest; None before anything was counted."""
        with self._lock:
            return max(self._seconds, key=lambda name: self._seconds[name], default=None)


class Rows(abc.ABC):
    """Samples of one shape and dtype, by number.

    shape: (N, *shape), as of a tensor. blocks: where neighbours are cheaper to read together than apart, the number of
    each row's block, int64 (N,) and never falling; the order of training then stays within a few blocks for a while.
    workers: threads that it is worth reading with. where: what holds them, in words. identity: names the content, and
    None where that is not known. Any thread may read.
    """

    blocks: Tensor | None = None
    workers: int = 1
    where: str = "the data"
    identity: str | None = None

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, spent: Spent | None = None) -> None:
        self.shape, self.dtype, self.spent = torch.Size(shape), dtype, spent or Spent()

    @abc.abstractmethod
    def take(self, rows: np.ndarray) -> Tensor:
        """The samples of these numbers, int64 (n,) -> (n, *shape), in memory of their own."""

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel() * self.dtype.itemsize

    def __getitem__(self, key: int | slice | Tensor) -> Tensor:
        if isinstance(key, slice):
            return self.take(np.arange(*key.indices(len(self))))
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise IndexError(f"there are {len(self)} samples, and {key} is none of them")
            return self.take(np.array([key % len(self)]))[0]
        return self.take(np.asarray(key.cpu(), dtype=np.int64).reshape(-1) % len(self))


Samples = Tensor | Rows


@final
class Mapped(Rows):
    """Rows of an array that stays on the disk; only what is asked for comes into memory, and the system may drop it.

    array: (N, ...), a read-only numpy.memmap. Samples have the arrangement that `arrays.arrange` gives them, with its
    `kind` and `notes`.
    """

    def __init__(self, array: np.ndarray, where: str, identity: str | None = None) -> None:
        first, self.kind, self.notes = arrays.arrange(arrays.to_tensor(np.array(array[:1]), where), where)
        super().__init__((len(array), *first.shape[1:]), first.dtype)
        self.array, self.where, self.identity = array, where, identity

    def take(self, rows: np.ndarray) -> Tensor:
        with self.spent.on(READING):
            block = np.array(self.array[rows])
        if not len(block):
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        return arrays.arrange(arrays.to_tensor(block, self.where), self.where)[0]


@final
class Part(Rows):
    """Some rows of others, without a copy."""

    def __init__(self, base: Samples, index: Tensor) -> None:
        rest = base.spent if isinstance(base, Rows) else None
        super().__init__((len(index), *base.shape[1:]), base.dtype, rest)
        self.base, self.index = base, index.numpy()
        if isinstance(base, Rows):
            self.workers, self.where = base.workers, base.where
            self.blocks = None if base.blocks is None else base.blocks[index]
        else:
            self.workers = 0

    def take(self, rows: np.ndarray) -> Tensor:
        return self.base[torch.from_numpy(self.index[rows])]


def in_blocks(x: Samples, sizes: Sequence[int] | None, rows: Sequence[int] | None = None) -> Samples:
    """x, with the blocks that its rows lie in: runs of `sizes` neighbours, of which x has those that are named.

    Only where all are more than `BLOCKS_FROM` bytes, a question that has one answer on every machine.
    """
    if sizes is None or len(sizes) < 2 or x.nbytes <= BLOCKS_FROM:
        return x
    blocks = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    view = Part(x, torch.arange(len(x)))
    view.blocks = blocks if rows is None else blocks[torch.tensor(rows)]
    return view


def part(x: Samples, index: Tensor) -> Samples:
    """The rows of x that are named: a copy where x is a small tensor, else a view."""
    return x[index] if isinstance(x, Tensor) and x.nbytes <= arrays.MAP_BYTES else Part(x, index)
