"""Columns of numbers as samples: in memory, in the cache or by row group, wherever there is room for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from ..counting import counting
from ..errors import SfumatoError
from ..machine.memory import fits
from . import arrays, cache
from .rows import READING, Mapped, Rows, Samples, in_blocks
from .tables import Table, depth


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
        dense = [self._dense(table.column(name), name, group) for name in self.chosen]
        return dense[0] if len(dense) == 1 and dense[0].ndim > 1 else np.stack(dense, 1)

    def _dense(self, column: Any, name: str, group: int) -> np.ndarray:
        import pyarrow as pa
        from pyarrow import compute

        values = column.combine_chunks()
        values = values.storage if isinstance(values, pa.ExtensionArray) else values
        shape = [len(values)]
        while depth(values.type):
            self._whole(values, name, group)
            lengths = set(compute.list_value_length(values).to_pylist()) or {0}
            if len(lengths) > 1:
                raise SfumatoError(
                    f"{self.table.where}: the lists of {name!r} have lengths from {min(lengths)} to {max(lengths)}: "
                    "every sample must have the same shape"
                )
            values = values.flatten()
            shape.append(lengths.pop())
        self._whole(values, name, group)
        return values.to_numpy(zero_copy_only=False).reshape(shape)

    def _whole(self, values: Any, name: str, group: int) -> None:
        if values.null_count:
            raise SfumatoError(
                f"{self.table.where}: {values.null_count:,} cells of {name!r} are empty from row "
                f"{int(self.table.starts[group]):,} on: fill them, or remove these rows"
            )

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
