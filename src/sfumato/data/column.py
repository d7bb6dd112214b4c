"""A column of data: one value per sample, in the user's units; values may be missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..conditions.condition import as_array, missing
from ..errors import SfumatoError


@dataclass(frozen=True, eq=False)
class Column:
    """The values of one condition, one per sample.

    values: (N, ...) numbers, or (N,) objects, each a string or a tuple of strings; arbitrary where missing.
    present: bool (N,), False where a value is missing.
    names: class names, if the values are indices into them.
    kind: of condition ("label", "multilabel", "scalar", "vector", "field"), or "" while unknown.
    """

    values: np.ndarray
    present: np.ndarray
    names: tuple[str, ...] | None = None
    kind: str = ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def missing(self) -> int:
        """The number of samples without a value."""
        return int(len(self) - self.present.sum())

    @property
    def given(self) -> np.ndarray:
        """The values that are not missing."""
        return np.asarray(self.values[self.present])

    @property
    def form(self) -> str:
        """The type of the values: "numbers", "strings" or "lists" of strings."""
        if self.values.dtype != object:
            return "numbers"
        return "strings" if all(isinstance(value, str) for value in self.given) else "lists"

    @property
    def spelt(self) -> np.ndarray:
        """The values as the user writes them: class names or numbers, None or NaN where missing."""
        if self.names is not None:
            names = np.array([*self.names, None], dtype=object)
            return np.asarray(names[np.where(self.present, self.values, -1)])
        if self.values.dtype == object:
            spelt = self.values.copy()
            spelt[~self.present] = None
            return spelt
        if self.present.all():
            return self.values
        values = self.values.astype(np.result_type(self.values.dtype, np.float32))
        values[~self.present] = np.nan
        return values

    def scattered(self, present: np.ndarray) -> Column:
        """A longer column with these values where `present`, bool (N,), is True, and missing values elsewhere."""
        values = np.zeros((len(present), *self.values.shape[1:]), self.values.dtype)
        values[present] = self.values
        there = np.zeros(len(present), bool)
        there[present] = self.present
        return Column(values, there, self.names, self.kind)

    def take(self, rows: Tensor | np.ndarray) -> Column:
        """The values of these samples, int64 (n,)."""
        rows = np.asarray(rows)
        return Column(self.values[rows], self.present[rows], self.names, self.kind)


BOOLS = ("False", "True")


class Unread(ValueError):
    """A column cannot be used; the message says why."""


@contextmanager
def named(name: str) -> Iterator[None]:
    """Prefix errors raised within the block with the name of the condition."""
    try:
        yield
    except SfumatoError as why:
        raise SfumatoError(f"the condition {name!r}: {why}") from None


def column(raw: Any) -> Column:
    """Any array, tensor or list with one value per sample as a `Column`. Raises `Unread` unless numbers or text.

    None, NaN, the empty string and masked array entries are missing values; one NaN makes an array value missing. An
    empty list of strings is a value: the empty set.
    """
    if isinstance(raw, Tensor):
        raw = as_array(raw)
    if isinstance(raw, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(raw).reshape(len(raw), -1).any(1)
        found = column(raw.data)
        return Column(found.values, found.present & ~mask, found.names)
    array = raw if isinstance(raw, np.ndarray) else _from_list(list(raw))
    kind = array.dtype.kind
    if kind in "biuf":
        return _numbers(array)
    if kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if kind in "SU":
        array = array.astype(object)
    if array.dtype != object:
        raise Unread(f"{array.dtype} values are not read")
    return _objects(array)


def _numbers(array: np.ndarray) -> Column:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if not array.size:
        raise Unread("it is empty")
    flat = array.reshape(len(array), -1)
    if array.dtype.kind != "f":
        names = BOOLS if array.dtype == bool and array.ndim == 1 else None
        return Column(array.astype(np.int64) if names else array, np.ones(len(array), bool), names)
    if np.isinf(flat).any():
        row = int(np.nonzero(np.isinf(flat).any(1))[0][0])
        raise SfumatoError(f"the value of sample {row} is infinite: correct it, or leave it out as NaN")
    return Column(array, ~np.isnan(flat).any(1))


def _from_list(cells: Sequence[Any]) -> np.ndarray:
    """A list as an array of numbers if all entries are numbers, else of objects."""
    if all(isinstance(cell, Tensor) for cell in cells):
        cells = [as_array(cell) for cell in cells]
    try:
        array = np.asarray(cells)
    except ValueError:  # ragged
        array = np.empty(0, object)
    if array.dtype.kind in "biuf" and len(array) == len(cells):
        return array
    return _array(cells)


def _objects(array: np.ndarray) -> Column:
    """A column of objects: numbers, strings, lists of numbers or lists of strings, some of them missing."""
    if array.ndim > 1:
        array = _from_list([tuple(row) for row in array])
    present = np.array([not missing(cell) for cell in array.tolist()], bool)
    found = [cell for cell, here in zip(array.tolist(), present, strict=True) if here]
    if not found:
        return Column(np.zeros(len(array)), present)
    if any(isinstance(cell, str | bytes) for cell in found):
        if any(isinstance(cell, dict | list | tuple | np.ndarray) for cell in found):
            raise Unread("strings are mixed with other things")
        words = [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell) for cell in found]
        return Column(_array(words), np.ones(len(words), bool)).scattered(present)
    if all(isinstance(cell, list | tuple) and all(isinstance(word, str) for word in cell) for cell in found):
        lists = _array([tuple(cell) for cell in found])
        return Column(lists, np.ones(len(lists), bool)).scattered(present)
    try:
        dense = np.asarray(found)
    except ValueError:
        raise Unread("its lists have different lengths") from None
    if dense.dtype.kind not in "biuf":
        raise Unread(f"values such as {str(found[0])[:40]!r} are not read")
    return _numbers(dense).scattered(present)


def _array(cells: Sequence[Any]) -> np.ndarray:
    """An object array (N,) of cells of any length."""
    out = np.empty(len(cells), object)
    for i, cell in enumerate(cells):
        out[i] = cell
    return out


EMPTY = frozenset(["", "na", "n/a", "nan", "null", "none"])


def cells(text: Sequence[str | None]) -> Column:
    """The cells of a text column as whole numbers, else numbers, else strings: the first that fits all non-empty cells.

    In a column of numbers NaN, NA, null and none also count as empty; numbers with leading zeros stay strings.
    """
    stripped = [(cell or "").strip() for cell in text]
    numbers = ["" if cell.lower() in EMPTY else cell for cell in stripped]
    for kind in (int, float):
        try:
            found: list[Any] = [kind(cell) if cell else None for cell in numbers]
        except ValueError:
            continue
        if any(cell.lstrip("+-").startswith("0") and cell.lstrip("+-").isdigit() and cell.lstrip("+-") != "0"
               for cell in numbers):  # fmt: skip
            break
        return column(found)
    return column(stripped)
