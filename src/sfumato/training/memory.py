"""The largest memory of this process, and a limit to it that can be caught. What is free: `data.memory`."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sfumato.data.memory import available

_SHARE = 0.95  # of the free memory that a limited process may take: the machine needs some for itself
_STACK = 16 << 20  # bytes a thread, which are reserved and hardly used


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
    room, reserved = available(), _status("VmData")
    if reserved is None or not math.isfinite(room) or torch.cuda.is_available():
        yield
        return
    import resource

    now, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = reserved + int(_SHARE * room) + _STACK * (os.cpu_count() or 1)
    others = [each for each in (now, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([most, *others]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (now, hard))


def yielding() -> None:
    """Where memory runs out all the same, this process is the one that the system ends."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    except OSError:
        pass


def _status(name: str) -> int | None:
    """Bytes that Linux says of this process under a name."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith(f"{name}:")), None)
    return None if line is None else int(line.split()[1]) * 1024
