"""Conditions that are numbers: a scalar, a vector, or a field on a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from .. import schema
from ..errors import SfumatoError
from ..normaliser import SCHEMA as NORMALISER
from ..normaliser import Normaliser
from ..registry import register
from .condition import Condition, as_array, counted, many, missing
from .given import Given

BESIDE = 0.5  # fraction of the data's range beyond its ends at which a value becomes doubtful
REACH = 10.0  # a value over 10 times further from the mean than any in the data is in other units
DIGITS = 20  # most digits before and after the point in the shortest spelling of a number


_FIGURES = schema.listed(schema.number(-3e38, 3e38), 1)  # values are float32
_CONFIG = schema.fields(
    {
        "kind": schema.text, "shape": schema.listed(schema.whole(1, 2**31)), "normaliser": NORMALISER,
        "low": _FIGURES, "high": _FIGURES,
    },
    rest=None,
)  # fmt: skip


@dataclass(frozen=True)
class Real(Condition):
    """Numbers of `shape` per sample, normalised along their first axis: values float32 (B, *shape), 0 where absent.

    low, high: the smallest and largest number of the data for each entry of that axis.
    axes: the allowed numbers of axes of a value.
    """

    axes: ClassVar[tuple[int, ...]]

    shape: tuple[int, ...]
    normaliser: Normaliser
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def fit(cls, column: Any) -> Self:
        """From a column (N, *shape) in the user's units; a row with a missing number is missing.

        Raises SfumatoError for text, for infinite numbers, and if every row is missing.
        """
        array = numbers(column)
        if array.ndim == 2 and array.shape[1] == 1 and cls.axes == (0,):
            array = array[:, 0]
        cls._check_shape(array.shape[1:])
        known = array[~np.isnan(array.reshape(len(array), -1)).any(1)]
        if not len(known):
            raise SfumatoError("there is no number in it: every value is missing")
        if not np.isfinite(known).all():
            raise SfumatoError("it holds infinite numbers")
        flat = known.reshape(len(known), known.shape[1] if known.ndim > 1 else 1, -1)
        mean, std, low, high = (figure(flat, axis=(0, 2)) for figure in (np.mean, np.std, np.min, np.max))
        moves = (high > low) & (std > 0)
        mean, std = np.where(moves, mean, low), np.where(moves, std, 1.0)
        scale = Normaliser(tuple(mean.tolist()), tuple(std.tolist()))
        return cls(array.shape[1:], scale, tuple(low.tolist()), tuple(high.tolist()))

    def extended(self, other: Condition) -> Condition:
        """The range of both."""
        super().extended(other)
        assert isinstance(other, Real)
        low, high = (
            tuple(pick(pair) for pair in zip(*both, strict=True))
            for pick, both in ((min, (self.low, other.low)), (max, (self.high, other.high)))
        )
        return replace(self, low=low, high=high)

    @classmethod
    def _check_shape(cls, shape: tuple[int, ...]) -> None:
        """Raise SfumatoError for a shape that is not of this kind."""
        if len(shape) not in cls.axes or 0 in shape:
            raise SfumatoError(f"a {cls.kind} has {' or '.join(map(str, cls.axes))} axes per sample, not shape {shape}")

    def encode(self, value: Any, n: int) -> Given:
        """Encode one value of `shape`, or one per sample, in the user's units; text is numbers separated by commas."""
        array = numbers(value, self.shape)
        if array.shape == self.shape:
            array = array[None]
        elif not self.shape and array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.shape[1:] != self.shape or array.ndim != len(self.shape) + 1:
            wanted = f"numbers of shape {self.shape}" if self.shape else "one number"
            raise SfumatoError(f"a value must be {wanted}, or one per sample, but this has shape {array.shape}")
        given = Given.of(torch.from_numpy(array))
        columns = given.values.reshape(len(array), len(self.low), -1)
        if not bool(columns.isfinite().all()):
            raise SfumatoError("a value is infinite")
        return counted(Given(self.normaliser.normalise(columns).reshape(-1, *self.shape), given.present).masked(), n)

    def check(self, given: Given) -> None:
        """Raise SfumatoError for values over REACH times further from the mean than any in the data: other units."""
        known = self._in_units(given)[given.present.cpu()]
        mean, low, high = (
            torch.tensor(v, dtype=torch.float64)[:, None] for v in (self.normaliser.mean, self.low, self.high)
        )
        wrong = ((known - mean).abs() > REACH * torch.maximum(high - mean, mean - low)) & (high > low)
        if bool(wrong.any()):
            channel = int(wrong.nonzero()[0, 1])
            raise SfumatoError(
                f"{float(known[wrong][0]):g} is far outside the data, which ran from {self.low[channel]:g} to "
                f"{self.high[channel]:g}: give it in those units"
            )

    def doubt(self, given: Given) -> str | None:
        """A warning about a value outside the data's range by more than half its width."""
        known = self._in_units(given)[given.present.cpu()]
        low, high = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (self.low, self.high))
        room = BESIDE * (high - low)
        far = ((known < low - room) | (known > high + room)) & (high > low)
        if not bool(far.any()):
            return None
        channel = int(far.nonzero()[0, 1])
        return (
            f"{float(known[far][0]):g} is far from what the model was trained on, {self.low[channel]:g} to "
            f"{self.high[channel]:g} in the units of the data: such samples are a guess"
        )

    def _in_units(self, given: Given) -> Tensor:
        """(B, channels, places) in the user's units."""
        return self.normaliser.denormalise(given.values.cpu().reshape(len(given.values), len(self.low), -1))

    def decode(self, given: Given) -> list[Any]:
        """The shortest decimals that encode to these values: 300.0, not 300.00000005."""
        encoded, exact = given.values.cpu().reshape(len(given.values), len(self.low), -1), self._in_units(given)
        values = exact
        for decimals in range(DIGITS, -DIGITS, -1):
            shorter = exact.round(decimals=decimals)
            values = shorter.where(self.normaliser.normalise(shorter) == encoded, values)
        rows = values.reshape(-1, *self.shape)
        return [row.tolist() if here else None for row, here in zip(rows, given.present.tolist(), strict=True)]

    def config(self) -> dict[str, Any]:
        return {
            "kind": self.kind, "shape": list(self.shape), "normaliser": self.normaliser.to_dict(),
            "low": list(self.low), "high": list(self.high),
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        _CONFIG(config, "")
        shape, scale = tuple(config["shape"]), Normaliser.from_dict(config["normaliser"])
        cls._check_shape(shape)
        low, high = (tuple(map(float, config[key])) for key in ("low", "high"))
        if not len(low) == len(high) == len(scale.mean) == (shape[0] if shape else 1):
            raise SfumatoError(f"low, high and the normaliser need one figure for each of {shape[0] if shape else 1}")
        return cls(shape, scale, low, high)

    def describe(self) -> str:
        size = f"{' x '.join(map(str, self.shape))} numbers" if self.shape else "a number"
        return f"{size} from {min(self.low):g} to {max(self.high):g}"


@register("condition", "scalar")
@dataclass(frozen=True)
class Scalar(Real):
    """One number per sample, such as a temperature: values float32 (B,)."""

    kind: ClassVar[str] = "scalar"
    axes: ClassVar[tuple[int, ...]] = (0,)

    def network(self) -> dict[str, Any]:
        return {"kind": "scalar"}


@register("condition", "vector")
@dataclass(frozen=True)
class Vector(Real):
    """`shape` (d,) numbers per sample, each normalised by itself: values float32 (B, d)."""

    kind: ClassVar[str] = "vector"
    axes: ClassVar[tuple[int, ...]] = (1,)

    def network(self) -> dict[str, Any]:
        return {"kind": "vector", "size": self.shape[0]}


@register("condition", "field")
@dataclass(frozen=True)
class Field(Real):
    """`shape` (C, *spatial) numbers per sample, normalised by channel: values float32 (B, C, *spatial).

    Such as a picture to recolour, a low-resolution version, or a map. Networks resize it to the sample's resolution.
    """

    kind: ClassVar[str] = "field"
    axes: ClassVar[tuple[int, ...]] = (2, 3, 4)

    def network(self) -> dict[str, Any]:
        return {"kind": "field", "shape": list(self.shape)}


def numbers(value: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A user's numbers as a float64 array, NaN where missing.

    A missing row of a list becomes NaN of `shape`, or of the shape of the other rows. Raises SfumatoError naming the
    first value that is not a number.
    """
    if missing(value):
        return np.full(shape or (), np.nan)
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")] if "," in value else value.strip()
    elif many(value) and any(missing(row) for row in value):
        known = next((np.shape(row) for row in value if not missing(row)), ())
        value = [np.full(known if shape is None else shape, np.nan) if missing(row) else row for row in value]
    array = as_array(value)
    try:
        return np.array(array, dtype=np.float64)
    except (TypeError, ValueError):
        found = next((v for v in np.asarray(array, dtype=object).reshape(-1) if not _is_number(v)), value)
        raise SfumatoError(f"{found!r} is not a number") from None


def _is_number(value: Any) -> bool:
    try:
        return bool(np.array(value, dtype=np.float64).ndim == 0)
    except (TypeError, ValueError):
        return False
