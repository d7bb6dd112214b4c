"""The likelihood of a table's rows, column by column, by a model whose columns have levels of their own.

    log p(row) = sum_c log p(x_c | x_1 .. x_(c-1)),   and log p(x_c | all others) of each column

    symbol     log p(x_i | z) of one call, x_i masked
    number     P(a < x < b) = Phi(w(b)) - Phi(w(a)),   w the flow of its own probability-flow ODE from t = 0 to 1

In one dimension the flow is monotone, so that it carries the distribution function, and the probability of a cell needs
no derivative. A number on a grid, a date or a category has the probability of its cell; a continuous number the density
of the quantile segment that it lies in, in its own units. Columns that are not given are masked, or at t = 1.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.columns import NUMBERS, Known, believe, takes_levels
from sfumato.data import frames
from sfumato.data.column import Column
from sfumato.data.table_fields import Field
from sfumato.data.table_schema import TableSchema
from sfumato.errors import SfumatoError, counted, whole
from sfumato.noised import evaluating
from sfumato.process import Masked
from sfumato.state import State

STEPS, ROWS = 16, 1024  # of Heun's method, and rows at once
_ANY = 0.5  # the time told in calls for symbols, where no number stands at a level between its ends
_LEAST = 1e-30  # probability: numbers of float32 cannot tell less from none


@dataclasses.dataclass(frozen=True)
class RowLikelihood:
    """Nats by row and column, float64 (N, C); -inf for values that the table never had.

    columns: their names; chain: log p(x_c | columns before it), whose sum is log p of the row; rest: log p(x_c | all
    others); densities: the names of continuous columns, of which both are densities in the user's units.
    """

    columns: tuple[str, ...]
    chain: Tensor
    rest: Tensor
    densities: tuple[str, ...]
    steps: int

    @property
    def value(self) -> Tensor:
        """log p of each row in nats, float64 (N,)."""
        return self.chain.sum(1)

    @property
    def bits(self) -> dict[str, Tensor]:
        """-log2 p(x_c | columns before it) of each row, by column."""
        return {name: -self.chain[:, i] / math.log(2) for i, name in enumerate(self.columns)}

    def __len__(self) -> int:
        return len(self.chain)

    def __str__(self) -> str:
        rows, columns = counted(len(self), "row"), counted(len(self.columns), "column")
        return f"log p = {float(self.value.mean()):.6g} nats a row ({rows} of {columns})"


def are_rows(model: Any, data: Any) -> bool:
    """Whether data are a frame or a path, and the model is of a table."""
    table = getattr(getattr(model, "spec", None), "table", None)
    return table is not None and (isinstance(data, str | os.PathLike) or frames.is_frame(data))


def row_log_prob(
    model: Any, data: Any, steps: int | None = None, batch: int | None = None, method: str | None = None
) -> RowLikelihood:  # fmt: skip
    """`RowLikelihood` of a frame, or of a file by its path, whose columns include those of the model's table.

    steps: of Heun's method, two calls each. Raises SfumatoError for a network that knows no levels, and for empty cells
    in a column that had none in training.
    """
    if method is not None:
        raise SfumatoError("Rows of a table have one likelihood, by columns: leave out the method.")
    table = model.spec.table
    if table.numbers and not takes_levels(model):
        raise SfumatoError(
            "The network of this model is told one level for all numbers, so that none can be scored alone: train a "
            "model without net=, or with a network that takes the condition 'levels'."
        )
    steps = STEPS if steps is None else whole("steps", steps)
    x, cells = _encoded(table, frames.columns_of(frames.arrow_of(data), table))
    made = []
    with evaluating(model), torch.no_grad():
        for part in torch.arange(len(x)).split(ROWS if batch is None else whole("batch", batch)):
            rows = Known(model, x[part], torch.ones(len(part), x.shape[1], dtype=torch.bool))
            made.append(_scored(rows, {name: each[part] for name, each in cells.items()}, steps))
    chain, rest = torch.cat(made, 1)
    names = tuple(field.name for field in table.fields)
    densities = tuple(field.name for field in table.fields if field.numeric and not field.step and not field.exact)
    return RowLikelihood(names, chain, rest, densities, steps)


def _encoded(table: TableSchema, columns: Mapping[str, Column]) -> tuple[Tensor, dict[str, Tensor]]:
    """(rows as vectors, the cells of the numbers); a number stands in the middle of its cell, so that a row has one
    likelihood."""
    x, cells = table.encode(columns), {}
    for field in table.fields:
        if field.numeric:
            column, place = columns[field.name], table.places(field.name)[0]
            cells[field.name] = torch.from_numpy(field.cells(column))
            x[:, place] = torch.where(torch.from_numpy(column.present), cells[field.name][:, :2].mean(1), 0.0)
    return x, cells


def _scored(rows: Known, cells: dict[str, Tensor], steps: int) -> Tensor:
    """log p of each column given those before it, and given all others, float64 (2, B, C)."""
    fields, found = rows.spec.table.fields, []
    for i, field in enumerate(fields):
        before, others = [each.name for each in fields[:i]], [each.name for each in fields if each is not field]
        both = [_column(rows, field, cells.get(field.name), given, steps) for given in (before, others)]
        found.append(torch.stack(both))
    return torch.stack(found, 2)


def _column(rows: Known, field: Field, cells: Tensor | None, given: list[str], steps: int) -> Tensor:
    """log p of the cells of one column given others, float64 (B,)."""
    table, x = rows.spec.table, rows.x
    known = torch.zeros(x.shape[1], dtype=torch.bool)
    for name in given:
        known[table.places(name)] = True
    total, plain = torch.zeros(len(x), dtype=torch.float64), torch.ones(len(x), dtype=torch.bool)
    for place in (each for each in table.places(field.name) if each >= table.numbers):
        total = total + _symbol(rows, known, place)
        known[place] = True
        plain = x[:, place] == 0 if field.numeric else plain
    if cells is None or not bool(plain.any()):
        return total
    number = _cell(rows, known, table.places(field.name)[0], cells, steps)
    return total + torch.where(plain, number, 0.0)


def _state(rows: Known, known: Tensor) -> State:
    """The state in which what is known is clean, all other symbols are masked and all other numbers 0."""
    process, found, first = rows.process, {}, 0
    for name, (width,) in process.shapes.items():
        own, some = rows.x[:, first : first + width].to(rows.device), known[first : first + width].to(rows.device)
        part, first = process.processes[name], first + width
        found[name] = (
            torch.where(some, own.long(), part.mask) if isinstance(part, Masked) else torch.where(some, own, 0.0)
        )
    return found


def _symbol(rows: Known, known: Tensor, place: int) -> Tensor:
    """log p(x_place | what is known), float64 (B,)."""
    z, numbers, first = _state(rows, known), rows.numbers, 0
    if numbers:
        times = torch.where(known[:numbers], 0.0, 1.0).double().expand(len(rows.x), -1)
        parts = believe(rows.model, z, _ANY, times.to(rows.device)).parts
    else:
        parts = rows.model(z, float((~known).double().mean()))
    for name, (width,) in rows.process.shapes.items():
        if first <= place < first + width and name != NUMBERS:
            symbols = rows.x[:, place].long().to(rows.device)
            return parts[name].log_prob[:, place - first].double().gather(1, symbols[:, None])[:, 0].cpu()
        first += width
    raise AssertionError(place)


def _cell(rows: Known, known: Tensor, place: int, cells: Tensor, steps: int) -> Tensor:
    """log of the probability of each row's cell, over its width, float64 (B,). cells: (low z, high z, width) (B, 3)."""
    z, count = _state(rows, known), len(rows.x)
    z = {name: torch.cat((part, part)) for name, part in z.items()}
    scale = rows.spec.normaliser
    ends = torch.cat((cells[:, 0], cells[:, 1])).to(rows.device)
    w = (ends - float(scale.mean[place])) / float(scale.std[place])

    def rate(w: Tensor, t: float) -> Tensor:
        numbers = z[NUMBERS].index_copy(1, torch.tensor([place], device=w.device), w[:, None].to(z[NUMBERS]))
        times = torch.where(known[: rows.numbers], 0.0, 1.0).double()
        times[place] = t
        found = believe(rows.model, {**z, NUMBERS: numbers}, t, times.to(w.device).expand(2 * count, -1)).each
        return found.velocity.reshape(2 * count, -1)[:, place].double()

    nodes = torch.linspace(1e-4, 1 - 1e-4, steps + 1, dtype=torch.float64).tolist()
    for t, s in zip(nodes, nodes[1:], strict=False):
        slope = rate(w, t)
        w = w + (s - t) / 2 * (slope + rate(w + (s - t) * slope, s))
    low, high = (w / float(rows.process.processes[NUMBERS].schedule.sigma(1.0))).cpu().chunk(2)
    turned = (low + high) > 0  # of the tails the lower one is exact
    low, high = torch.where(turned, -high, low), torch.where(turned, -low, high)
    share = torch.special.ndtr(high) - torch.special.ndtr(low)
    found = share.clamp_min(_LEAST).log() - cells[:, 2].log()
    return torch.where(cells[:, 1] > cells[:, 0], found, -torch.inf)
