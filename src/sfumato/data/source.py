"""A data set in the user's units and dtype, with its conditions, its ids and its hold-out split.

    sample i is held out  <=>  hash(group_i) / 2^64 < fraction

The hash is BLAKE2b of the group's key alone, so a sample never changes sides when data are added, removed or reordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..conditions import NULL
from ..errors import SfumatoError, counted
from .column import Column
from .lengths import SEVERAL
from .rows import Samples
from .table_schema import TableSchema
from .text import Tokeniser

LABEL = "label"  # the condition behind `Source.labels` and `Source.classes`


@dataclass(frozen=True)
class Source:
    """A data set.

    x: (N, *shape) in the user's dtype and units, channels first: a tensor, or `Rows` that are read on access.
    kind: "image", "array", "text" or "table".
    conditions: name -> one value per sample, in the user's units; values may be missing.
    ids: a stable name for each sample, such as its path within a folder; by default its position.
    skipped: (path, reason) of each file that could not be used.
    notes: sentences on how the data were read.
    groups: the group of each sample, by default its id; the hold-out split never divides a group.
    bounds: declared (lowest, highest) value, if the dtype does not imply it.
    identity: a hash that identifies these values of x; statistics are cached under it.
    units: the number in [0, 1) by which each sample is held out, instead of the hash of its group.
    text: the tokeniser, for windows of text.
    stored: of the files, what a file of samples in the same format needs: its ending, name, units, rate ..
    table: the schema, for rows of a table of columns.
    missing: the share of values that are missing, NaN in x, of each channel, in sequences before their ends; () if none
        is.
    layout: of the user's sequences of several lengths (`lengths.LAYOUTS`), which x pads with NaN; "" for any other.
    whole: the dtype of whole numbers, by name, which x holds as floats since some are missing; "" for any other.
    """

    x: Samples
    kind: str
    name: str
    conditions: dict[str, Column] = field(default_factory=dict)
    ids: Sequence[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    groups: Sequence[str] = field(default_factory=list)
    bounds: tuple[float, float] | None = None
    identity: str | None = None
    units: list[float] = field(default_factory=list)
    text: Tokeniser | None = None
    stored: dict[str, Any] = field(default_factory=dict)
    table: TableSchema | None = None
    missing: tuple[float, ...] = ()
    layout: str = ""
    whole: str = ""

    def __post_init__(self) -> None:
        if not self.ids:
            object.__setattr__(self, "ids", Positions(len(self)))
        if not self.groups:
            object.__setattr__(self, "groups", self.ids)

    def __len__(self) -> int:
        return len(self.x)

    @staticmethod
    def headline(x: Samples, what: str = "sample") -> str:
        """The first note on samples: how many, their shape and dtype."""
        return f"{counted(len(x), what)} of shape {tuple(x.shape[1:])}, {str(x.dtype).removeprefix('torch.')}."

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    @property
    def dtype(self) -> str:
        """The user's dtype, by name."""
        return self.whole or str(self.x.dtype).removeprefix("torch.")

    @property
    def gaps(self) -> str:
        """What of x is not there, in words; "" for whole samples."""
        return SEVERAL if self.layout else "missing values" if self.missing else ""

    @property
    def classes(self) -> list[str]:
        """The class names of the condition "label"; empty without one."""
        return list(self.conditions[LABEL].names or ()) if LABEL in self.conditions else []

    @property
    def labels(self) -> Tensor | None:
        """Indices into `classes`, int64 (N,), -1 for missing labels; None without classes."""
        if not self.classes:
            return None
        label = self.conditions[LABEL]
        return torch.from_numpy(np.where(label.present, label.values, NULL))

    def split(self, fraction: float = 0.05) -> tuple[Tensor, Tensor]:
        """Indices (train, holdout), by a hash of each sample's group, or by `units`."""
        kept: dict[float, tuple[Tensor, Tensor]] = self.__dict__.setdefault("_split", {})
        if fraction not in kept:  # a million rows take seconds, and a run asks several times
            kept[fraction] = split(self.groups, fraction, self.units or None)
        return kept[fraction]


class Positions(Sequence[str]):
    """The names "0", "1", .. of so many samples, of which none is stored."""

    def __init__(self, count: int) -> None:
        self.numbers = range(count)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, which: Any) -> Any:
        found = self.numbers[which]
        return [str(i) for i in found] if isinstance(which, slice) else str(found)


def _hash_unit(text: str) -> float:
    """A number in [0, 1) that depends only on the text (BLAKE2b, 8 bytes)."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") / 2.0**64


def split(ids: Sequence[str], fraction: float = 0.05, chosen: Sequence[float] | None = None) -> tuple[Tensor, Tensor]:
    """Indices (train, holdout), int64 and ascending; equal ids (the members of one group) fall on the same side.

    Pass `source.groups` (or call `source.split`) so that variants of one thing are never on both sides.
    With 10 or more samples in at least two groups the hold-out is never empty; the training side never is.
    `fraction` is in [0, 1); 0 holds nothing out. chosen: a number in [0, 1) for each id in place of its hash.
    """
    if not 0 <= fraction < 1:
        raise SfumatoError(f"the hold-out fraction must be at least 0 and less than 1, but it is {fraction}")
    if not len(ids):
        raise SfumatoError("there is nothing to split: the source has no samples")
    if chosen is None:
        units = np.fromiter(map(_hash_unit, ids), np.float64, len(ids))
    else:
        last = dict(zip(ids, chosen, strict=True))
        units = np.array([last[key] for key in ids])
    held = units < fraction
    if fraction > 0 and not held.any() and len(ids) >= 10 and units.min() < units.max():
        held = units == units.min()
    if held.all():
        held &= units != units.max()
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))
