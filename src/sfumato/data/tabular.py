"""Columns of numbers as samples: in memory, in the cache or by row group, wherever there is room for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError
from ..machine import fits
from ..progress import counting
from . import arrays, cache
from .column import Column, Unread, column, named
from .rows import READING, Mapped, Rows, Samples, in_blocks
from .tables import Table, depth, is_number, is_string, leaf


class Tabular(NamedTuple):
    """Samples x (N, *shape), what they are, what was done, and a name for exactly these values."""

    x: Samples
    kind: str
    notes: list[str]
    identity: str


@final
class Numbers(Rows):
    """Columns of numbers (N, D), or one of lists (N, *shape), read by row group; arranged as arrays are."""

    def __init__(self, table: Table, chosen: Sequence[str]) -> None:
        self.table, self.chosen = table, list(chosen)
        first = next(self.raw(i)[:1] for i, count in enumerate(table.counts) if count)
        x, self.kind, self.notes = arrays.arrange(arrays.to_tensor(first, table.where), table.where)
        self.raw_dtype, self.raw_shape = first.dtype, (len(table), *first.shape[1:])
        super().__init__((len(table), *x.shape[1:]), x.dtype)
        self.where = table.where

    def raw(self, group: int) -> np.ndarray:
        """A row group as the file has it, (n, D) or (n, *shape)."""
        table = self.table.group(group, self.chosen)
        place = f" from row {int(self.table.starts[group]):,} on"
        dense = [
            _dense(_plain(table.column(name)), f"{self.table.where}: {{}} of {name!r}", place) for name in self.chosen
        ]
        return dense[0] if len(dense) == 1 and dense[0].ndim > 1 else np.stack(dense, 1)

    def take(self, rows: np.ndarray) -> Tensor:
        out = np.empty((len(rows), *self.raw_shape[1:]), self.raw_dtype)
        groups = np.searchsorted(self.table.starts, rows, side="right") - 1
        with self.spent.on(READING):
            for group in np.unique(groups):
                here = groups == group
                out[here] = self.raw(int(group))[rows[here] - self.table.starts[group]]
        if not len(out):
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        return arrays.arrange(arrays.to_tensor(out, self.where), self.where)[0]


def _plain(column: Any) -> Any:
    """One array of a chunked column, without the clothes of an extension."""
    import pyarrow as pa

    values = column.combine_chunks()
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def _dense(values: Any, words: str, place: str = "") -> np.ndarray:
    """Numbers or lists of one shape as an array; SfumatoError where some are empty or of another length."""
    from pyarrow import compute

    shape = [len(values)]
    while depth(values.type):
        _whole(values, words, place)
        lengths = set(compute.list_value_length(values).to_pylist()) or {0}
        if len(lengths) > 1:
            raise SfumatoError(
                f"{words.format('the lists')} have lengths from {min(lengths)} to {max(lengths)}: every sample must "
                "have the same shape"
            )
        values = values.flatten()
        shape.append(lengths.pop())
    _whole(values, words, place)
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _whole(values: Any, words: str, place: str) -> None:
    if values.null_count:
        cells = words.format(f"{values.null_count:,} cells")
        raise SfumatoError(f"{cells} are empty{place}: fill them, or remove these rows")


def read_column(table: Table, name: str, limit: int | None = None) -> Column:
    """A column of numbers, of lists of numbers, of strings or of lists of strings.

    limit: how many distinct strings are read at most. `Unread` for more, and for columns of another type.
    """
    parts = [_plain(table.group(i, [name]).column(0)) for i, count in enumerate(table.counts) if count]
    kind = parts[0].type
    if is_number(leaf(kind)):
        return _numbers_of(parts, name)
    if is_string(leaf(kind)) and depth(kind) < 2:
        return _strings_of(parts, limit if depth(kind) == 0 else None)
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


def _strings_of(parts: Sequence[Any], limit: int | None) -> Column:
    cells: list[Any] = []
    seen: set[Any] = set()
    for part in parts:
        if limit is not None:
            seen.update(part.unique().to_pylist())
            if len(seen) > limit + 1:  # one of them may be None
                raise Unread("text of many kinds, which is not read yet")
        cells += part.to_pylist()
    return column(cells)


def read_numbers(table: Table, chosen: Sequence[str]) -> Tabular:
    """The numbers of these columns; those of a large table are copied into the cache once, where any row is near."""
    rows = Numbers(table, chosen)
    identity = cache.identity(["numbers", table.key(), list(chosen)])
    nbytes = int(np.prod(rows.raw_shape)) * rows.raw_dtype.itemsize
    told: list[str] = []
    x: Samples = rows
    if fits(nbytes):
        raw = np.empty(rows.raw_shape, rows.raw_dtype)
        _fill(rows, raw)
        x = arrays.arrange(arrays.to_tensor(raw, table.where), table.where)[0]
    else:
        try:
            with cache.alone(identity):
                entry = cache.find(identity) or _kept(rows, identity, nbytes)
            x = Mapped(entry.array("x"), f"the cache {entry.path}", identity)
            told = [f"The table is in the cache, {entry.path} ({nbytes / 2**30:.2g} GiB)."]
        except cache.Unkept as why:
            told = [
                f"The table is not kept in the cache: {why}. Its rows are read by row group whenever they are used."
            ]
    return Tabular(in_blocks(x, table.counts), rows.kind, [*rows.notes, *told], identity)


def _kept(rows: Numbers, identity: str, nbytes: int) -> cache.Entry:
    with cache.drafted(identity, nbytes) as draft:
        _fill(rows, draft.array("x", rows.raw_shape, rows.raw_dtype))
        return cache.keep(draft, identity, {"bytes": nbytes})


def _fill(rows: Numbers, out: np.ndarray) -> None:
    with counting("Reading rows", len(rows)) as count:
        for group, start in enumerate(rows.table.starts[:-1]):
            if rows.table.counts[group]:
                out[start : start + rows.table.counts[group]] = rows.raw(group)
                count(rows.table.counts[group])
