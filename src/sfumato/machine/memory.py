"""How much memory this process may still take, what it has taken, and a limit to it that can be caught."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SHARE = 0.25  # of what is free that one data set may take; what is larger stays on the disk
_SHARE = 0.95  # of it that a limited process may take: the machine needs some for itself
_STACK = 16 << 20  # bytes a thread, which are reserved and hardly used
_LEAST = 64 << 20  # bytes that small things may take once memory has not sufficed
_outer: list[tuple[int, int]] = []  # the limits that blocks of `limited` found
_CGROUP = Path("/sys/fs/cgroup")


def available() -> float:
    """Bytes; infinity where nothing is known."""
    return min(_machine(), _group(), _own())


def fits(nbytes: float) -> bool:
    """Whether a data set of so many bytes is to be held in memory."""
    return nbytes <= SHARE * available()


def held(largest: bool = True) -> int | None:
    """Bytes of memory that this process has held at most (its resident set), or holds; None on a system without them.

    Not `getrusage` where there is another way: its figure may be that of the process which started this one.
    """
    found = _status("VmHWM" if largest else "VmRSS")
    if found is not None or not largest:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def limited() -> Iterator[None]:
    """Within the block an allocation beyond what is free now fails, and can be answered by taking smaller parts.

    Linux promises more memory than there is, and ends a process once it is used. Nothing happens on other systems, nor
    where there is a GPU, whose driver reserves far more than it takes.
    """
    room = available()
    if _status("VmData") is None or not math.isfinite(room) or torch.cuda.is_available():
        yield
        return
    import resource

    _outer.append(resource.getrlimit(resource.RLIMIT_DATA))
    try:
        _limit(int(_SHARE * room) + _STACK * (os.cpu_count() or 1))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, _outer.pop())


def renew(reusable: int) -> None:
    """Within `limited`, once freed memory was given back: the limit is again what is free now.

    reusable: bytes that were freed and given back, and yet stay reserved, since something beyond them is in use. The
    limit counts them as taken, so that what takes memory otherwise (kernels made for a new shape) would find none.
    """
    if _outer:
        _limit(max(int(_SHARE * available()) - reusable, _LEAST))


def _limit(more: int) -> None:
    """Let this process reserve so many bytes more than it has."""
    import resource

    reserved = _status("VmData") or 0
    others = [each for each in _outer[0] if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([reserved + more, *others]), _outer[0][1]))


def yielding() -> None:
    """Where memory runs out all the same, this process is the one that the system ends."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    except OSError:
        pass


def _machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return float("inf")


def _group() -> float:
    """What a container leaves (control groups, version 2), files that are only cached not counted."""
    try:
        largest = (_CGROUP / "memory.max").read_text().strip()
        if largest == "max":
            return float("inf")
        used = int((_CGROUP / "memory.current").read_text())
        facts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return float(int(largest) - used + int(facts.get("file", 0)))
    except (OSError, ValueError):
        return float("inf")


def _own() -> float:
    """What `ulimit -v` and `ulimit -d` leave."""
    try:
        import resource
    except ImportError:  # Windows
        return float("inf")
    left = float("inf")
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        largest, taken = resource.getrlimit(limit)[0], _status(name)
        if largest != resource.RLIM_INFINITY and taken is not None:
            left = min(left, max(0.0, float(largest) - taken))
    return left


def _status(name: str) -> int | None:
    """Bytes that Linux says of this process under a name."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if line is None else int(line.split()[1]) * 1024
