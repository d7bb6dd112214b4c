"""A summary of a data set, to read before training on it."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch

from .. import cache
from ..machine import default_cpu
from . import limits, normalising
from .column import Column
from .formats import Size
from .lengths import Lengths
from .opening import open
from .rows import Samples
from .source import LABEL, Source
from .spec import figures_of, fitted, normaliser_for
from .statistics import blocks


@default_cpu()
def inspect(
    obj: Any,
    labels: Any = None,
    size: Size | None = None,
    conditions: Mapping[str, str] | None = None,
    split: str | None = None,
    key: str | None = None,
    max_gb: float = limits.DEFAULT_GB,
    length: int | None = None,
    tokens: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Counts, shape, lengths, dtype, range, statistics and share of missing values by channel, classes, conditions,
    duplicates, the tokens of text, the columns of a table and notes of a source (or of whatever `open` takes, with its
    arguments), as plain JSON values.
    """
    source = open(
        obj, labels=labels, size=size, conditions=conditions, split=split, key=key, max_gb=max_gb, length=length,
        tokens=tokens, columns=columns,
    )  # fmt: skip
    figures = figures_of(source)
    law = Lengths.fit(source.x, source.layout) if source.layout else None
    train, holdout = source.split()
    described = {name: _condition(name, found) for name, found in source.conditions.items()}
    return {
        "name": source.name,
        "kind": source.kind,
        "samples": len(source),
        "shape": list(source.shape),
        "dtype": source.dtype,
        "range": [min(figures.low), max(figures.high)],
        "mean": list(figures.mean),
        "std": list(figures.std),
        "missing": list(source.missing),
        "lengths": None
        if law is None
        else {"least": law.steps[0], "most": law.steps[-1], "words": law.describe(source.shape[0])},
        "constant_channels": [c for c, (a, b) in enumerate(zip(figures.low, figures.high, strict=True)) if a == b],
        "classes": described.get(LABEL, {}).get("classes", {}),
        "conditions": described,
        "train": len(train),
        "holdout": len(holdout),
        "text": None if source.text is None else _text(source),
        "table": None if source.table is None else {f.name: f.describe() for f in source.table.fields},
        "duplicates": _duplicates(source),
        "skipped": [{"path": path, "reason": reason} for path, reason in source.skipped],
        "notes": [*source.notes, *normalising.reason(normaliser_for(source, train))],
    }


def _text(source: Source) -> dict[str, Any]:
    """The tokens of a text and its beginning."""
    assert source.text is not None
    return {"tokens": source.text.describe(), "beginning": source.text.decode(source.x[0].flatten().tolist())}


def _condition(name: str, found: Column) -> dict[str, Any]:
    """A condition's kind, its values in words, the number missing; for a label also the samples per class."""
    facts = {
        "kind": found.kind,
        "missing": found.missing,
        "words": fitted(name, found, torch.arange(len(found))).describe(),
    }
    if found.names is None:
        return facts
    counts = torch.from_numpy(found.given).bincount(minlength=len(found.names)).tolist()
    return facts | {"classes": dict(zip(found.names, counts, strict=True))}


def _duplicates(source: Source) -> int:
    key = None if source.identity is None else cache.identity(["duplicates", source.identity])
    return int(cache.remembered(key, lambda: duplicates(source.x)))


def duplicates(x: Samples) -> int:
    """The number of rows of x (N, ...) that are bit-for-bit copies of an earlier one; rows without a value are none."""
    seen: set[bytes] = set()
    count = 0
    for block in blocks(x):
        rows = block.reshape(len(block), -1)
        rows = (rows[~rows.isnan().all(1)] if rows.is_floating_point() else rows).contiguous()
        seen.update(blake2b(row, digest_size=16).digest() for row in rows.view(torch.uint8).numpy())
        count += len(rows)
    return count - len(seen)
