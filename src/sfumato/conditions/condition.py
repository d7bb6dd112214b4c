"""A kind of condition: fitted to a column of data, and encoded from the user's values for a network and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError, suggest
from ..registry import Named
from .given import Given

KINDS: Mapping[str, Any] = Named("condition")


class Condition(ABC):
    """One condition of a model: declared by a column of data, kept in the model file.

    encode(user's value, n) -> Given of n rows,   decode(Given) -> the user's values,   network() -> how to embed it
    """

    kind: ClassVar[str]

    @abstractmethod
    def encode(self, value: Any, n: int) -> Given:
        """One value for all n samples, or one a sample, as a user gives it; None, NaN and "" are absent.

        Raises SfumatoError for what is no value of this condition, or for another number of values.
        """

    def check(self, given: Given) -> None:  # noqa: B027  (of names each is as good as another)
        """Raise SfumatoError for values that no sample of the data could have: those of other units."""

    def doubt(self, given: Given) -> str | None:
        """A warning about values that are possible but far from the training data; None without one."""
        return None

    @abstractmethod
    def decode(self, given: Given) -> list[Any]:
        """A value a row in the user's spelling and units; None where it is absent."""

    @abstractmethod
    def network(self) -> dict[str, Any]:
        """What a network needs to embed it, JSON-able: {"kind": ..., sizes}."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A JSON-able dict; `conditions.from_config` gives back an equal condition."""

    @abstractmethod
    def describe(self) -> str:
        """In words, to follow the condition's name."""


def missing(value: Any) -> bool:
    """Whether one value of a user is missing: None, NaN, pandas.NA, or an empty string."""
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
    """n rows, from one or from n; SfumatoError for another number."""
    if len(given.values) == n:
        return given
    if len(given.values) != 1:
        raise SfumatoError(f"{len(given.values)} values for {n} samples: give one, or one each")
    return given.rows(torch.zeros(n, dtype=torch.int64))


def as_array(value: Any) -> np.ndarray:
    """A column as an array: numbers, strings, or objects where it is neither."""
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
    """The condition of a kind that a column of data declares, one value a sample, some of which may be missing.

    kind: "label", "multilabel", "scalar", "vector", "field", or one that is registered.
    Raises SfumatoError for an unknown kind and for a column that is not of it.
    """
    found: Condition = _class_of(kind).fit(column)
    return found


def _class_of(kind: Any) -> Any:
    if kind not in KINDS:
        raise SfumatoError(f"there is no kind of condition {kind!r}: {suggest(str(kind), KINDS)}")
    return KINDS[kind]


def from_config(config: Mapping[str, Any]) -> Condition:
    """The inverse of `config()`; SfumatoError for an unknown kind and for other keys than its own."""
    kind = config.get("kind") if isinstance(config, Mapping) else None
    wanted = _class_of(kind)
    try:
        made: Condition = wanted.from_config(config)
    except (KeyError, TypeError, ValueError) as error:
        raise SfumatoError(f"this is no {kind}: {config} ({error!r})") from None
    if set(made.config()) != set(config):
        raise SfumatoError(f"a {kind} is described by {sorted(made.config())}, not by {sorted(config)}")
    return made
