"""The columns of a table as pictures, as samples, or as conditions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from .. import cache
from ..errors import SfumatoError, counted
from ..machine import fits
from ..progress import counting
from . import arrays, sequences
from .column import Column, Unread, column, named
from .images import Items
from .rows import READING, Rows, Samples, in_blocks
from .tables import TableFiles, depth, encoded_bytes, is_number, is_string, leaf

_KEPT = 6  # groups kept in memory: enough for the current and the next window of the training order
T = TypeVar("T")


def _recent(function: Callable[[int], T]) -> Callable[[int], T]:
    """Cache the last few results of a function of a group's number; only one thread at a time computes."""
    kept, lock = lru_cache(_KEPT)(function), threading.Lock()

    def found(number: int) -> T:
        with lock:
            return kept(number)

    return found


@final
class PictureColumn(Items):
    """The pictures in a column."""

    def __init__(self, table: TableFiles, name: str) -> None:
        self.table, self.name, self.where = table, name, table.where
        self.names = [str(i) for i in range(len(table))]
        self.blocks = table.counts
        self._group = _recent(lambda number: table.group(number, [name]).column(0))

    def read(self, number: int) -> bytes:
        group = int(np.searchsorted(self.table.starts, number, side="right")) - 1
        cell = self._group(group)[number - int(self.table.starts[group])].as_py()
        packed = encoded_bytes(cell)
        if not packed:
            path = cell.get("path") if isinstance(cell, dict) else None
            raise ValueError(f"it holds no picture, only the path {path}" if path else "the cell is empty")
        return packed

    @property
    def nbytes(self) -> int:
        return self.table.nbytes

    def key(self) -> Any:
        return [self.table.key(), self.name]


@final
class Numbers(Rows):
    """Columns of numbers (N, D), or one of lists (N, *shape), read by group and arranged like arrays."""

    def __init__(self, table: TableFiles, names: Sequence[str]) -> None:
        self.table, self.names, self.raw = table, list(names), _recent(self.read)
        first = next(self.raw(i)[:1] for i, count in enumerate(table.counts) if count)
        x, self.kind, self.notes = arrays.arrange(arrays.to_tensor(first, table.where), table.where)
        self.raw_dtype, self.raw_shape = first.dtype, (len(table), *first.shape[1:])
        super().__init__((len(table), *x.shape[1:]), x.dtype)
        self.where = table.where

    def read(self, group: int) -> np.ndarray:
        """A group as stored, (n, D) or (n, *shape)."""
        table = self.table.group(group, self.names)
        place = f" from row {int(self.table.starts[group]):,} on"
        words = f"{self.table.where}: {{}} of "
        dense = [_dense(_plain(table.column(name)), f"{words}{name!r}", place) for name in self.names]
        return dense[0] if len(dense) == 1 and dense[0].ndim > 1 else np.stack(dense, 1)

    def take(self, rows: np.ndarray) -> Tensor:
        if not len(rows):
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        out = np.empty((len(rows), *self.raw_shape[1:]), self.raw_dtype)
        groups = np.searchsorted(self.table.starts, rows, side="right") - 1
        with self.spent.on(READING):
            for group in np.unique(groups):
                here = groups == group
                out[here] = self.raw(int(group))[rows[here] - self.table.starts[group]]
        return arrays.arrange(arrays.to_tensor(out, self.where), self.where)[0]


def read_numbers(table: TableFiles, names: Sequence[str]) -> tuple[Samples, str, list[str], str]:
    """(samples x (N, *shape), their kind, notes, identity) of columns of numbers.

    In memory if they fit, otherwise read by group on access.
    """
    rows = Numbers(table, names)
    identity, notes = cache.identity(["numbers", table.key(), list(names)]), list(rows.notes)
    x: Samples = rows
    if fits(int(np.prod(rows.raw_shape)) * rows.raw_dtype.itemsize):
        raw = np.empty(rows.raw_shape, rows.raw_dtype)
        with counting("Reading rows", len(rows)) as count:
            for group, start in enumerate(table.starts[:-1]):
                raw[start : start + table.counts[group]] = rows.read(group)
                count(table.counts[group])
        x = arrays.arrange(arrays.to_tensor(raw, table.where), table.where)[0]
    else:
        notes.append("The table does not fit into memory: its rows are read by group whenever they are used.")
    return in_blocks(x, table.counts), rows.kind, notes, identity


def read_lists(table: TableFiles, name: str, layout: str = "") -> list[Tensor]:
    """The cells of a column of lists of several lengths, (L,) or (L, C) each; [] for any other column.

    layout: of lists that are known to be sequences, which may then all be as long.
    """
    chunks = [_plain(chunk) for chunk in table.whole(name)]
    lengths = {length for chunk in chunks for length in _list_lengths(chunk)} if depth(chunks[0].type) else set()
    if len(lengths) < (1 if layout else 2):
        return []
    for chunk in chunks:
        _require_whole(chunk, f"{table.where}: {{}} of {name!r}")
    cells = [cell for chunk in chunks for cell in chunk.to_numpy(zero_copy_only=False)]
    try:
        parts = [np.stack(list(cell)) if depth(chunks[0].type) > 1 else cell for cell in cells]
    except ValueError:
        raise SfumatoError(f"{table.where}: {name!r} has a step with other channels than the one before it") from None
    if not (found := sequences.found(parts, layout)):
        raise SfumatoError(f"{table.where}: {name!r} {arrays.ragged(parts)}")
    return found


def _list_lengths(values: Any) -> list[Any]:
    """The length of each list of a column, None for an empty cell."""
    from pyarrow import compute

    found: list[Any] = compute.list_value_length(values).to_pylist()
    return found


def _plain(chunked: Any) -> Any:
    """A chunked column as one array of its storage type."""
    import pyarrow as pa

    values = chunked.combine_chunks()
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def _dense(values: Any, words: str, place: str = "") -> np.ndarray:
    """Numbers, or lists of one shape, as an array. Raises SfumatoError for empty cells and for unequal lengths."""
    shape: list[int] = [len(values)]
    while depth(values.type):
        _require_whole(values, words, place)
        lengths = set(_list_lengths(values)) or {0}
        if len(lengths) > 1:
            raise SfumatoError(
                f"{words.format('the lists')} have lengths from {min(lengths)} to {max(lengths)}: every sample must "
                "have the same shape"
            )
        values = values.flatten()
        shape.append(lengths.pop())
    _require_whole(values, words, place)
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _require_whole(values: Any, words: str, place: str = "") -> None:
    if values.null_count:
        cells = words.format(counted(values.null_count, "cell", "cells"))
        are = "is" if values.null_count == 1 else "are"
        raise SfumatoError(f"{cells} {are} empty{place}: fill them, remove these rows, or make the column a condition")


def read_column(table: TableFiles, name: str, limit: int | None = None) -> Column:
    """A column of numbers, of lists of numbers, of strings or of lists of strings.

    limit: the most distinct strings. Raises `Unread` if there are more, and for columns of another type.
    """
    parts = [_plain(part) for part in table.whole(name)]
    kind = parts[0].type
    if is_number(leaf(kind)):
        return _numbers_of(parts, name)
    if is_string(leaf(kind)) and depth(kind) < 2:
        return _strings_of(parts, name, limit if depth(kind) == 0 else None)
    raise Unread(f"{kind} is not read")


def _numbers_of(parts: Sequence[Any], name: str) -> Column:
    present = np.concatenate([part.is_valid().to_numpy(zero_copy_only=False) for part in parts])
    try:
        dense = [_dense(part.drop_null(), f"{{}} of {name!r}") for part in parts]
    except SfumatoError as why:
        raise Unread(str(why)) from None
    with named(name):
        found = column(np.concatenate([part for part in dense if len(part)] or dense[:1]))
    return found.scattered(present)


def _strings_of(parts: Sequence[Any], name: str, limit: int | None) -> Column:
    cells: list[Any] = []
    seen: set[Any] = set()
    for part in parts:
        if limit is not None:
            seen.update(part.unique().to_pylist())
            if len(seen) > limit + 1:  # one of them may be None
                raise Unread(f"text of many kinds: --condition {name}:text reads it")
        cells += part.to_pylist()
    return column(cells)
