"""Threads, memory and signals of the command line's process; the library does not touch those of its caller."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch

from sfumato import machine
from sfumato.errors import SfumatoError
from sfumato.streams import lasting
from sfumato.training.control import say

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_PRESSES = 3  # the Ctrl-C that no longer waits for the step: shells and launchers often send two at once
_LOOK_SECONDS = 0.5  # between two measurements of the load
_SHARE = 0.95  # of the free memory that training may take
_LEAST = 512 << 20  # extra bytes for kernels of a new shape, after memory has run out
_STACK = 16 << 20  # bytes per thread, reserved but hardly used
# mallopt's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD (malloc.h), and their largest value
_KEEPING = ((-1, (1 << 31) - 1), (-2, 8 << 20), (-3, 32 << 20))


@contextmanager
def at_work() -> Iterator[None]:
    """Limit torch's threads to the available cores within the block; from here on the process keeps freed memory.

    By default torch uses a thread for each core of the machine, even in a container with fewer cores.
    """
    keep_freed_memory()
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(before, cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Stop glibc from mapping each large tensor anew: 75,000 page faults per step of a U-Net, 6 % of its time."""
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in _KEEPING:
            libc.mallopt(parameter, value)


def cores() -> int:
    """The number of cores that this process may use, given its affinity and its container's limit."""
    bound = len(_bound())
    try:
        quota, period = (machine.CGROUP / "cpu.max").read_text().split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such group, or "max"
        return bound


def _bound() -> list[int]:
    process = psutil.Process()
    return process.cpu_affinity() if hasattr(process, "cpu_affinity") else list(range(psutil.cpu_count()))


class Follower:
    """Sets torch's threads to the number of cores that other processes leave free; called between pieces of work.

    Threads wait for each other after each operation: on two cores, of which another process keeps one busy, two threads
    are slower than one. The number never exceeds that at the start, and never changes if OMP_NUM_THREADS is set.
    """

    def __init__(self) -> None:
        self.most = 1 if "OMP_NUM_THREADS" in os.environ else torch.get_num_threads()
        self._own, self._wanted, self._next = psutil.Process(), self.most, time.monotonic() + _LOOK_SECONDS
        self.others()  # psutil counts from here

    def others(self) -> float:
        """The number of cores that other processes kept busy since the last call."""
        each = psutil.cpu_percent(percpu=True)
        return max(0.0, (sum(each[core] for core in _bound()) - self._own.cpu_percent()) / 100)

    def __call__(self) -> None:
        if self.most == 1 or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_SECONDS
        now, before = torch.get_num_threads(), self._wanted
        self._wanted = left(self.most, self.others(), cores())
        if self._wanted < now or before == self._wanted > now:  # reduce at once, increase if two measurements agree
            torch.set_num_threads(self._wanted)


def left(most: int, others: float, count: int) -> int:
    """Threads for a process on `count` cores of which others use `others`: as many as have a core to themselves."""
    return max(1, min(most, math.floor(count - others + 0.5)))


@contextmanager
def limited() -> Iterator[None]:
    """Make allocations beyond the free memory fail within the block, on Linux without a GPU.

    Linux overcommits memory and kills a process once it is used, so without a limit no allocation would fail and
    training could not switch to smaller parts. Not with a GPU, whose driver reserves far more memory than it uses.
    """
    if not sys.platform.startswith("linux") or torch.cuda.is_available():
        yield
        return
    process = psutil.Process()
    before = process.rlimit(psutil.RLIMIT_DATA)
    room = int(_SHARE * machine.available()) + _STACK * psutil.cpu_count()
    most = process.memory_info().data + room

    def renew() -> None:
        process.rlimit(psutil.RLIMIT_DATA, (max(most, process.memory_info().data + _LEAST), before[1]))

    process.rlimit(psutil.RLIMIT_DATA, (most, before[1]))
    machine.after_release.append(renew)
    try:
        yield
    finally:
        machine.after_release.remove(renew)
        process.rlimit(psutil.RLIMIT_DATA, before)


@contextmanager
def outliving_output() -> Iterator[None]:
    """Within the block results that cannot be printed are dropped, as notes always are: a run outlives its reader."""
    with redirect_stdout(lasting(sys.stdout)):
        yield


@contextmanager
def signals() -> Iterator[Callable[[Path], None]]:
    """Within the block Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP send `stop` to the run in the registered folder.

    The run then saves after a complete step and ends; the third Ctrl-C interrupts at once. Batch systems send SIGTERM
    or SIGUSR1 before they end a job, a terminal that is closed SIGHUP (which `nohup` ignores).
    """
    before: dict[int, Any] = {}

    def listen(run: Path) -> None:
        presses = 0

        def answer(number: int, frame: FrameType | None) -> None:
            nonlocal presses
            presses += number == signal.SIGINT
            if number == signal.SIGINT and presses >= _PRESSES:
                raise KeyboardInterrupt
            with suppress(SfumatoError):  # only the first machine's process need see the folder
                say(run, "stop")

        for number in SIGNALS:
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, answer)

    try:
        yield listen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
