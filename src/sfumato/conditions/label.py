"""A class: one of a list of names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError
from ..registry import register
from .condition import Condition, as_array, counted, many, missing
from .given import Given

NULL = -1  # the index of "no class"


@register("condition", "label")
@dataclass(frozen=True)
class Label(Condition):
    """One class of `classes`: values int64 (B,), indices into the names, -1 where absent."""

    classes: tuple[str, ...]
    kind: ClassVar[str] = "label"

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", different(self.classes, "a label needs different class names"))

    @classmethod
    def fit(cls, column: Any) -> Label:
        """The distinct labels of a column (N,), whole numbers or strings, sorted; integers sort as numbers."""
        _, distinct = coded(column)
        if not distinct:
            raise SfumatoError("there is no label in it: every value is missing")
        return cls(tuple(distinct))

    def encode(self, value: Any, n: int) -> Given:
        """Names or numbers as a user spells them; a tensor holds indices, and -1 is none."""
        if isinstance(value, Tensor):
            indices = value.reshape(-1).cpu()
            if value.is_floating_point():
                indices = torch.where(indices.isnan(), float(NULL), indices)
                if bool((indices != indices.round()).any()):
                    wrong = float(indices[indices != indices.round()][0])
                    raise SfumatoError(f"{wrong:g} is no label: a tensor of labels holds whole numbers, their indices")
            if bool(((indices < NULL) | (indices >= len(self.classes))).any()):
                raise SfumatoError(f"A tensor of labels holds indices from {NULL} (none) to {len(self.classes) - 1}.")
            return counted(Given.of(indices.long()), n)
        known: dict[Any, int] = {}
        values = list(np.asarray(value, dtype=object).reshape(-1)) if many(value) else [value]
        for each in values:
            if each not in known:
                known[each] = NULL if missing(each) or each == NULL else self._index(each)
        return counted(Given.of(torch.tensor([known[each] for each in values], dtype=torch.int64)), n)

    def _index(self, value: Any) -> int:
        whole = isinstance(value, float | np.floating) and float(value).is_integer()
        return find_class(self.classes, int(value) if whole else value)

    def check(self, given: Given) -> None:
        """Every name is as good as another."""

    def decode(self, given: Given) -> list[str | None]:
        return [self.classes[i] if i >= 0 else None for i in given.masked().values.tolist()]

    def network(self) -> dict[str, Any]:
        return {"kind": "label", "classes": len(self.classes)}

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "classes": list(self.classes)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Label:
        return cls(tuple(config["classes"]))

    def describe(self) -> str:
        return f"one of {len(self.classes)} classes: {shown(self.classes)}"


def different(names: Sequence[Any], needs: str) -> tuple[str, ...]:
    """Names as text, each of them once; SfumatoError, which says what `needs` them, for others and for none."""
    found = tuple(map(str, names))
    if not found or len(set(found)) < len(found):
        raise SfumatoError(f"{needs}, one or more, and these are {found}")
    return found


def shown(names: Sequence[str]) -> str:
    """The first 20, between commas."""
    return ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")


def coded(column: Any) -> tuple[np.ndarray, list[str]]:
    """Whole numbers or strings (N,) -> (indices int64 (N,), -1 where missing; distinct names, sorted).

    Raises SfumatoError for another number of axes, for fractions, and for numbers and strings in one column.
    """
    array = as_array(column)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise SfumatoError(f"labels are one a sample, shape (N,), and these have shape {array.shape}")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    whole = array.dtype.kind in "iub"
    known = np.ones(len(array), dtype=bool) if whole else np.array([not missing(v) for v in array], dtype=bool)
    indices = np.full(len(array), NULL, dtype=np.int64)
    distinct, indices[known] = np.unique(whole_or_text(array[known]), return_inverse=True)
    return indices, [str(value) for value in distinct]


def whole_or_text(array: np.ndarray) -> np.ndarray:
    """Labels (N,), none of them missing, as integers or strings; SfumatoError names the first that is neither."""
    kind = array.dtype.kind
    if kind == "S":
        return np.char.decode(array, "utf-8", "replace")
    if kind == "O":
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
    """The index of a class given by name (exact, then ignoring case) or by index; SfumatoError lists the known ones.

    Where the names are themselves numbers, a number means the class of that name.
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
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:20]))
    more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
    return f"there is no class {text!r}{hint}; the classes are: {listed}{more}"
