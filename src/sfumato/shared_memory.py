"""Tensors that processes of one machine show each other, in memory that all of them see.

A socket copies what it carries twice, in the kernel, by the cores that compute; here it is written once and read once.
"""

from __future__ import annotations

import mmap
import os
import secrets
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor

PIECE = 16 << 20  # bytes that each process shows at once
_TOKEN = 32  # bytes by which the memory is known to be the one meant


@final
class SharedMemory:
    """Two places for each process: one is read while the next is written. All call the same, in the same order."""

    def __init__(self, memory: mmap.mmap, rank: int, size: int) -> None:
        self.rank, self.size, self._turn = rank, size, 0
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8).view(2, size, PIECE)

    @classmethod
    def of(cls, rank: int, size: int) -> SharedMemory | None:
        """None, in all processes alike, where one of them does not see the memory of the first: on another machine, in
        another container, or where the system has no such memory."""
        nbytes, file, token = 2 * size * PIECE, -1, secrets.token_bytes(_TOKEN)
        if rank == 0:
            file = _made(nbytes, token)
        # memory without a name: the others find it among the open files of the first
        said: list[Any] = [f"/proc/{os.getpid()}/fd/{file}", token]
        dist.broadcast_object_list(said, src=0)
        memory = _seen(said[0], nbytes, said[1])
        missing = torch.tensor(float(memory is None))
        dist.all_reduce(missing)
        if file >= 0:
            os.close(file)
        return None if memory is None or float(missing) else cls(memory, rank, size)

    def whole(self, own: Tensor) -> Tensor:
        """(B, ...) of each process, all of one shape, as (size B, ...) by rank."""
        raw = own.contiguous().view(-1).view(torch.uint8)
        found = raw.new_empty(self.size, len(raw))
        for part, place in zip(raw.split(PIECE), found.split(PIECE, 1), strict=True):
            place.copy_(self._shown(part))
        return found.view(-1).view(own.dtype).view(self.size * own.shape[0], *own.shape[1:])

    def mean(self, own: Tensor) -> Tensor:
        """The mean of a contiguous tensor in place: summed by rank, so that all processes have the same bits."""
        for part in own.view(-1).split(PIECE // own.element_size()):
            shown = self._shown(part.view(torch.uint8)).view(own.dtype)
            torch.add(shown[0], shown[1], out=part)
            for other in shown[2:]:
                part.add_(other)
            part.div_(self.size)
        return own

    def _shown(self, part: Tensor) -> Tensor:
        """What all processes show, (size, bytes), until the call after the next one."""
        place = self._bytes[self._turn, :, : len(part)]
        self._turn = 1 - self._turn
        place[self.rank].copy_(part)
        dist.barrier()
        return place


def _made(nbytes: int, token: bytes) -> int:
    """A file descriptor of new memory that begins with a token; -1 where the system has none."""
    try:
        file = os.memfd_create("sfumato")  # Linux
        os.truncate(file, nbytes)
        os.pwrite(file, token, 0)
    except (AttributeError, OSError):
        return -1
    return file


def _seen(place: str, nbytes: int, token: bytes) -> mmap.mmap | None:
    try:
        with open(place, "r+b") as file:
            memory = mmap.mmap(file.fileno(), nbytes)
    except (OSError, ValueError):
        return None
    return memory if memory[: len(token)] == token else None
