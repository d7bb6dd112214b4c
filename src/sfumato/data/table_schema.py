"""The schema of a table: its columns, and rows of them as the vectors that a model learns, and back.

    x = (z of the numbers | symbols of fewest states | .. | symbols of most states)      float32 (N, D)

The parts of a state (`parts`) are these groups, so that a symbol's states are exactly its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import schema
from ..errors import SfumatoError, suggest
from . import table_fields
from .column import Column
from .table_fields import Field

POLARS = "polars"
_KIND = schema.either("true, false or polars", schema.flag, schema.choice(POLARS))
SCHEMA = schema.fields({"fields": schema.listed(table_fields.SCHEMA, 1), "frame": _KIND}, rest=None)


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table, in their order. frame: whether samples are a data frame of pandas, where it is there, or
    POLARS for one of polars."""

    fields: tuple[Field, ...]
    frame: bool | str = True

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if not names or len(set(names)) < len(names):
            raise SfumatoError("a table needs columns, each with a name of its own")

    @cached_property
    def numbers(self) -> int:
        """How many columns take a normal number."""
        return sum(field.numeric for field in self.fields)

    @cached_property
    def symbols(self) -> list[tuple[int, str, int]]:
        """(states, column, which of its symbols) of every symbol, in the order of x."""
        every = [(states, f.name, i) for f in self.fields for i, states in enumerate(f.states)]
        return sorted(every, key=lambda each: each[0])

    @cached_property
    def parts(self) -> dict[int, int]:
        """The number of symbols by their number of states, in the order of x."""
        states = [each[0] for each in self.symbols]
        return {count: states.count(count) for count in dict.fromkeys(states)}

    def field(self, name: str) -> Field:
        """The column of this name. Raises SfumatoError for another."""
        found = next((field for field in self.fields if field.name == name), None)
        if found is None:
            raise SfumatoError(f"the table has no column {name!r}: {suggest(name, [f.name for f in self.fields])}")
        return found

    def places(self, name: str) -> list[int]:
        """The entries of x that a column takes."""
        number = [field.name for field in self.fields if field.numeric]
        own = [number.index(name)] if name in number else []
        return own + [self.numbers + place for place, (_, each, _) in enumerate(self.symbols) if each == name]

    def encode(self, columns: Mapping[str, Column]) -> Tensor:
        """Rows of the table as vectors x, float32 (N, D). Raises SfumatoError for other columns or unknown values."""
        missing = next((field.name for field in self.fields if field.name not in columns), None)
        if missing is not None:
            raise SfumatoError(f"the table has no column {missing!r}, which was learned")
        return self.encode_some(columns)[0]

    def encode_some(self, columns: Mapping[str, Column], seed: int = 0) -> tuple[Tensor, Tensor]:
        """(x, float32 (N, D), which of its entries are those of these columns, bool (N, D)); the others are 0.

        seed: of the places of values within their cells, and of numbers behind empty cells.
        """
        count = len(next(iter(columns.values())))
        x = np.zeros((count, self.numbers + len(self.symbols)), np.float32)
        known = torch.zeros(x.shape, dtype=torch.bool)
        for place, field in enumerate(self.fields):
            if field.name in columns:
                z, own = field.encode(columns[field.name], 2 * (place + len(self.fields) * seed))
                at = self.places(field.name)
                known[:, at] = True
                x[:, at] = np.concatenate(([] if z is None else [z[:, None]]) + [own], 1)
        return torch.from_numpy(x), known

    def encode_known(self, columns: Mapping[str, Column], seed: int = 0) -> tuple[Tensor, Tensor]:
        """`encode_some` of cells of which the empty ones are not known, nor those of columns that are not there."""
        own = {field.name: columns[field.name] for field in self.fields if field.name in columns}
        if not own:
            raise SfumatoError(f"these data have no column of the table: it has {self.fields[0].name!r} and others")
        x, known = self.encode_some({name: self.field(name).filled(column) for name, column in own.items()}, seed)
        for name, column in own.items():
            present = torch.from_numpy(column.present) | (not self.field(name).fillable)
            known[:, self.places(name)] &= present[:, None]
        return x, known

    def decode(self, x: Tensor) -> dict[str, Column]:
        """The columns behind vectors x (N, D)."""
        values = x.double().cpu().numpy()
        at = {(name, i): self.numbers + place for place, (_, name, i) in enumerate(self.symbols)}
        found, number = {}, 0
        for field in self.fields:
            own = values[:, [at[field.name, i] for i in range(len(field.states))]].round().astype(np.int64)
            found[field.name] = field.decode(values[:, number].copy() if field.numeric else None, own)
            number += field.numeric
        return found

    def describe(self) -> list[str]:
        """Each column in words."""
        return [f"{field.name}: {field.describe()}" for field in self.fields]

    def to_dict(self) -> dict[str, Any]:
        return {"fields": [field.to_dict() for field in self.fields], "frame": self.frame}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TableSchema:
        """The inverse of `to_dict`. Raises SfumatoError for anything else."""
        schema.require(data, SCHEMA, "the schema of a table")
        return cls(tuple(map(Field.from_dict, data["fields"])), data["frame"])
