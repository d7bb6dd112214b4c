"""The machine's devices and memory: how much is free, how much was used, and work in smaller parts when it runs out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil
import torch
from torch import Tensor

from sfumato.errors import SfumatoError

T = TypeVar("T")
P = ParamSpec("P")
CGROUP = Path("/sys/fs/cgroup")  # a container's limits (control groups, version 2), which psutil ignores
after_release: list[Callable[[], None]] = []  # called by `release_memory`; memory limiters add to it
SHARE = 0.25  # of the free memory that one data set may take; larger ones stay on disk


def device_of(name: str | torch.device) -> torch.device:
    """The torch device of a name; auto is a CUDA device if there is one, else the CPU.

    Raises SfumatoError for a device that this machine has not got, and for meta, which computes nothing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        known = device.type != "meta"
    except RuntimeError:
        known = False
    if not known:
        raise SfumatoError(f"There is no device {str(name)!r}: give auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SfumatoError(f"There is no device {str(name)!r}: torch sees no GPU here. Give cpu or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SfumatoError(f"There is no device {str(name)!r}: torch sees {torch.cuda.device_count()} GPUs here.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, NotImplementedError, ImportError):
        raise SfumatoError(f"There is no device {str(name)!r}: torch cannot use one here. Give cpu or auto.") from None
    return device


def available() -> float:
    """Bytes of memory that this process may still use, given the machine, its container and `ulimit`."""
    return min(float(psutil.virtual_memory().available), _container(), _ulimit())


def _container() -> float:
    """Bytes left by the container's limit; cached files do not count as used."""
    try:
        most, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        facts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return float(most - used + int(facts.get("file", 0)))
    except (OSError, ValueError):  # no such group, or "max"
        return math.inf


def _ulimit() -> float:
    """Bytes left by `ulimit -v` and `ulimit -d`."""
    process = psutil.Process()
    if not hasattr(process, "rlimit"):  # Linux and FreeBSD have it
        return math.inf
    used, left = process.memory_info(), math.inf
    for limit, taken in ((psutil.RLIMIT_AS, used.vms), (psutil.RLIMIT_DATA, used.data)):
        most = process.rlimit(limit)[0]
        if most != psutil.RLIM_INFINITY:
            left = min(left, max(0.0, float(most - taken)))
    return left


def fits(nbytes: float) -> bool:
    """Whether a data set of `nbytes` is kept in memory."""
    return nbytes <= SHARE * available()


def affordable(nbytes: float, what: str, instead: str) -> None:
    """Raise SfumatoError unless so many bytes fit into the free memory. what: what takes them, in the plural."""
    free = available()
    if nbytes > free:
        raise SfumatoError(
            f"{what} take {nbytes / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free: {instead}"
        )


def peak_memory() -> int:
    """The largest resident set of this process so far, in bytes."""
    now = psutil.Process().memory_info()
    if hasattr(now, "peak_wset"):  # Windows
        return int(now.peak_wset)
    try:  # Linux, where getrusage may give the peak of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except OSError:  # macOS
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def release_memory() -> None:
    """Return memory that torch and the allocator hold in reserve to the system."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if hasattr(psutil, "heap_trim"):
        psutil.heap_trim()
    for call in after_release:
        call()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    # on a CPU torch's allocator and lower libraries raise a bare RuntimeError
    words = ("DefaultCPUAllocator", "std::bad_alloc", "could not create a primitive")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


@contextmanager
def default_cpu() -> Iterator[None]:
    """Tensors whose device nobody names are made on the CPU, whatever `torch.set_default_device` says."""
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        yield


def outside_inference(function: Callable[P, T]) -> Callable[P, T]:
    """A function that serves within torch.inference_mode() too, though it makes gradients or what they are taken of.

    The mode is off while it runs, and tensors among its arguments that were made in the mode are copied.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            given: tuple[Any, ...] = tuple(map(_usable, args))
            return function(*given, **{name: _usable(value) for name, value in kwargs.items()})

    return run


def _usable(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def in_parts(work: Callable[[Tensor], T], rows: Tensor, most: int, halve: bool = True) -> list[T]:
    """work(part) for parts of at most `most` rows; when memory runs out, all further parts are halved."""
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
        release_memory()  # only here is nothing of the failed part referenced any more
    return found
