"""Any number of labels at once: a set of names out of a list."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError
from ..registry import register
from .condition import Condition, as_array, counted, missing
from .given import Given
from .label import coded, different, find_class, shown


@register("condition", "multilabel")
@dataclass(frozen=True)
class MultiLabel(Condition):
    """A set out of `names`: values float32 (B, K), 1 for each in it. An empty set is present, None is absent."""

    names: tuple[str, ...]
    kind: ClassVar[str] = "multilabel"

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", different(self.names, "labels need different names"))

    @classmethod
    def fit(cls, column: Any, names: Any = None) -> MultiLabel:
        """Of a list of lists of names, or of a matrix (N, K) of 0 and 1 (`names` 0 to K - 1 where none are given)."""
        array = as_array(column)
        if array.ndim == 2 and array.dtype.kind in "biuf":
            return cls(tuple(names or map(str, range(array.shape[1]))))
        every = [name for row in array if not _absent(row) for name in _members(row)]
        if not every:
            raise SfumatoError("there is no label in it: every set is missing or empty")
        return cls(tuple(coded(every)[1]))

    def encode(self, value: Any, n: int) -> Given:
        """A name, a list of names, "a,b", or for each sample such a list; a matrix (n, K) or a row (K,) of 0 and 1."""
        if isinstance(value, Tensor | np.ndarray) and as_array(value).dtype.kind in "biuf":
            return counted(self._matrix(as_array(value)), n)
        nested = isinstance(value, list | tuple | np.ndarray) and any(
            row is None or isinstance(row, list | tuple | set | frozenset | np.ndarray) for row in value
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
            raise SfumatoError(f"a set of {len(self.names)} labels is a row of as many numbers, not {array.shape}")
        given = Given.of(torch.from_numpy(np.array(array, dtype=np.float32)))
        if bool(((given.values != 0) & (given.values != 1)).any()):
            raise SfumatoError("a matrix of labels holds 0 and 1")
        return given

    def check(self, given: Given) -> None:
        """Every name is as good as another."""

    def decode(self, given: Given) -> list[list[str] | None]:
        pairs = zip(given.values.tolist(), given.present.tolist(), strict=True)
        return [[k for k, v in zip(self.names, row, strict=True) if v > 0.5] if here else None for row, here in pairs]

    def network(self) -> dict[str, Any]:
        return {"kind": "multilabel", "classes": len(self.names)}

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": list(self.names)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MultiLabel:
        return cls(tuple(config["names"]))

    def describe(self) -> str:
        return f"any of {len(self.names)} labels: {shown(self.names)}"


def _members(row: Any) -> list[Any]:
    """The names in one cell: a list, or text in which commas, semicolons or bars stand between them."""
    if isinstance(row, str):
        return [part.strip() for part in re.split(r"[,;|]", row) if part.strip()]
    return list(row) if isinstance(row, list | tuple | set | frozenset | np.ndarray) else [row]


def _absent(row: Any) -> bool:
    return not isinstance(row, list | tuple | set | frozenset | np.ndarray) and missing(row)
