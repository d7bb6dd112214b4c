"""Two data sets as one of pairs: samples with a source each, the condition "input"."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError, suggest
from .column import Column
from .opening import open as opened
from .source import Positions, Source

INPUT = "input"  # the condition that holds the sources
WAYS = ("name", "row")


def paired(data: Source, sources: Source, by: str | None = None) -> Source:
    """`data` with the samples of `sources`, of the same shape, as their condition "input".

    by: "name", those whose names agree but for their endings; "row", the first with the first and so on; None where
    they belong to nothing: the shorter set is repeated, and the coupling is a matter of the loss (`coupled`). Samples
    without a partner are left out, with a note. Raises SfumatoError for other shapes, and if there are no pairs.
    """
    if data.shape != sources.shape:
        raise SfumatoError(
            f"The samples of {sources.name} have the shape {sources.shape} and those of {data.name} {data.shape}: a "
            "pair needs the same."
        )
    ours, theirs, note = _matched(data, sources, by)
    x, start = _rows(data, ours), sources.x[theirs].numpy()
    kind = "field" if start.ndim > 2 else "vector"
    column = Column(start, np.ones(len(start), bool), kind=kind)
    return dataclasses.replace(x, conditions={**x.conditions, INPUT: column}, notes=[*x.notes, note])


def with_sources(data: Source, sources: Any, by: str | None, max_gb: float) -> Source:
    """`paired` with whatever `open` takes, of which pictures are resized to those of the data."""
    size = (data.shape[1], data.shape[2]) if data.kind == "image" else None
    return paired(data, opened(sources, size=size, max_gb=max_gb), by)


def _matched(data: Source, sources: Source, by: str | None) -> tuple[Tensor, Tensor, str]:
    """(rows of the data, rows of their sources, a note)."""
    n, m = len(data), len(sources)
    if by is None:
        every = torch.arange(max(n, m))
        return (
            every % n,
            every % m,
            f"{m:,} sources of {sources.name}, which belong to no sample: the loss couples them.",
        )
    if by not in WAYS:
        raise SfumatoError(f"Samples and sources are paired by name or row, not {by!r}: {suggest(str(by), WAYS)}")
    if by == "row":
        if n != m:
            raise SfumatoError(
                f"{data.name} has {n:,} samples and {sources.name} {m:,}: by row, each needs its source; pair them by "
                "name."
            )
        return torch.arange(n), torch.arange(m), f"Each sample has the source of its row in {sources.name}."
    for each in (data, sources):
        if isinstance(each.ids, Positions):
            raise SfumatoError(f"The samples of {each.name} are no files and have no names: pair them by row.")
    known = {_stem(name): row for row, name in enumerate(sources.ids)}
    pairs = [(row, known[_stem(name)]) for row, name in enumerate(data.ids) if _stem(name) in known]
    if not pairs:
        raise SfumatoError(
            f"No file of {sources.name} has the name of one of {data.name}, such as {_stem(data.ids[0])!r}: name both "
            "alike but for their endings."
        )
    ours, theirs = torch.tensor(pairs).T
    return ours, theirs, f"{len(pairs):,} pairs by name; without a partner: {n - len(pairs):,} and {m - len(pairs):,}."


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))


def _rows(source: Source, rows: Tensor) -> Source:
    """These rows of a source, int64 (n,), which may repeat."""
    if torch.equal(rows, torch.arange(len(source))):
        return source
    picked = rows.tolist()
    return dataclasses.replace(
        source, x=source.x[rows], conditions={name: each.take(rows) for name, each in source.conditions.items()},
        ids=[source.ids[i] for i in picked], groups=[source.groups[i] for i in picked],
        units=[source.units[i] for i in picked] if source.units else [], identity=None,
    )  # fmt: skip
