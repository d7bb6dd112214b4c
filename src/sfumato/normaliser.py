"""z = (g(x) - mean) / std, channel by channel: normalises data in any units to mean 0 and standard deviation 1.

The map is computed in float64; only the result is rounded to float32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from . import schema
from .errors import SfumatoError

_NUMBERS = schema.listed(schema.number(), 1)
SCHEMA = schema.fields(
    {"name": schema.text, "mean": _NUMBERS, "std": _NUMBERS}, {"knots": schema.listed(_NUMBERS)}, rest=None
)
KINDS = ("affine", "log", "quantile", "bounded", "position")
KNOTS = {"quantile": 1, "bounded": 1, "position": 2}  # rows of knots for each channel


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
    """z = (g(x) - mean_c) / std_c; `mean` and `std` of g(x) hold one float per channel (the first axis of a sample).

        affine     g(x) = x
        log        g(x) = log x                        bounded    g(x) = log(x - low_c) - log(high_c - x)
        quantile   g is linear between the knots (x_ck, Phi^-1((k + 1/2) / K)), and goes on as at its ends
        position   g(x) = (x - m_cp) / s_cp at position p of the channel

    knots: for each channel (low, high) of bounded, or the x_k of quantile, which increase; of position the m_cp of each
    channel, then the s_cp of each. A channel that is constant
    in the training split gets std 1: it maps to 0 and back exactly.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str = "affine"
    knots: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise SfumatoError(
                f"a normaliser needs one mean and one std per channel, not {len(self.mean)} and {len(self.std)}"
            )
        if not all(math.isfinite(m) for m in self.mean) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise SfumatoError("a normaliser's means must be finite and its stds finite and positive")
        if self.kind not in KINDS:
            raise SfumatoError(f"a normaliser is one of {', '.join(KINDS)}, not {self.kind!r}")
        if len(self.knots) != len(self.mean) * KNOTS.get(self.kind, 0):
            raise SfumatoError(f"a normaliser {self.kind!r} has not {len(self.knots)} rows of knots")
        if self.kind == "position":
            self._require_places()
            return
        counts = {len(row) for row in self.knots}
        wrong = any(not math.isfinite(b) or not a < b for row in self.knots for a, b in pairwise(row))
        if wrong or len(counts) > 1 or min(counts, default=2) < 2 or (self.kind == "bounded" and counts != {2}):
            raise SfumatoError("a normaliser's knots must be finite, increase, and be as many in each channel")

    def _require_places(self) -> None:
        """Raise SfumatoError for means and deviations of positions that cannot be inverted."""
        stds = self.knots[len(self.mean) :]
        wrong = any(not math.isfinite(each) for row in self.knots for each in row)
        if wrong or len({len(row) for row in self.knots}) > 1 or any(s <= 0 for row in stds for s in row):
            raise SfumatoError("a normaliser's figures of positions must be finite, the deviations positive")

    @classmethod
    def of(cls, figures: Statistics) -> "Normaliser":
        """The affine normaliser that gives data with these statistics mean 0 and std 1."""
        std = tuple(
            s if high > low and s > 0 else 1.0
            for s, low, high in zip(figures.std, figures.low, figures.high, strict=True)
        )
        return cls(figures.mean, std)

    def normalise(self, x: Tensor) -> Tensor:
        """x (B, C, *spatial) of any real dtype -> z float32 of the same shape; NaN, a missing value, stays NaN.
        SfumatoError beyond the range of g."""
        mean, std = self._columns(x)
        g = self.curve(x.to(torch.float64))
        if self.kind != "affine" and not bool((g.isfinite() | x.isnan()).all()):
            x = x[~x.isnan()]
            raise SfumatoError(
                f"values from {float(x.min()):g} to {float(x.max()):g} cannot be normalised by {self.kind}, as the "
                "training data were: give data in their range"
            )
        return ((g - mean) / std).to(torch.float32)

    def denormalise(self, z: Tensor) -> Tensor:
        """z (B, C, *spatial) -> x = g^-1(mean + std z) in float64, unrounded and unbounded."""
        mean, std = self._columns(z)
        g = z.to(torch.float64) * std + mean
        if self.kind == "log":
            return g.exp()
        if self.kind == "bounded":
            low, high = self._bounds(g)
            return low + (high - low) * g.sigmoid()
        if self.kind == "position":
            m, s = self._places(g)
            return m + s * g
        return self._through(g, inverse=True)[0] if self.kind == "quantile" else g

    def log_jacobian(self, z: Tensor) -> Tensor:
        """log |dz/dx| = sum (log g'(x) - log std_c) of each sample of z (B, C, *spatial), in nats, float64 (B,); over
        the present values, where some are missing (NaN)."""
        mean, std = self._columns(z)
        g = z.to(torch.float64) * std + mean
        slope = torch.zeros_like(g)
        if self.kind == "log":
            slope = -g
        elif self.kind == "bounded":
            low, high = self._bounds(g)
            slope = -logsigmoid(g) - logsigmoid(-g) - (high - low).log()
        elif self.kind == "position":
            slope = -self._places(g)[1].log().expand_as(g)
        elif self.kind == "quantile":
            slope = -self._through(g, inverse=True)[1].log()
        return (slope - std.log()).masked_fill(z.isnan(), 0.0).flatten(1).sum(1)

    def curve(self, x: Tensor) -> Tensor:
        """g(x) of x (B, C, *spatial) in float64."""
        if self.kind == "log":
            return x.log()
        if self.kind == "bounded":
            low, high = self._bounds(x)
            return (x - low).log() - (high - x).log()
        if self.kind == "position":
            m, s = self._places(x)
            return (x - m) / s
        return self._through(x)[0] if self.kind == "quantile" else x

    def _through(self, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """(g(x), g'(x)) of quantile; inverse: of g^-1."""
        xs = torch.tensor(self.knots, dtype=torch.float64, device=x.device)
        count = xs.shape[1]
        gs = torch.special.ndtri((torch.arange(count, dtype=torch.float64, device=x.device) + 0.5) / count)
        before, after = (gs.expand_as(xs).contiguous(), xs) if inverse else (xs, gs.expand_as(xs))
        flat = x.transpose(0, 1).reshape(len(xs), -1)
        right = torch.searchsorted(before, flat.contiguous()).clamp(1, count - 1)
        x0, x1, y0, y1 = (v.gather(1, i) for v in (before, after) for i in (right - 1, right))
        slope = (y1 - y0) / (x1 - x0)
        back = lambda v: v.reshape(x.transpose(0, 1).shape).transpose(0, 1)  # noqa: E731
        return back(y0 + (flat - x0) * slope), back(slope)

    def _places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, std) of each position, (C, *spatial), for x (B, C, *spatial)."""
        if math.prod(x.shape[2:]) != len(self.knots[0]):
            raise SfumatoError(
                f"the normaliser knows {len(self.knots[0]):,} positions of a channel, and samples of shape "
                f"{tuple(x.shape[1:])} have {math.prod(x.shape[2:]):,}: give samples of the size of the training's"
            )
        mean, std = torch.tensor(self.knots, dtype=torch.float64, device=x.device).view(2, *x.shape[1:])
        return mean, std

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        knots = torch.tensor(self.knots, dtype=torch.float64, device=x.device)
        low, high = knots.T.reshape(2, 1, -1, *(1,) * (x.ndim - 2))
        return low, high

    @cached_property
    def _figures(self) -> Tensor:
        return torch.tensor([self.mean, self.std], dtype=torch.float64)

    def _columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self._figures.to(x.device).view(2, 1, -1, *(1,) * (x.ndim - 2))
        return mean, std

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict; floats survive JSON exactly."""
        knots = {"knots": [list(row) for row in self.knots]} if self.knots else {}
        return {"name": self.kind, "mean": list(self.mean), "std": list(self.std), **knots}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Normaliser":
        """The inverse of `to_dict`. Raises SfumatoError for anything else."""
        schema.require(data, SCHEMA, "a normaliser")
        mean, std, *knots = (tuple(map(float, row)) for row in (data["mean"], data["std"], *data.get("knots", ())))
        return cls(mean, std, data["name"], tuple(knots))
