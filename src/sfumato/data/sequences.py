"""Sequences of several lengths from a list of arrays, the members of a .npz file, a folder of .npy files, or lines of
JSON -> a Source whose samples are padded with NaN (`lengths`)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError, counted
from ..machine import fits
from . import arrays
from .lengths import Lengths, fits_layout, layout_of, stacked
from .names import LABEL_NAMES, SAMPLE_NAMES, array_name

LEAST = 3  # arrays of a file that are sequences by their shapes alone
_NUMBERED = re.compile(r"(arr_)?\d+")  # names of arrays
_WIDE = (torch.int32, torch.int64)  # whole numbers that float32 does not hold


class Joined(NamedTuple):
    """Sequences as one tensor x (N, C, longest), padded with NaN; their layout; notes; of whole numbers their dtype, by
    name, else ""."""

    x: Tensor
    layout: str
    notes: list[str]
    whole: str


def found(data: Any, layout: str = "") -> list[Tensor]:
    """The sequences of several lengths in a list of arrays or an array of objects; [] for any other data.

    layout: of data that are known to be sequences, which may then all be as long.
    """
    if isinstance(data, np.ndarray) and data.dtype == object and data.ndim == 1:
        data = list(data)
    if not isinstance(data, list | tuple) or any(isinstance(each, str | bytes | Mapping) for each in data):
        return []
    try:
        parts = [arrays.to_tensor(each, "a sequence") for each in data]
    except SfumatoError:  # the list is refused as it is
        return []
    shapes = [part.shape for part in parts]
    return parts if parts and (layout_of(shapes) or fits_layout(shapes, layout)) else []


def joined(parts: Sequence[Tensor], where: str, layout: str = "") -> Joined:
    """Sequences as one tensor. layout: of the parts, by default by their shapes."""
    shapes = [part.shape for part in parts]
    layout = layout if fits_layout(shapes, layout) else layout_of(shapes)
    empty = next((i for i, part in enumerate(parts) if not part.numel()), None)
    if empty is not None:
        raise SfumatoError(f"{where} has a sequence without a step, number {empty}: leave it out")
    dtypes = {part.dtype for part in parts}
    dtype = reduce(torch.promote_types, [_float_of(each) for each in dtypes])
    steps = layout.index("L")
    longest, each = max(part.shape[steps] for part in parts), math.prod(parts[0].shape) // parts[0].shape[steps]
    if not fits(len(parts) * longest * each * dtype.itemsize):
        raise SfumatoError(
            f"{where} does not fit into memory once all have the length of the longest, {counted(longest, 'step')}: "
            "cut the longest ones"
        )
    x = stacked([part.to(dtype) for part in parts], layout)
    if bool((empty_rows := x.isnan().flatten(1).all(1)).any()):
        raise SfumatoError(
            f"{where} has a sequence without a value, number {int(empty_rows.nonzero()[0])}: leave it out"
        )
    whole = None if any(part.is_floating_point() for part in parts) else reduce(torch.promote_types, dtypes)
    name = str(whole or dtype).removeprefix("torch.")
    return Joined(x, layout, [headline(x, layout, name)], name if whole else "")


def _float_of(dtype: torch.dtype) -> torch.dtype:
    """The type of floats that holds numbers of this type."""
    return torch.float64 if dtype in _WIDE else dtype if dtype.is_floating_point else torch.float32


def headline(x: Tensor, layout: str, dtype: str) -> str:
    """The first note on sequences: how many, their lengths, channels and type."""
    return f"{len(x):,} {Lengths.fit(x, layout).describe(x.shape[1])}, {dtype}."


def members(named: Mapping[str, Any], layout: str = "") -> tuple[list[str], list[str]]:
    """(the keys of arrays that are sequences of several lengths, one each; of those with an entry for each): all that
    have numbers for names, or else all arrays of numbers. Without keys where names or shapes say something else.

    layout: of a file that `sfumato sample` wrote, which may hold few sequences, or all of one length."""
    numbers = [key for key, value in named.items() if value.dtype.kind in "biuf"]
    keys = [key for key in numbers if _NUMBERED.fullmatch(key)] or numbers
    other, shapes = {*SAMPLE_NAMES, *LABEL_NAMES}, [named[key].shape for key in keys]
    if not (keys and fits_layout(shapes, layout)):
        if len(keys) < LEAST or any(split or name.lower() in other for split, name in map(array_name, keys)):
            return [], []
        if not layout_of(shapes):
            _require_one_layout(keys, shapes)
            return [], []
    return keys, [key for key in named if key not in keys and named[key].shape[:1] == (len(keys),)]


def numbered(named: Mapping[str, Any]) -> list[str]:
    """The keys of arrays of numbers that have numbers for names, "walks/07", and are sequences of several lengths."""
    keys = [key for key in named if _NUMBERED.fullmatch(key.rpartition("/")[2])]
    numbers = all(getattr(named[key].dtype, "kind", "f") in "biuf" for key in keys)  # torch's are no others
    return keys if len(keys) >= LEAST and numbers and layout_of([named[key].shape for key in keys]) else []


def _require_one_layout(keys: Sequence[str], shapes: Sequence[Sequence[int]]) -> None:
    """Raise SfumatoError for numbered arrays (L, C) of several lengths and several channels, which say nothing else."""
    numbered = all(_NUMBERED.fullmatch(key) and len(shape) == 2 for key, shape in zip(keys, shapes, strict=True))
    if numbered and all(len({shape[axis] for shape in shapes}) > 1 for axis in (0, 1)):
        other = next(i for i, shape in enumerate(shapes) if tuple(shape) != tuple(shapes[0]))
        raise SfumatoError(
            f"numbered arrays such as {keys[0]} {tuple(shapes[0])} and {keys[other]} {tuple(shapes[other])} differ in "
            "steps and channels: sequences have the same channels; --key names one array of samples (in Python key=...)"
        )


def of_lines(path: Path, key: str | None) -> tuple[dict[str, list[Any]], str] | None:
    """(the columns of lines of JSON, the one of lists of numbers) where one is learned; None for lines of text.

    key: that of the samples, if it is said.
    """
    with path.open(encoding="utf-8") as file:
        first = _object(file.readline())
    lists = [name for name, value in first.items() if isinstance(value, list) and key in (None, name)]
    if isinstance(first.get(key or "text"), str) or len(lists) != 1:
        return None
    rows = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if line.strip():
            rows.append(_object(line))
            if not isinstance(rows[-1].get(lists[0]), list):
                raise SfumatoError(f"{path}, line {number:,} has no list under {lists[0]!r}: each line must have one")
    return {name: [row.get(name) for row in rows] for name in first}, lists[0]


def _object(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
