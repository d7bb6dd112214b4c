"""Freed memory that stays with the process while it works, and is given back afterwards."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from sfumato.machine.memory import renew

# mallopt's parameters (malloc.h) and the largest block that it can be told to keep
_TRIM, _PAD, _MMAP = -1, -2, -3
_LARGEST = 32 << 20
# glibc raises its thresholds by itself as blocks are freed, and no longer once one was set: afterwards, where that ends
_AFTER = ((_TRIM, 2 * _LARGEST), (_PAD, 128 << 10), (_MMAP, _LARGEST))
_KEEPING = ((_TRIM, (1 << 31) - 1), (_PAD, 8 << 20), (_MMAP, _LARGEST))
_depth, _guard = 0, threading.Lock()


@cache
def _libc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    found = ctypes.CDLL(None)
    return found if hasattr(found, "mallopt") and hasattr(found, "malloc_trim") else None


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Within the block freed memory stays with the process, and is given back at its end; a CPU with glibc alone.

    By default each large tensor is mapped anew and unmapped when it is freed: 75,000 page faults a step of a U-Net, 6 %
    of its time. May be nested, and used from several threads: it ends when the last block does.
    """
    libc = _libc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    _count(libc, 1)
    try:
        yield
    finally:
        _count(libc, -1)


def _count(libc: ctypes.CDLL, change: int) -> None:
    global _depth
    with _guard:
        before, _depth = _depth, _depth + change
        if min(before, _depth) > 0:
            return
        for parameter, value in _KEEPING if _depth else _AFTER:
            libc.mallopt(parameter, value)
        if not _depth:
            libc.malloc_trim(0)


def released() -> None:
    """Give back what is kept of freed memory, so that it can be taken otherwise."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)
        if hasattr(libc, "mallinfo2"):  # glibc 2.33
            libc.mallinfo2.restype = _Facts
            renew(libc.mallinfo2().fordblks)


class _Facts(ctypes.Structure):
    """What mallinfo2 says, in bytes (malloc.h); fordblks is what is free in all heaps."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]  # noqa: RUF012 (ctypes asks for it)
