"""What a kind of condition is: how a column of data declares one, and how it goes between the user and a network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError
from .given import Given


class Condition(ABC):
    """One condition that a model knows: declared by a column of data, kept in the model file.

    encode(user's value, n) -> Given of n rows,   decode(Given) -> the user's values,   network() -> what embeds it
    """

    kind: ClassVar[str]

    @abstractmethod
    def encode(self, value: Any, n: int) -> Given:
        """One value for all n samples, or one a sample, as a user gives it; None, NaN and "" are absent.

        Raises SfumatoError, one sentence, for what is no value of this condition or another number of values.
        """

    @abstractmethod
    def check(self, given: Given) -> None:
        """Refuse, with SfumatoError, values that no sample of the data could have: those of other units."""

    def doubt(self, given: Given) -> str | None:
        """What is to be said of values that are possible, and that a model was hardly trained on; None of others."""
        return None

    @abstractmethod
    def decode(self, given: Given) -> list[Any]:
        """A value a row in the user's spelling and units; None where it is absent."""

    @abstractmethod
    def network(self) -> dict[str, Any]:
        """What a network needs to embed it, as JSON: {"kind": ..., sizes}."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """As JSON; `conditions.from_config` gives back an equal condition."""

    @abstractmethod
    def describe(self) -> str:
        """In words, to stand behind the condition's name."""


def missing(value: Any) -> bool:
    """Whether one value of a user says nothing: None, NaN, NaT, or an empty string."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return isinstance(value, float | np.floating) and math.isnan(value)


def many(value: Any) -> bool:
    """Whether a value has an axis: a list, a tuple, an array, a tensor."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def counted(given: Given, n: int) -> Given:
    """n rows of one, or of as many; SfumatoError for another number."""
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
