"""Work in parts that are halved where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sfumato.machine.kept import released

T = TypeVar("T")


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
