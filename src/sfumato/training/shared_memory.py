"""The mean gradient of processes on one machine, through memory that all of them see.

A socket copies what it carries twice, in the kernel, by the cores that compute; a piece that stays in the cache is
written once and read once.
"""

from __future__ import annotations

import mmap
import os
import secrets
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from sfumato.world import World

PIECE = 8 << 20  # bytes that each process shows at once
_TOKEN = 32  # bytes by which the memory is known to be the one meant


@final
class SharedMean:
    """Means over the processes of one machine. They have two pieces each: one is read while the next is written."""

    def __init__(self, memory: mmap.mmap, world: World) -> None:
        self.world, self._turn = world, 0
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8).view(2, world.size, PIECE)

    @classmethod
    def of(cls, world: World) -> SharedMean | None:
        """None, in all processes alike, where one of them does not see the memory of the first: on another machine, in
        another container, on a GPU, or where the system has no such memory."""
        if world.size == 1 or world.device.type != "cpu":
            return None
        size, file, token = 2 * world.size * PIECE, -1, secrets.token_bytes(_TOKEN)
        if world.leads:
            file = _made(size, token)
        # memory without a name: the others find it among the open files of the first
        place, token = world.lead((f"/proc/{os.getpid()}/fd/{file}", token))
        memory = _seen(place, size, token)
        missing = world.any(memory is None, world.device)
        if file >= 0:
            os.close(file)
        return None if missing or memory is None else cls(memory, world)

    def mean(self, own: Tensor) -> Tensor:
        """The mean of a contiguous tensor in place: summed by rank, so that all processes have the same bits."""
        for part in own.view(-1).split(PIECE // own.element_size()):
            seen = self._bytes[self._turn, :, : part.nbytes].view(own.dtype)
            self._turn = 1 - self._turn
            seen[self.world.rank].copy_(part)
            dist.barrier()
            torch.add(seen[0], seen[1], out=part)
            for other in seen[2:]:
                part.add_(other)
            part.div_(self.world.size)
        return own

    def future(self, own: Tensor) -> torch.futures.Future[Tensor]:
        """The mean, which is there already, in the form that DistributedDataParallel asks for."""
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(self.mean(own))
        return done


def _made(size: int, token: bytes) -> int:
    """A file descriptor of new memory that begins with a token; -1 where the system has none."""
    try:
        file = os.memfd_create("sfumato")  # Linux
        os.truncate(file, size)
        os.pwrite(file, token, 0)
    except (AttributeError, OSError):
        return -1
    return file


def _seen(place: str, size: int, token: bytes) -> mmap.mmap | None:
    try:
        with open(place, "r+b") as file:
            memory = mmap.mmap(file.fileno(), size)
    except (OSError, ValueError):
        return None
    return memory if memory[: len(token)] == token else None
