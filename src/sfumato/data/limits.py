"""How much memory one file of the data may take once it is unpacked: a few kilobytes can claim gigabytes.

    most = max(--max-gb, RATIO times the bytes of the file itself)

Whatever a file claims is checked by arithmetic before anything is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError
from ..machine import available

DEFAULT_GB = 1.0  # GiB: a picture of 119 million pixels
RATIO = 32  # by which data are packed at most; beyond are zeros
_most: ContextVar[float] = ContextVar("sfumato.max_gb", default=DEFAULT_GB * 2**30)


@contextmanager
def at_most(gb: float) -> Iterator[None]:
    """Set the limit for files that are opened within the block, in GiB."""
    if isinstance(gb, bool) or not isinstance(gb, int | float) or not gb > 0:
        raise SfumatoError(f"max_gb must be a number of GiB above 0, not {gb!r:.80}.")
    token = _most.set(gb * 2**30)
    try:
        yield
    finally:
        _most.reset(token)


def most() -> float:
    """The limit of files that are opened here, in bytes."""
    return _most.get()


def require(nbytes: int, allowed: float, what: str) -> None:
    """Raise SfumatoError if `what` would take more than the allowed number of bytes."""
    if nbytes > allowed:
        raise SfumatoError(
            f"{what} would take {nbytes / 2**30:.3g} GiB of memory, more than the {allowed / 2**30:.3g} GiB allowed "
            "for one file: if you trust it, allow more with --max-gb (max_gb in Python)"
        )


def require_real(array: Any, what: str) -> None:
    """Raise SfumatoError for an array or tensor that repeats its memory (expand, broadcast_to) beyond what is free."""
    if isinstance(array, Tensor) and array.layout == torch.strided:
        strides = [step * array.itemsize for step in array.stride()]
    elif isinstance(array, np.ndarray):
        strides = list(array.strides)
    else:
        return
    held = sum((n - 1) * abs(step) for n, step in zip(array.shape, strides, strict=True)) + array.itemsize
    if array.nbytes > max(held, available()):
        raise SfumatoError(
            f"{what} has {array.nbytes / 2**30:,.0f} GiB of values in {held / 2**30:,.3g} GiB of memory, as expanded "
            "arrays have: give each sample once"
        )


def require_file(path: Path, nbytes: int) -> None:
    """Raise SfumatoError if what is in a file would take more than it may once it is unpacked."""
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
    require(nbytes, max(most(), RATIO * size), f"{path}, unpacked,")
