"""Weights of a table's rows: a factor for each column of numbers, by the interval that its number is in.

    w(x) = prod_c f_c(interval of x_c)        a row x ~ p is accepted with probability min(w(x), b) / b

Accepted rows have the law p min(w, b) / Z. Intervals are quantiles of the training rows; what stands in the place of a
number, a value of its own or an empty cell, has an interval of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import schema
from ..errors import SfumatoError
from .table_schema import TableSchema

_ROWS = schema.listed(schema.listed(schema.number()), 1)
SCHEMA = schema.fields({"edges": _ROWS, "logs": _ROWS, "bound": schema.number(1, 1e6)}, rest=None)


def intervals(table: TableSchema, edges: Sequence[Sequence[float]], x: Tensor) -> Tensor:
    """Which interval each number of rows x (N, D) is in, int64 (N, numbers)."""
    found = []
    for field, own in zip((each for each in table.fields if each.numeric), edges, strict=True):
        place, *symbol = table.places(field.name)
        at = torch.searchsorted(torch.tensor(own, dtype=torch.float64), x[:, place].double().contiguous())
        found.append(torch.where(x[:, symbol[0]] > 0, len(own) + x[:, symbol[0]].long(), at) if symbol else at)
    return torch.stack(found, 1)


@dataclass(frozen=True)
class RowWeights:
    """edges: of each column of numbers the K - 1 values, rising, between its intervals; logs: log f of the K intervals,
    then of each symbol that stands in the place of a number; bound: b, at least 1."""

    edges: tuple[tuple[float, ...], ...]
    logs: tuple[tuple[float, ...], ...]
    bound: float

    def __post_init__(self) -> None:
        sizes = [len(log) > len(own) for own, log in zip(self.edges, self.logs, strict=False)]
        if len(self.edges) != len(self.logs) or not self.edges or not all(sizes):
            raise SfumatoError("weights of rows need a factor for each interval of each column")
        if any(a > b for own in self.edges for a, b in pairwise(own)):
            raise SfumatoError("weights of rows need rising edges of their intervals")

    def log(self, table: TableSchema, x: Tensor) -> Tensor:
        """log w of rows x (N, D), float64 (N,)."""
        at, found = intervals(table, self.edges, x), torch.zeros(len(x), dtype=torch.float64)
        for column, logs in enumerate(self.logs):
            found += torch.tensor(logs, dtype=torch.float64)[at[:, column]]
        return found

    def accepts(self, table: TableSchema, x: Tensor, u: Tensor) -> Tensor:
        """Whether each row x (N, D) is accepted at uniform numbers u (N,), bool (N,)."""
        return u.double().log() + math.log(self.bound) < self.log(table, x.cpu())

    def require_of(self, table: TableSchema | None) -> None:
        """Raise SfumatoError unless these are weights of rows of this table."""
        numbers = [field for field in (table.fields if table is not None else ()) if field.numeric]
        more = [len(log) - len(own) for own, log in zip(self.edges, self.logs, strict=True)]
        if more != [field.states[0] if field.states else 1 for field in numbers]:
            raise SfumatoError("weights of rows need the intervals of the numbers of their table")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RowWeights:
        """The inverse of `to_dict`. Raises SfumatoError for anything else."""
        schema.require(data, SCHEMA, "weights of rows")
        edges, logs = (tuple(tuple(map(float, row)) for row in data[name]) for name in ("edges", "logs"))
        return cls(edges, logs, float(data["bound"]))
