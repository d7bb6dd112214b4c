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

SCHEMA = schema.fields({"fields": schema.listed(table_fields.SCHEMA, 1), "frame": schema.flag}, rest=None)


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table, in their order. frame: whether samples are a data frame of pandas, where it is there."""

    fields: tuple[Field, ...]
    frame: bool = True

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

    def known(self, name: str, value: Any) -> dict[int, int]:
        """The entries of x, place -> symbol, that say that a category has this value; None: that it is missing."""
        field = next((field for field in self.fields if field.name == name), None)
        if field is None:
            raise SfumatoError(f"the table has no column {name!r}: {suggest(name, [f.name for f in self.fields])}")
        symbols = field.symbols(value)
        places = {(each, i): self.numbers + place for place, (_, each, i) in enumerate(self.symbols)}
        return {places[name, i]: symbol for i, symbol in enumerate(symbols)}

    def encode(self, columns: Mapping[str, Column]) -> Tensor:
        """Rows of the table as vectors x, float32 (N, D). Raises SfumatoError for other columns or unknown values."""
        numbers: list[Any] = []
        symbols: dict[tuple[str, int], Any] = {}
        for place, field in enumerate(self.fields):
            if field.name not in columns:
                raise SfumatoError(f"the table has no column {field.name!r}, which was learned")
            z, own = field.encode(columns[field.name], 2 * place)
            numbers += [] if z is None else [z]
            symbols |= {(field.name, i): own[:, i] for i in range(own.shape[1])}
        rows = [*numbers, *(symbols[name, i] for _, name, i in self.symbols)]
        return torch.from_numpy(np.stack(rows, 1).astype(np.float32))

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
