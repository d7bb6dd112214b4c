"""What this machine has and what others leave of it: cores, threads that follow the load, memory that is kept.

Two threads on two cores wait for each other after each operation. Once another process keeps one core busy, the thread
that shares it is late every time, and both together are slower than one alone: waiting in another way does not help,
fewer threads do.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_STAT = Path("/proc/stat")
_CGROUP = Path("/sys/fs/cgroup/cpu.max")
_LOOK_SECONDS = 0.5  # between two looks at the load, which the system counts in hundredths of a second
_AGREED = 2  # looks in a row that have to say so before there are more threads again; fewer there are at once


def cores() -> int:
    """Cores that this process may use: those it is bound to, no more than its control group is given."""
    bound = len(_bound())
    try:
        quota, period = _CGROUP.read_text().split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such group, or "max"
        return bound


def _bound() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def busy(lines: list[str], bound: set[int]) -> int:
    """Ticks that the bound cores have worked, for anybody, from the lines of /proc/stat."""
    total = 0
    for line in lines:
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in bound:
            ticks = [int(number) for number in numbers[:8]]  # user nice system idle iowait irq softirq steal
            total += sum(ticks) - ticks[3] - ticks[4]
    return total


class Load:
    """How many cores other processes have kept busy since the last look."""

    def __init__(self) -> None:
        self._bound = _bound()
        self._last = self._now()

    def _now(self) -> tuple[float, float, float] | None:
        try:
            ticks = busy(_STAT.read_text().splitlines(), self._bound)
        except (OSError, ValueError, IndexError):
            return None
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()

    @property
    def since(self) -> float:
        """When it looked last."""
        return 0.0 if self._last is None else self._last[0]

    def others(self) -> float:
        """0 where the system does not tell."""
        now, last = self._now(), self._last
        self._last = now
        if now is None or last is None or now[0] <= last[0]:
            return 0.0
        elapsed, worked, own = (b - a for a, b in zip(last, now, strict=True))
        return max(0.0, (worked - own) / elapsed)


@cache
def _load() -> Load:
    """The one of this process, so that work in short pieces knows what the piece before it saw."""
    return Load()


def left(most: int, others: float, count: int) -> int:
    """Threads for a process on `count` cores of which others use `others`: as many as find a core of their own."""
    return max(1, min(most, math.floor(count - others + 0.5)))


class Threads:
    """Follows the load of the machine with torch's number of threads: `follow()` between two pieces of work.

    It never goes above the number at its start. Where OMP_NUM_THREADS is set, or `fixed`, somebody has decided.
    """

    def __init__(self, fixed: bool = False) -> None:
        self.most = min(torch.get_num_threads(), cores())
        self.fixed = fixed or self.most == 1 or "OMP_NUM_THREADS" in os.environ
        self._load = _load()
        self._next = self._load.since + _LOOK_SECONDS  # at once, where the last work ended a while ago
        self._wanted, self._agreed, self._cores = self.most, 0, cores()

    def follow(self) -> None:
        """Look, if it is time to, and take as many threads as there is room for."""
        if self.fixed or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_SECONDS
        wanted = left(self.most, self._load.others(), self._cores)
        self._agreed = self._agreed + 1 if wanted == self._wanted else 1
        self._wanted = wanted
        now = torch.get_num_threads()
        if wanted < now or (wanted > now and self._agreed >= _AGREED):
            torch.set_num_threads(wanted)


@contextmanager
def threads(number: int | None = None, fixed: bool = False) -> Iterator[Threads]:
    """Within the block torch has `number` threads, or as many as others leave; after it, what it had before."""
    before = torch.get_num_threads()
    if number is not None and number != before:
        torch.set_num_threads(number)
    try:
        yield Threads(fixed or number is not None)
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


# mallopt's parameters (malloc.h) and the largest block that it can be told to keep
_TRIM, _PAD, _MMAP = -1, -2, -3
_LARGEST = 32 << 20
_DEFAULTS = ((_TRIM, 128 << 10), (_PAD, 128 << 10), (_MMAP, 128 << 10))
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
        for parameter, value in _KEEPING if _depth else _DEFAULTS:
            libc.mallopt(parameter, value)
        if not _depth:
            libc.malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of a machine without the memory asked for."""
    # on a CPU torch's allocator and the libraries beneath raise a bare RuntimeError
    words = ("DefaultCPUAllocator", "std::bad_alloc", "could not create a primitive")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def in_parts(work: Callable[[Tensor], T], rows: Tensor, most: int, halve: bool = True) -> list[T]:
    """work(part) for parts of at most `most` rows; where memory does not suffice, parts are halved from there on."""
    found: list[T] = []
    while len(rows):
        part = rows[:most]
        try:
            found.append(work(part))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(part) == 1 or not halve:
                raise
            most = -(-len(part) // 2)
        else:
            rows = rows[len(part) :]
            continue
        released()  # only now does nothing hold what failed
    return found


def released() -> None:
    """Give back what is kept of freed memory, so that it can be taken otherwise."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)
