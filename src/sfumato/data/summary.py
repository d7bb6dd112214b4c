"""What a person should know of a data set before training on it, as plain values."""

from hashlib import blake2b
from typing import Any

import torch

from . import cache
from .normaliser import CHUNK_ENTRIES
from .rows import Samples
from .source import Size, Source, class_counts, open
from .spec import figures_of


def inspect(obj: Any, labels: Any = None, size: Size | None = None) -> dict[str, Any]:
    """Counts, shape, dtype, range, per-channel figures, classes, duplicates and notes of a source (or what opens
    one); JSON-able.
    """
    source = obj if isinstance(obj, Source) else open(obj, labels=labels, size=size)
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
        "train": len(train),
        "holdout": len(holdout),
        "duplicates": _duplicates(source),
        "skipped": [{"path": path, "reason": reason} for path, reason in source.skipped],
        "notes": list(source.notes),
    }


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
