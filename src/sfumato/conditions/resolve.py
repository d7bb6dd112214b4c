"""The user's conditions, by name, in the user's spelling and units -> encoded `Conditions` of n rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError, SfumatoWarning, suggest
from .condition import Condition, counted, many, missing
from .given import Conditions, Given, joined
from .label import NULL, Label

_ROWS = 1 << 14  # rows of a column encoded at once, in float64
RESERVED = "cond"  # cond={"index": ...}: conditions whose names are arguments of the function


def declared(model_or_spec: Any) -> dict[str, Condition] | None:
    """The conditions declared by a model's data, by name; None for a model without a spec."""
    known = getattr(getattr(model_or_spec, "spec", model_or_spec), "conditions", None)
    return None if known is None else dict(known)


def resolve(model_or_spec: Any, given: Mapping[str, Any], n: int) -> Conditions:
    """Encode the user's conditions for n samples: one value per sample, or one for all; None, NaN and "" are absent.

    given: name -> value in the user's units (`Condition.encode`); the key "cond" may hold such a mapping, for names
    that clash with arguments. A condition that is None is left out; a `Given` is used as it is. Without a spec a tensor
    keeps its rows: whole numbers are labels, -1 for none, and floats stay floats. Raises SfumatoError for an unknown
    name, label, shape or number of values, and warns of numbers far from the training data (`Condition.doubt`).
    """
    known = declared(model_or_spec)
    found = {}
    for name, value in unfolded(given).items():
        if value is None:
            continue
        try:
            found[name] = _encoded(known, name, value, n)
        except SfumatoError as error:
            raise SfumatoError(f"The condition {name!r}: {error}") from None
    return Conditions(found)


def unfolded(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """`given` with the entries of its key "cond" moved to the top level."""
    inner = given.get(RESERVED)
    if not isinstance(inner, Mapping):
        return given
    outer = {name for name, value in given.items() if name != RESERVED and value is not None}
    twice = [name for name, value in inner.items() if name in outer and value is not None]
    if twice:
        raise SfumatoError(
            f"The condition {twice[0]!r} is given twice, by its name and in {RESERVED}={{...}}: remove one"
        )
    return {**{name: value for name, value in given.items() if name != RESERVED}, **inner}


def of_data(model_or_spec: Any, source: Any, rows: Tensor) -> Conditions:
    """The conditions of rows int64 (n,) of a data set: those that both the model and the data have.

    Raises SfumatoError for a value that the model does not know, such as a new class.
    """
    found = {}
    for name, condition in (declared(model_or_spec) or {}).items():
        if name not in source.conditions:
            continue
        column = source.conditions[name]
        try:
            found[name] = joined([_of_column(condition, column.take(part)) for part in rows.split(_ROWS)])
        except SfumatoError as error:
            raise SfumatoError(f"The condition {name!r} of {source.name}: {error}") from None
    return Conditions(found)


def _of_column(condition: Condition, column: Any) -> Given | Tensor:
    if isinstance(condition, Label) and column.names == condition.classes:  # the same indices
        return torch.from_numpy(np.where(column.present, column.values, NULL))
    return condition.encode(column.spelt, len(column))


def _encoded(known: dict[str, Condition] | None, name: str, value: Any, n: int) -> Given:
    if isinstance(value, Given):
        return counted(value, n)
    if known is None:
        return counted(_plain(value, n), n)
    if name not in known:
        raise SfumatoError(
            f"the model has none of this name: {suggest(name, known)}" if known else "the model has none"
        )
    given = known[name].encode(value, n)
    known[name].check(given)
    if (doubt := known[name].doubt(given)) is not None:
        warnings.warn(f"The condition {name!r}: {doubt}.", SfumatoWarning, stacklevel=4)
    return given


def _filled(value: Any) -> list[Any]:
    """Rows with a number where one is missing: -1 (no label) among whole numbers, else NaN."""
    whole = all(isinstance(row, int | np.integer) for row in value if not missing(row))
    return [(NULL if whole else np.nan) if missing(row) else row for row in value]


def _plain(value: Any, n: int) -> Given:
    """A value for a model without a spec: numbers as they are, one row or n."""
    if not isinstance(value, Tensor):
        rows = _filled(value) if many(value) else value
        try:
            value = torch.as_tensor(np.asarray(rows) if many(rows) else rows)
        except (TypeError, ValueError, RuntimeError):
            raise SfumatoError(f"{value!r} is not a number, and the model has no data spec to look up names") from None
        if value.dtype == torch.float64:
            value = value.to(torch.get_default_dtype())
    if value.ndim == 1 and len(value) not in (1, n):
        samples = "1 sample" if n == 1 else f"{n} samples"
        raise SfumatoError(f"{len(value)} values for {samples}: give one, one per sample, or a matrix of one row")
    return Given.of(value.reshape(1) if value.ndim == 0 else value)
