"""Conditions that are names: one class of a list, or any number of labels at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from .. import schema
from ..errors import SfumatoError
from ..registry import register
from .condition import Condition, as_array, counted, many, missing
from .given import Given

NULL = -1  # the index of "no class"
_SHOWN = 20  # most names listed in a sentence
_SEVERAL = (list, tuple, set, frozenset, np.ndarray)


class _Names(Condition):
    """A condition whose values are among the names in its one field, `key`."""

    key: ClassVar[str]

    def __post_init__(self) -> None:
        found = tuple(map(str, self._all))
        if not found or len(set(found)) < len(found):
            raise SfumatoError(f"a {self.kind} needs one or more names, all different, not {found}")
        object.__setattr__(self, self.key, found)

    @property
    def _all(self) -> tuple[str, ...]:
        names: tuple[str, ...] = getattr(self, self.key)
        return names

    @property
    def _listed(self) -> str:
        return ", ".join(self._all[:_SHOWN]) + (" ..." if len(self._all) > _SHOWN else "")

    def network(self) -> dict[str, Any]:
        return {"kind": self.kind, "classes": len(self._all)}

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, self.key: list(self._all)}

    def extended(self, other: Condition) -> Condition:
        """The names of both, the new ones behind the old."""
        if not isinstance(other, type(self)):
            return super().extended(other)
        return type(self)(**{self.key: tuple(dict.fromkeys((*self._all, *other._all)))})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        schema.fields({"kind": schema.text, cls.key: schema.listed(schema.text, 1)}, rest=None)(config, "")
        return cls(**{cls.key: tuple(config[cls.key])})


@register("condition", "label")
@dataclass(frozen=True)
class Label(_Names):
    """One class of `classes`: values int64 (B,), indices into the names, -1 where absent."""

    classes: tuple[str, ...]
    kind: ClassVar[str] = "label"
    key: ClassVar[str] = "classes"

    @classmethod
    def fit(cls, column: Any) -> Label:
        """The distinct labels of a column (N,), whole numbers or strings, sorted; integers sort as numbers."""
        _, distinct = coded(column)
        if not distinct:
            raise SfumatoError("there is no label in it: every value is missing")
        return cls(tuple(distinct))

    def encode(self, value: Any, n: int) -> Given:
        """Encode names or numbers in the user's spelling; a tensor holds indices, -1 for none."""
        if isinstance(value, Tensor):
            return counted(Given.of(self._indices(value)), n)
        known: dict[Any, int] = {}
        values = list(np.asarray(value, dtype=object).reshape(-1)) if many(value) else [value]
        for each in values:
            if each not in known:
                known[each] = NULL if missing(each) or each == NULL else self._index(each)
        return counted(Given.of(torch.tensor([known[each] for each in values], dtype=torch.int64)), n)

    def _indices(self, value: Tensor) -> Tensor:
        indices = value.reshape(-1).cpu()
        if value.is_floating_point():
            indices = torch.where(indices.isnan(), float(NULL), indices)
            if bool((indices != indices.round()).any()):
                wrong = float(indices[indices != indices.round()][0])
                raise SfumatoError(f"{wrong:g} is not a label: a tensor of labels holds their indices, whole numbers")
        if bool(((indices < NULL) | (indices >= len(self.classes))).any()):
            raise SfumatoError(f"A tensor of labels holds indices from {NULL} (none) to {len(self.classes) - 1}.")
        return indices.long()

    def _index(self, value: Any) -> int:
        whole = isinstance(value, float | np.floating) and float(value).is_integer()
        return find_class(self.classes, int(value) if whole else value)

    def decode(self, given: Given) -> list[str | None]:
        return [self.classes[i] if i >= 0 else None for i in given.masked().values.tolist()]

    def describe(self) -> str:
        return f"one of {len(self.classes)} class{'' if len(self.classes) == 1 else 'es'}: {self._listed}"


@register("condition", "multilabel")
@dataclass(frozen=True)
class MultiLabel(_Names):
    """A subset of `names`: values float32 (B, K), 1 for each member. The empty set is present, None is absent."""

    names: tuple[str, ...]
    kind: ClassVar[str] = "multilabel"
    key: ClassVar[str] = "names"

    @classmethod
    def fit(cls, column: Any) -> MultiLabel:
        """From a list of lists of names, or from a matrix (N, K) of 0 and 1, whose names are 0 to K - 1."""
        array = as_array(column)
        if array.ndim == 2 and array.dtype.kind in "biuf":
            return cls(tuple(map(str, range(array.shape[1]))))
        every = [name for row in array if not _absent(row) for name in _members(row)]
        if not every:
            raise SfumatoError("there is no label in it: every set is missing or empty")
        return cls(tuple(coded(every)[1]))

    def encode(self, value: Any, n: int) -> Given:
        """Encode a name, a list of names, "a,b", one of these per sample, or a row (K,) or matrix (n, K) of 0 and 1."""
        if isinstance(value, Tensor | np.ndarray) and as_array(value).dtype.kind in "biuf":
            return counted(self._matrix(as_array(value)), n)
        nested = isinstance(value, list | tuple | np.ndarray) and any(
            row is None or isinstance(row, _SEVERAL) for row in value
        )
        rows = list(value) if nested else [value]
        absent = torch.tensor([_absent(row) for row in rows])
        values = torch.zeros(len(rows), len(self.names))
        for i, row in enumerate(rows):
            for name in () if absent[i] else self._split(row):
                values[i, find_class(self.names, name)] = 1
        return counted(Given(values, ~absent), n)

    def _split(self, row: Any) -> list[Any]:
        return [row] if isinstance(row, str) and row in self.names else _members(row)

    def _matrix(self, array: np.ndarray) -> Given:
        array = array.reshape(1, -1) if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != len(self.names):
            raise SfumatoError(f"a set of {len(self.names)} labels needs a row of as many numbers, not {array.shape}")
        given = Given.of(torch.from_numpy(np.array(array, dtype=np.float32)))
        if bool(((given.values != 0) & (given.values != 1)).any()):
            raise SfumatoError("a matrix of labels must hold 0 and 1")
        return given

    def decode(self, given: Given) -> list[list[str] | None]:
        pairs = zip(given.values.tolist(), given.present.tolist(), strict=True)
        return [[k for k, v in zip(self.names, row, strict=True) if v > 0.5] if here else None for row, here in pairs]

    def describe(self) -> str:
        return f"any of {len(self.names)} labels: {self._listed}"


def _members(row: Any) -> list[Any]:
    """The names in one cell: a list, or text with commas, semicolons or bars between names."""
    if isinstance(row, str):
        return [part.strip() for part in re.split(r"[,;|]", row) if part.strip()]
    return list(row) if isinstance(row, _SEVERAL) else [row]


def _absent(row: Any) -> bool:
    return not isinstance(row, _SEVERAL) and missing(row)


def coded(column: Any) -> tuple[np.ndarray, list[str]]:
    """Whole numbers or strings (N,) -> (indices int64 (N,), -1 where missing; distinct names, sorted).

    Integers sort as numbers. Raises SfumatoError for more than one axis, fractions, or a mixture of numbers and
    strings.
    """
    array = as_array(column)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise SfumatoError(f"labels must be one per sample, shape (N,), but they have shape {array.shape}")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    whole = array.dtype.kind in "iub"
    known = np.ones(len(array), dtype=bool) if whole else np.array([not missing(v) for v in array], dtype=bool)
    indices = np.full(len(array), NULL, dtype=np.int64)
    distinct, indices[known] = np.unique(_whole_or_text(array[known]), return_inverse=True)
    return indices, [str(value) for value in distinct]


def _whole_or_text(array: np.ndarray) -> np.ndarray:
    """Labels (N,), none missing, as integers or strings. Raises SfumatoError naming the first that is neither."""
    if array.dtype.kind == "O":
        other = next((i for i, value in enumerate(array) if not isinstance(value, str)), None)
        if other is not None and not all(isinstance(value, Real) for value in array):
            raise SfumatoError(f"label {other} is {array[other]!r}: labels must be all integers or all strings")
        array = array.astype(str if other is None else float)
    if array.dtype.kind == "f":
        exact = np.isfinite(array) & (array == np.round(array))
        if not exact.all():
            wrong = int(np.argmin(exact))
            raise SfumatoError(
                f"label {wrong} is {array[wrong]}: labels must be whole numbers or strings; a target is a condition "
                "of another name, {'x': samples, 'target': numbers}"
            )
    if array.dtype.kind in "bf":
        return array.astype(np.int64)
    if array.dtype.kind not in "iuUT":
        raise SfumatoError(f"labels must be integers or strings, but they are {array.dtype}")
    return array


def find_class(classes: Sequence[str], wanted: str | int) -> int:
    """The index of a class, by name (exact, then ignoring case) or index. Raises SfumatoError listing the classes.

    If the names are themselves numbers, a number means the class of that name.
    """
    text = str(wanted).strip()
    if text in classes:
        return list(classes).index(text)
    folded = [name.casefold() for name in classes]
    if folded.count(text.casefold()) == 1:
        return folded.index(text.casefold())
    numbered = all(name.lstrip("-").isdigit() for name in classes)
    if not numbered and text.isdigit() and int(text) < len(classes):
        return int(text)
    raise SfumatoError(_unknown(classes, text))


def _unknown(classes: Sequence[str], text: str) -> str:
    close = difflib.get_close_matches(text, classes, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    plain = all(name.lstrip("-").isdigit() for name in classes)  # known by their names alone
    listed = ", ".join(name if plain else f"{i} {name}" for i, name in enumerate(classes[:_SHOWN]))
    more = f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else ""
    return f"there is no class {text!r}{hint}; the classes are: {listed}{more}"
