"""Samples read row by row on access, indexed like a tensor (N, *shape) without holding it in memory.

    x[5], x[10:20], x[index]  ->  a tensor in memory

`Mapped` reads an array on disk, `Subset` selects rows of others. The time spent on reading is counted by cause.
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
from .file_format import Unread

BLOCKS_FROM = 2 << 30  # bytes: smaller data are shuffled as a whole
READING, DECODING = "disk", "decoding"  # causes of waiting


class Spent:
    """Seconds spent by cause, counted from any number of threads."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def on(self, cause: str) -> Iterator[None]:
        """Count the time within the block for a cause."""
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
        """The cause that took longest; None if nothing was counted."""
        with self._lock:
            return max(self._seconds, key=lambda name: self._seconds[name], default=None)


class Rows(abc.ABC):
    """Samples of one shape and dtype, read row by row. Thread-safe.

    shape: (N, *shape), as for a tensor. blocks: int64 (N,), ascending, the block of each row, if neighbours are cheaper
    to read together; training then works through a few blocks at a time. workers: a useful number of reading threads.
    where: a description of what holds the samples. identity: a hash that identifies the content, or None.
    """

    blocks: Tensor | None = None
    workers: int = 1
    where: str = "the data"
    identity: str | None = None

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, spent: Spent | None = None) -> None:
        self.shape, self.dtype, self.spent = torch.Size(shape), dtype, spent or Spent()

    @abc.abstractmethod
    def take(self, rows: np.ndarray) -> Tensor:
        """The samples at these rows, int64 (n,) -> a new tensor (n, *shape)."""

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
                raise IndexError(f"there is no sample {key} among {len(self)}")
            return self.take(np.array([key % len(self)]))[0]
        return self.take(np.asarray(key.cpu(), dtype=np.int64).reshape(-1) % len(self))


Samples = Tensor | Rows


@final
class Mapped(Rows):
    """Rows of an array on disk; only rows that are read take memory, which the system may reclaim.

    array: (N, ...), a read-only numpy.memmap, or rows that a format reads. Samples are arranged by `arrays.arrange`;
    kind, notes: its results.
    """

    def __init__(self, array: np.ndarray | Unread, where: str, identity: str | None = None) -> None:
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
class Subset(Rows):
    """Selected rows of other samples, without a copy."""

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
    """x with `blocks` set: runs of `sizes` neighbours, of which x has those at `rows` (None: all).

    Data of up to `BLOCKS_FROM` bytes get none, so that the training order depends on the data, not on the machine.
    """
    if sizes is None or len(sizes) < 2 or x.nbytes <= BLOCKS_FROM:
        return x
    blocks = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    view = Subset(x, torch.arange(len(x)))
    view.blocks = blocks if rows is None else blocks[torch.tensor(rows)]
    return view


def part(x: Samples, index: Tensor) -> Samples:
    """x[index]: a copy where x is a small tensor, else a view."""
    return x[index] if isinstance(x, Tensor) and x.nbytes <= arrays.MAP_BYTES else Subset(x, index)
