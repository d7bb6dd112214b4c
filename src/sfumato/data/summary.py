"""What a person should know of a data set before training on it, as plain values."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import torch

from . import cache
from .column import Column
from .normaliser import CHUNK_ENTRIES
from .rows import Samples
from .source import Size, Source, class_counts, open
from .spec import figures_of, fitted


def inspect(
    obj: Any, labels: Any = None, size: Size | None = None, conditions: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Counts, shape, dtype, range, per-channel figures, classes, conditions, duplicates and notes of a source (or what
    opens one); JSON-able.
    """
    source = open(obj, labels=labels, size=size, conditions=conditions)
    figures = figures_of(source)
    train, holdout = source.split()
    return {
        "name": source.name,
        "kind": source.kind,
        "samples": len(source),
        "shape": list(source.shape),
        "dtype": str(source.x.dtype).removeprefix("torch."),
        "range": [min(figures.low), max(figures.high)],
        "mean": list(figures.mean),
        "std": list(figures.std),
        "constant_channels": [c for c, (a, b) in enumerate(zip(figures.low, figures.high, strict=True)) if a == b],
        "classes": class_counts(source),
        "conditions": {name: _condition(name, found) for name, found in source.conditions.items()},
        "train": len(train),
        "holdout": len(holdout),
        "duplicates": _duplicates(source),
        "skipped": [{"path": path, "reason": reason} for path, reason in source.skipped],
        "notes": list(source.notes),
    }


def _condition(name: str, found: Column) -> dict[str, Any]:
    """The kind of a condition, its values in words, and how many are missing; of a label also the samples a class."""
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
    return cache.remembered(key, lambda: duplicates(source.x), int, int)


def duplicates(x: Samples) -> int:
    """How many rows of x (N, ...) are bit-for-bit copies of an earlier row."""
    seen: set[bytes] = set()
    step = max(1, CHUNK_ENTRIES // max(1, x[0].numel()))
    for at in range(0, len(x), step):
        block = x[at : at + step]
        rows = block.reshape(len(block), -1).contiguous().view(torch.uint8).numpy()
        seen.update(blake2b(row, digest_size=16).digest() for row in rows)
    return len(x) - len(seen)
