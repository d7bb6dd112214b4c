"""Kinds of conditions: fitted to a column of data; they encode the user's values for a network, and decode them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from inspect import signature
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError, suggest
from ..registry import Named, bare
from .given import Given

KINDS: Mapping[str, Any] = Named("condition")
_ARGUMENT = re.compile(r"[^(]+\((.+)\)\s*")


class Condition(ABC):
    """One condition of a model: declared by a column of data, stored in the model file.

    encode(user's value, n) -> Given of n rows,   decode(Given) -> the user's values,   network() -> how to embed it
    """

    kind: ClassVar[str]

    @abstractmethod
    def encode(self, value: Any, n: int) -> Given:
        """Encode the user's value for all n samples, or one value per sample; None, NaN and "" are absent.

        Raises SfumatoError for values that do not belong to this condition, or for another number of values.
        """

    def check(self, given: Given) -> None:  # noqa: B027  (names need no check)
        """Raise SfumatoError for values so far from the data that they must be in other units."""

    def doubt(self, given: Given) -> str | None:
        """A warning about values that are possible but far from the training data; None if there are none."""
        return None

    @abstractmethod
    def decode(self, given: Given) -> list[Any]:
        """One value per row in the user's spelling and units; None if absent."""

    @abstractmethod
    def network(self) -> dict[str, Any]:
        """What a network needs to embed the condition, as plain JSON: {"kind": ..., sizes}."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A JSON-able dict; `conditions.from_config` gives back an equal condition."""

    def extended(self, other: Condition) -> Condition:
        """A condition that knows the values of both, for a model that is trained further; the units stay.

        Raises SfumatoError if the other is of another kind or shape.
        """
        if type(other) is not type(self) or other.network() != self.network():
            raise SfumatoError(f"it was {self.describe()}, and is now {other.describe()}")
        return self

    @abstractmethod
    def describe(self) -> str:
        """The condition in words, to follow its name."""


def missing(value: Any) -> bool:
    """Whether a user's value is missing: None, NaN, pandas.NA, or an empty string."""
    if value is None or (isinstance(value, str | bytes) and not value.strip()):
        return True
    if isinstance(value, str | bytes | list | tuple | set | frozenset | dict | np.ndarray | Tensor):
        return False
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # pandas.NA is neither equal nor unequal
        return True


def many(value: Any) -> bool:
    """Whether a value has an axis: a list, a tuple, an array, a tensor."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def counted(given: Given, n: int) -> Given:
    """n rows, repeating a single one. Raises SfumatoError unless there are 1 or n."""
    if len(given.values) == n:
        return given
    if len(given.values) != 1:
        samples = "1 sample" if n == 1 else f"{n} samples"
        raise SfumatoError(f"{len(given.values)} values for {samples}: give one, or one per sample")
    return given.rows(torch.zeros(n, dtype=torch.int64))


def as_array(value: Any) -> np.ndarray:
    """A column as an array of numbers or strings, otherwise of objects."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError:  # entries of different lengths
        array = np.empty(len(value), dtype=object)
        array[:] = list(value)
    return array


def fit(column: Any, kind: str) -> Condition:
    """Fit a condition of this kind to a column of data with one value per sample; values may be missing.

    kind: "label", "multilabel", "scalar", "vector", "field", "text", or one that is registered; "text(minilm)" names
    the encoder of a text. Raises SfumatoError for an unknown kind and for a column that does not fit it.
    """
    made, argument = _class_of(bare(kind)), argument_of(kind)
    if argument is not None and len(signature(made.fit).parameters) < 2:
        raise SfumatoError(f"the kind {bare(kind)} takes no argument: leave ({argument}) out")
    found: Condition = made.fit(column) if argument is None else made.fit(column, argument)
    return found


def argument_of(kind: Any) -> str | None:
    """What is in the parentheses of a kind such as text(minilm); None without them."""
    found = _ARGUMENT.fullmatch(kind) if isinstance(kind, str) else None
    return found[1].strip() if found else None


def _class_of(kind: Any) -> Any:
    if not isinstance(kind, str) or kind not in KINDS:
        raise SfumatoError(f"there is no kind of condition {kind!r}: {suggest(str(kind), KINDS)}")
    return KINDS[kind]


def from_config(config: Mapping[str, Any]) -> Condition:
    """The inverse of `config()`. Raises SfumatoError for an unknown kind and for wrong keys."""
    kind = config.get("kind") if isinstance(config, Mapping) else None
    wanted = _class_of(kind)
    try:
        made: Condition = wanted.from_config(config)
    except SfumatoError as error:
        raise SfumatoError(f"a condition of kind {kind}: {error}") from None
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:  # of a user's own kind
        raise SfumatoError(f"this does not describe a {kind}: {config!r:.200} ({error!r:.200})") from None
    if set(made.config()) != set(config):
        raise SfumatoError(f"a {kind} is described by {sorted(made.config())}, not by {sorted(map(str, config))}")
    return made
