"""How much memory this process may still take, by the machine, its control group and its own limits."""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.25  # of it that one data set may take; what is larger stays on the disk
_CGROUP = Path("/sys/fs/cgroup")


def available() -> float:
    """Bytes; infinity where nothing is known."""
    return min(_machine(), _group(), _own())


def fits(nbytes: float) -> bool:
    """Whether a data set of so many bytes is to be held in memory."""
    return nbytes <= SHARE * available()


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

        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except (ImportError, OSError, ValueError):
        return float("inf")
    left = float("inf")
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        largest = resource.getrlimit(limit)[0]
        if largest != resource.RLIM_INFINITY and name in status:
            left = min(left, max(0.0, float(largest) - 1024.0 * int(status[name].split()[0])))
    return left
