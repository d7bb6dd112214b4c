"""Weights of a table's rows: trees of questions to whole rows, and a factor for each column.

    log w(x) = T(x) + sum_c log f_c(interval of x_c),  T(x) = sum_t v_t[leaf of x in tree t], cut at -2 and 2
    a row x ~ p is accepted with probability min(w(x), b) / b

Accepted rows have the law p min(w, b) / Z. Intervals are quantiles of the training rows; what stands in the place of a
number, a value of its own or an empty cell, has an interval of its own, and is below every cut of a tree. Of a category
each symbol is an interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import schema
from ..errors import SfumatoError
from .table_schema import TableSchema

_ROWS = schema.listed(schema.listed(schema.number()))
_LISTS = {"places": schema.whole(0, 2**31), "cuts": schema.number(), "values": schema.number()}
_TREE = schema.fields({name: schema.listed(each, 1, 2**16) for name, each in _LISTS.items()}, rest=None)
SCHEMA = schema.fields(
    {"edges": _ROWS, "logs": _ROWS, "bound": schema.number(1, 1e6)},
    {"trees": schema.listed(_TREE, 0, 4096), "mean": schema.number(1e-300)}, rest=None,
)  # fmt: skip
EMPTY, LIMIT = -1e6, 2.0  # below every normal number; of |T|, so that no row is hopeless


class Tree(NamedTuple):
    """places: the entry of a row (D,) that each of K questions is about; cuts: whether it is above this; values: log w
    of the 2^K leaves, numbered by the answers, the first of them the highest bit."""

    places: tuple[int, ...]
    cuts: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """log w of rows (N, D), float64 (N,)."""
        leaf = torch.zeros(len(x), dtype=torch.long)
        for place, cut in zip(self.places, self.cuts, strict=True):
            leaf = 2 * leaf + (x[:, place] > cut)
        return torch.tensor(self.values, dtype=torch.float64)[leaf]


def ratio(trees: Sequence[Tree], table: TableSchema, x: Tensor) -> Tensor:
    """T of rows x (N, D), float64 (N,)."""
    x, found = answered(table, x), torch.zeros(len(x), dtype=torch.float64)
    for tree in trees:
        found += tree(x)
    return found.clamp_(-LIMIT, LIMIT)


def answered(table: TableSchema, x: Tensor) -> Tensor:
    """Rows x (N, D) as trees take them: numbers that are empty, or a value of their own, are far below the others."""
    x = x.clone()
    for field in table.fields:
        place, *symbol = table.places(field.name)
        if field.numeric and symbol:
            x[:, place] = torch.where(x[:, symbol[0]] > 0, EMPTY, x[:, place])
    return x


def sizes(table: TableSchema, edges: Sequence[Sequence[float]]) -> list[int]:
    """How many intervals each column of `intervals` has."""
    numbers = [field for field in table.fields if field.numeric]
    own = [len(cuts) + (each.states[0] if each.states else 1) for cuts, each in zip(edges, numbers, strict=True)]
    return own + [states for field in table.fields if not field.numeric for states in field.states]


def intervals(table: TableSchema, edges: Sequence[Sequence[float]], x: Tensor) -> Tensor:
    """Which interval each number of rows x (N, D) is in, then the symbols of each category, int64 (N, columns)."""
    found = []
    for field, own in zip((each for each in table.fields if each.numeric), edges, strict=True):
        place, *symbol = table.places(field.name)
        at = torch.searchsorted(torch.tensor(own, dtype=torch.float64), x[:, place].double().contiguous())
        found.append(torch.where(x[:, symbol[0]] > 0, len(own) + x[:, symbol[0]].long(), at) if symbol else at)
    found += [x[:, place].long() for each in table.fields if not each.numeric for place in table.places(each.name)]
    return torch.stack(found, 1)


@dataclass(frozen=True)
class RowWeights:
    """edges: of each column of numbers the K - 1 values, rising, between its intervals; logs: log f of the K intervals,
    then of each symbol that stands in the place of a number, and after all numbers those of the symbols of each
    category (a file of before has none); bound: b, at least 1, in units of the mean of the weights of the model's rows.
    """

    edges: tuple[tuple[float, ...], ...]
    logs: tuple[tuple[float, ...], ...]
    bound: float
    trees: tuple[Tree, ...] = ()
    mean: float = 1.0

    def __post_init__(self) -> None:
        if any(len(each.places) != len(each.cuts) or len(each.values) != 2 ** len(each.cuts) for each in self.trees):
            raise SfumatoError("weights of rows need trees with a value for each answer to their questions")
        longer = [len(log) > len(own) for own, log in zip(self.edges, self.logs, strict=False)]
        if len(self.edges) > len(self.logs) or not all(longer):
            raise SfumatoError("weights of rows need a factor for each interval of each column")
        if any(a > b for own in self.edges for a, b in pairwise(own)):
            raise SfumatoError("weights of rows need rising edges of their intervals")

    @property
    def even(self) -> bool:
        """Whether all rows weigh alike."""
        return not self.trees and not any(any(own) for own in self.logs)

    def log(self, table: TableSchema, x: Tensor) -> Tensor:
        """log w of rows x (N, D), of mean 1 among those of the model, float64 (N,)."""
        at, found = intervals(table, self.edges, x), torch.zeros(len(x), dtype=torch.float64)
        for column, logs in enumerate(self.logs):
            found += torch.tensor(logs, dtype=torch.float64)[at[:, column]]
        return found + ratio(self.trees, table, x) - math.log(self.mean)

    def accepts(self, table: TableSchema, x: Tensor, u: Tensor) -> Tensor:
        """Whether each row x (N, D) is accepted at uniform numbers u (N,), bool (N,)."""
        return u.double().log() + math.log(self.bound) < self.log(table, x.cpu())

    def require_of(self, table: TableSchema | None) -> None:
        """Raise SfumatoError unless these are weights of rows of this table."""
        numbers, found = 0 if table is None else table.numbers, [len(log) for log in self.logs]
        wanted = sizes(table, self.edges) if table is not None and len(self.edges) == numbers else []
        if len(self.edges) != numbers or found not in (wanted, wanted[:numbers]):
            raise SfumatoError("weights of rows need the intervals of the columns of their table")
        width = numbers + len(table.symbols) if table is not None else 0
        if any(not 0 <= place < width for tree in self.trees for place in tree.places):
            raise SfumatoError("weights of rows need trees that ask about the entries of their table")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "trees": [tree._asdict() for tree in self.trees]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RowWeights:
        """The inverse of `to_dict`. Raises SfumatoError for anything else."""
        schema.require(data, SCHEMA, "weights of rows")
        edges, logs = (tuple(tuple(map(float, row)) for row in data[name]) for name in ("edges", "logs"))
        trees = tuple(
            Tree(tuple(map(int, each["places"])), *(tuple(map(float, each[name])) for name in ("cuts", "values")))
            for each in data.get("trees", ())
        )
        return cls(edges, logs, float(data["bound"]), trees, float(data.get("mean", 1.0)))
