"""The cores of this machine, what others leave of them, and threads that follow it.

Two threads on two cores wait for each other after each operation. Once another process keeps one core busy, the thread
that shares it is late every time, and both together are slower than one alone: waiting in another way does not help,
fewer threads do.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

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

    It never goes above the number at its start. Where OMP_NUM_THREADS is set, or `fixed`, the number stays.
    """

    def __init__(self, fixed: bool = False) -> None:
        self._cores = cores()
        self.most = min(torch.get_num_threads(), self._cores)
        self.fixed = fixed or self.most == 1 or "OMP_NUM_THREADS" in os.environ
        self._load = _load()
        self._next = self._load.since + _LOOK_SECONDS  # at once, where the last work ended a while ago
        self._wanted, self._agreed = self.most, 0

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
    """Within the block torch has `number` threads, or as many as others leave; after it, what it had before.

    torch starts with a thread for each core of the machine, in a container too that is given fewer.
    """
    before = torch.get_num_threads()
    if number is not None:
        first = number
    else:
        first = before if "OMP_NUM_THREADS" in os.environ else min(before, cores())
    if first != before:
        torch.set_num_threads(first)
    try:
        yield Threads(fixed or number is not None)
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
