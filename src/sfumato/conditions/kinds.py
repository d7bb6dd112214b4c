"""The kinds of conditions by name, and which of them a column of data is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import SfumatoError, suggest
from ..registry import Named
from .condition import Condition, as_array, missing

KINDS: Mapping[str, Any] = Named("condition")


def fit(column: Any, kind: str | None = None) -> Condition:
    """The condition that a column of data is, one value a sample, missing ones among them; `kind` says which.

    Without `kind`: strings are labels, and lists of strings several; whole numbers are labels where they have at most
    max(2, sqrt N) values; other numbers are a scalar, a vector (N, d) or a field (N, C, *spatial).
    Raises SfumatoError for an unknown kind and for a column that is not of it.
    """
    kind = guess(column) if kind is None else kind
    if kind not in KINDS:
        raise SfumatoError(f"there is no kind of condition {kind!r}: {suggest(str(kind), KINDS)}")
    found: Condition = KINDS[kind].fit(column)
    return found


def guess(column: Any) -> str:
    """The kind that a column looks like."""
    array = as_array(column)
    if array.ndim != 1:
        by_axes = "scalar" if array.ndim == 2 and array.shape[1] == 1 else "vector" if array.ndim == 2 else "field"
        return "multilabel" if array.ndim == 2 and array.dtype.kind in "bUTSO" else by_axes
    if array.dtype.kind == "O":
        known = [value for value in array if not missing(value)]
        if any(isinstance(value, list | tuple | set | frozenset | np.ndarray) for value in known):
            return _of_lists(known)
        return "label" if any(isinstance(value, str) for value in known) else guess(np.array(known))
    if array.dtype.kind in "iu":
        return "label" if len(np.unique(array)) <= max(2.0, math.sqrt(len(array))) else "scalar"
    return "scalar" if array.dtype.kind == "f" else "label"


def _of_lists(known: list[Any]) -> str:
    """Sets of names, or numbers of one shape."""
    shapes = {np.shape(value) for value in known}
    if len(shapes) > 1 or np.asarray(known[0]).dtype.kind not in "iuf":
        return "multilabel"
    return "vector" if len(shapes.pop()) == 1 else "field"


def from_config(config: Mapping[str, Any]) -> Condition:
    """The condition that `config()` describes; SfumatoError for an unknown kind, and for keys that are not its own."""
    kind = config.get("kind") if isinstance(config, Mapping) else None
    if kind not in KINDS:
        raise SfumatoError(f"there is no kind of condition {kind!r}: {suggest(str(kind), KINDS)}")
    try:
        made: Condition = KINDS[str(kind)].from_config(config)
    except (KeyError, TypeError, ValueError) as error:
        raise SfumatoError(f"this is no {kind}: {config} ({error!r})") from None
    if set(made.config()) != set(config):
        raise SfumatoError(f"a {kind} is described by {sorted(made.config())}, not by {sorted(config)}")
    return made
