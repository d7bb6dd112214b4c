"""Empty cells of a table, drawn given the cells that are not: x_empty ~ p(x_empty | x_known) under the model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.columns import Known
from sfumato.data import frames
from sfumato.data.column import Column
from sfumato.data.table_schema import TableSchema
from sfumato.errors import SfumatoError, whole
from sfumato.machine import default_cpu
from sfumato.model import usable
from sfumato.sampling import sample
from sfumato.solver_selection import AnySolver

ROUNDS = 20  # of draws, until no cell that is drawn is itself an empty one


@default_cpu()
def impute(
    model: Any,
    data: Any,
    n: int = 1,
    *,
    steps: int | None = None,
    solver: AnySolver | None = None,
    seed: int = 0,
    batch: int | None = None,
) -> Any:
    """The table with its empty cells drawn from p(empty cells | the others); other cells are as they were.

    data: a frame (pandas, polars, pyarrow) or the path of a file, with some or all columns of the model's table in any
    order; other columns travel along. The result is a frame of the same kind, that of pyarrow for a file; for n > 1 a
    list of n independent draws. A cell that is drawn empty is drawn again, at most 20 times, with all others of its row
    that are drawn: what stays empty is empty in nearly all rows like it.

    Raises SfumatoError for values that the model's table did not have, and for networks that know no levels.
    """
    table = table_of(model, "impute")
    arrow = frames.arrow_of(data)
    columns = frames.columns_of(arrow, table)
    x, known = table.encode_known(columns, seed)
    how, made = {"steps": steps, "solver": solver, "batch": batch}, []
    for draw in range(whole("n, the number of draws,", n)):
        cells = table.decode(_drawn(model, x, known, table, how, seed + draw))
        filled = {name: _merged(column, cells[name]) for name, column in columns.items()}
        made.append(frames.replaced(arrow, table, filled, data))
    return made[0] if n == 1 else made


def table_of(model: Any, what: str) -> TableSchema:
    """The schema of a model's table. Raises SfumatoError for a model of none."""
    table = getattr(getattr(usable(model, what), "spec", None), "table", None)
    if table is None:
        raise SfumatoError(f"{what} is for models of tables, and this is of none.")
    return table


def _drawn(model: Any, x: Tensor, known: Tensor, table: TableSchema, how: dict[str, Any], seed: int) -> Tensor:
    """Rows x (N, D) with what is not known drawn; a row is drawn again while it leaves a cell empty."""
    x, empty = x.clone(), {field.name for field in table.fields if field.missing and field.fillable}
    left = torch.nonzero(~known.all(1))[:, 0]
    for turn in range(ROUNDS):
        if not len(left):
            break
        rows = Known(model, x[left], known[left])
        z = sample(rows, index=left, seed=seed + turn * 10**6, normalised=True, **how)
        drawn = rows.spec.denormalise(model.process.table(z)).to(x)
        x[left] = torch.where(known[left], x[left], drawn)
        cells, again = table.decode(x[left]), np.zeros(len(left), bool)
        for name in empty:
            unknown = ~known[left][:, table.places(name)].all(1).numpy()
            again |= unknown & ~cells[name].present
        left = left[torch.from_numpy(again)]
    return x


def _merged(own: Column, drawn: Column) -> Column:
    """The cells of a column, and those drawn where they were empty."""
    return dataclasses.replace(
        own, values=np.where(own.present, own.values, drawn.values), present=own.present | drawn.present
    )
