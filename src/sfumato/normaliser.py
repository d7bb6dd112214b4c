"""z = (x - mean) / std, channel by channel: normalises data in any units to mean 0 and standard deviation 1.

The affine map is computed in float64; only the result is rounded to float32.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import schema
from .errors import SfumatoError

_NUMBERS = schema.listed(schema.number(), 1)
SCHEMA = schema.fields({"name": schema.text, "mean": _NUMBERS, "std": _NUMBERS}, rest=None)


@dataclass(frozen=True)
class Statistics:
    """Per-channel figures of a set of samples, each a tuple of `channels` floats.

    `quiet` is the smallest standard deviation among many groups of 8 neighbouring samples, and `quiet_sample` the
    smallest within one sample: a batch that varies far less must be in other units.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    quiet: tuple[float, ...]
    quiet_sample: tuple[float, ...]


@dataclass(frozen=True)
class Normaliser:
    """z = (x - mean_c) / std_c; `mean` and `std` hold one float per channel (the first axis of a sample).

    A channel that is constant in the training split gets std 1: it maps to 0 and back exactly.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise SfumatoError(
                f"a normaliser needs one mean and one std per channel, not {len(self.mean)} and {len(self.std)}"
            )
        if not all(math.isfinite(m) for m in self.mean) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise SfumatoError("a normaliser's means must be finite and its stds finite and positive")

    @classmethod
    def of(cls, figures: Statistics) -> "Normaliser":
        """The normaliser that gives data with these statistics mean 0 and std 1."""
        std = tuple(
            s if high > low and s > 0 else 1.0
            for s, low, high in zip(figures.std, figures.low, figures.high, strict=True)
        )
        return cls(figures.mean, std)

    def normalise(self, x: Tensor) -> Tensor:
        """x (B, C, *spatial) of any real dtype -> z float32 of the same shape."""
        mean, std = self._columns(x)
        return ((x.to(torch.float64) - mean) / std).to(torch.float32)

    def denormalise(self, z: Tensor) -> Tensor:
        """z (B, C, *spatial) -> x = mean + std z in float64, unrounded and unbounded."""
        mean, std = self._columns(z)
        return z.to(torch.float64) * std + mean

    def log_jacobian(self, shape: Sequence[int]) -> float:
        """log |dz/dx| = -(entries a channel) * sum_c log std_c for one sample of this shape, in nats."""
        return -math.prod(shape[1:]) * math.fsum(math.log(s) for s in self.std)

    @cached_property
    def _figures(self) -> Tensor:
        return torch.tensor([self.mean, self.std], dtype=torch.float64)

    def _columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self._figures.to(x.device).view(2, 1, -1, *(1,) * (x.ndim - 2))
        return mean, std

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; floats survive JSON exactly."""
        return {"name": "affine", "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Normaliser":
        """The inverse of `to_dict`. Raises SfumatoError for anything else."""
        schema.require(data, SCHEMA, "a normaliser")
        if data["name"] != "affine":
            raise SfumatoError(f"a normaliser has the name 'affine', not {data['name']!r}")
        return cls(tuple(float(m) for m in data["mean"]), tuple(float(s) for s in data["std"]))
