"""Sequences of unequal length as one tensor (N, C, max L): NaN beyond the end of each, and the law of their lengths.

    L_i = 1 + the last step of x_i with a value        P(L = l) = n_l / sum n        l = F^-1(u),  u uniform in (0, 1)

A mask of missing values (`conditions.missing`) then tells loss and network where a sequence has ended. Sets of points,
whose steps have no order, are stored alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import schema
from ..errors import SfumatoError, counted, whole
from .statistics import blocks

if TYPE_CHECKING:
    from .rows import Samples

LAYOUTS = ("L", "LC", "CL")  # of the user's arrays: numbers, steps of channels, channels of steps
MANIFEST = "manifest.json"  # in a folder of samples, a file each, which do not say their layout
SEVERAL = "sequences of several lengths"
_WHOLE = schema.listed(schema.whole(1, 2**31), 1)
SCHEMA = schema.fields({"layout": schema.text, "steps": _WHOLE, "counts": _WHOLE})


@dataclass(frozen=True)
class Lengths:
    """The empirical law of lengths: `counts` of the training sequences have `steps`, which rise.

    layout: of the user's arrays, one of `LAYOUTS`.
    """

    layout: str
    steps: tuple[int, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if self.layout not in LAYOUTS or not self.steps or len(self.steps) != len(self.counts) or not rising:
            raise SfumatoError("a law of lengths needs a layout (L, LC, CL), rising steps, and a count of each")

    @classmethod
    def fit(cls, x: Samples, layout: str, rows: Tensor | None = None) -> Lengths:
        """The law of these rows of padded sequences x (N, C, L)."""
        steps, counts = ends(x, rows).unique(return_counts=True)
        return cls(layout, tuple(steps.tolist()), tuple(counts.tolist()))

    def drawn(self, u: Tensor) -> Tensor:
        """The lengths, int64 (n,), at uniform numbers u (n,)."""
        law = torch.tensor(self.counts, dtype=torch.float64).cumsum(0)
        place = torch.searchsorted(law / law[-1], u.double()).clamp_max(len(law) - 1)
        return torch.tensor(self.steps)[place]

    def given(self, length: Any, n: int, most: int) -> Tensor:
        """The user's length of n sequences, one number or one each, of at most `most` steps, int64 (n,)."""
        each = [length] * n if np.ndim(length) == 0 else list(length)
        if len(each) != n:
            raise SfumatoError(f"length has {counted(len(each), 'number')} for {counted(n, 'sequence')}: give one each")
        found = torch.tensor([whole("length, the steps of a sequence,", one) for one in each])
        if int(found.max()) > most:
            raise SfumatoError(
                f"length is {int(found.max()):,}, and the longest sequence of the training has {most:,} steps: take "
                "fewer"
            )
        return found

    def cut(self, x: Tensor, ends: Tensor) -> list[Tensor]:
        """Padded samples (n, C, L) as the user lays them out, each as long as `ends`, int64 (n,), says."""
        parts = [one[:, :end] for one, end in zip(x, ends.tolist(), strict=True)]
        if self.layout == "CL":
            return [part.clone() for part in parts]
        return [part[0].clone() if self.layout == "L" else part.mT.contiguous() for part in parts]

    def padded(self, parts: Sequence[Any], shape: Sequence[int]) -> Tensor:
        """Sequences in this layout -> (n, C, L) of this shape (C, L), NaN beyond their ends."""
        found = [torch.as_tensor(part) for part in parts]
        for part in found:
            sides = dict(zip(self.layout, part.shape, strict=False))
            if part.ndim != len(self.layout) or sides.get("C", 1) != shape[0] or sides["L"] > shape[1]:
                raise SfumatoError(
                    f"a sequence of shape {tuple(part.shape)} is given, and the model knows up to {shape[1]:,} steps "
                    f"of {counted(shape[0], 'channel')}, laid out as {self.layout}"
                )
        return stacked([part if part.is_floating_point() else part.double() for part in found], self.layout, shape[1])

    def describe(self, channels: int) -> str:
        """sequences of 30 to 512 steps of 3 channels"""
        low, high = self.steps[0], self.steps[-1]
        steps = counted(high, "step") if low == high else f"{low:,} to {high:,} steps"
        return f"sequences of {steps} of {counted(channels, 'channel')}"

    def to_dict(self) -> dict[str, Any]:
        return {"layout": self.layout, "steps": list(self.steps), "counts": list(self.counts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lengths:
        return cls(data["layout"], tuple(data["steps"]), tuple(data["counts"]))


def ends(x: Samples, rows: Tensor | None = None) -> Tensor:
    """The lengths of padded sequences x (N, C, L), or of those at `rows`: int64 (n,)."""
    steps = torch.arange(1, x.shape[2] + 1)
    return torch.cat([((~block.isnan()).any(1) * steps).amax(1) for block in blocks(x, rows)])


def within(missing: Sequence[float], ends: Tensor, longest: int) -> tuple[float, ...]:
    """The shares of values missing before the ends, of the shares of all values of padded sequences."""
    there = int(ends.sum()) / (longest * len(ends))
    return tuple(0.0 if share < 1e-9 else share for share in (1 - (1 - all_) / there for all_ in missing))


def beyond(ends: Tensor, shape: Sequence[int]) -> Tensor:
    """1 beyond the ends, int64 (n,), of sequences of this shape (C, L), else 0: float32 (n, C, L)."""
    return (torch.arange(shape[1]) >= ends[:, None, None]).float().expand(-1, shape[0], -1)


def layout_of(shapes: Sequence[Sequence[int]]) -> str:
    """The layout of arrays of these shapes; "" where they are not sequences of several lengths."""
    if len({len(shape) for shape in shapes}) != 1 or len(shapes[0]) not in (1, 2) or len(set(map(tuple, shapes))) == 1:
        return ""
    if len(shapes[0]) == 1:
        return "L"
    return next((layout for layout, axis in (("LC", 1), ("CL", 0)) if len({shape[axis] for shape in shapes}) == 1), "")


def fits_layout(shapes: Sequence[Sequence[int]], layout: str) -> bool:
    """Whether arrays of these shapes are sequences in this layout, of one length or several; "" fits none."""
    if not layout or any(len(shape) != len(layout) for shape in shapes):
        return False
    return "C" not in layout or len({shape[layout.index("C")] for shape in shapes}) == 1


def layout_in(manifest: str | bytes) -> str:
    """The layout of the sequences in a file of samples, as its manifest says (`cli.sample`); "" if it says none."""
    try:
        found = json.loads(manifest)["layout"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return found if found in LAYOUTS else ""


def stacked(parts: Sequence[Tensor], layout: str, length: int | None = None) -> Tensor:
    """Floats x_i in a layout -> (N, C, length), NaN beyond their ends. length: by default that of the longest."""
    rows = [part[None] if layout == "L" else part if layout == "CL" else part.mT for part in parts]
    length = max(row.shape[1] for row in rows) if length is None else length
    return torch.stack([F.pad(row, (0, length - row.shape[1]), value=torch.nan) for row in rows])


def with_mask(x: Tensor) -> Tensor:
    """Normalised x (n, C, *spatial) with NaN -> (n, F): 0 for NaN, and beside it where NaN was, as numbers 0 and 1; of
    sequences, whose channels end together, one a step."""
    gaps = x.isnan()
    mask = gaps[:, 0] if bool((gaps == gaps[:, :1]).all()) else gaps
    return torch.cat((x.masked_fill(gaps, 0.0).flatten(1), mask.flatten(1).to(x)), 1)


def in_order(x: Tensor) -> Tensor:
    """Sets of points x (n, C, L) with these by their coordinates, the first before the others, and NaN last."""
    for channel in reversed(range(x.shape[1])):
        order = x[:, channel].argsort(dim=1, stable=True)
        x = x.gather(2, order[:, None].expand_as(x))
    return x
