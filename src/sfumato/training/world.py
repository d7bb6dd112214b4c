"""The processes that train together: torchrun starts them, DistributedDataParallel joins their gradients.

    torchrun --nproc-per-node 4 -m sfumato.cli train photos/

A batch is the same whatever their number: each takes a share of it, noise and noise levels belong to the samples, and
the gradient is the mean over all. The first process alone writes files and speaks.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from sfumato.errors import SfumatoError

TIMEOUT = 600.0  # seconds after which a process that does not answer is missing
_ANSWER = 5.0  # seconds in which the others say that they are there, once one is missing

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class World:
    """This process among those that train together; of size 1, alone, everything is what it is without."""

    rank: int = 0
    size: int = 1
    store: Any = None
    device: torch.device = torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The samples of a batch that this process takes."""
        if count % self.size:
            raise SfumatoError(f"A batch of {count} cannot be shared by {self.size} processes: give a multiple.")
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def parallel(self, model: Any) -> Any:
        """The same model, whose gradients are the mean over all processes."""
        if self.size == 1:
            return model
        joined = copy.copy(model)
        joined._modules = {**model._modules, "net": DistributedDataParallel(model.net)}
        return joined

    def whole(self, own: Tensor) -> Tensor:
        """The shares of all processes, in the order of the batch."""
        if self.size == 1:
            return own
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own.contiguous())
        return torch.cat(found)

    def lead(self, value: _T) -> _T:
        """What the first process has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def each(self, value: _T) -> list[_T]:
        """What every process has, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it holds in any process."""
        if self.size == 1:
            return flag
        count = torch.tensor(float(flag), device=device)
        dist.all_reduce(count)
        return float(count) > 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block a process that is gone, or does not answer, is an error that names it."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_of_communication(error):
                raise
            missing = self._missing()
            if not missing:
                raise
            names = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(map(str, missing))}"
            raise SfumatoError(
                f"Of {self.size} processes {names} (counted from 0) did not answer; the last checkpoint is whole. Look "
                "at what it said last, and go on with sfumato resume."
            ) from None

    def _missing(self) -> list[int]:
        """Ranks that do not say within some seconds that they are there: all others come here by the same error."""
        self.store.set(f"there/{self.rank}", "yes")
        missing = []
        for rank in range(self.size):
            try:
                self.store.wait([f"there/{rank}"], timedelta(seconds=_ANSWER))
            except (RuntimeError, ValueError):
                missing.append(rank)
        return missing


def _is_of_communication(error: RuntimeError) -> bool:
    words = str(error).lower()
    named = ("gloo", "nccl", "connection", "timed out", "timeout", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in words for word in named)


ALONE = World()


def quiet(net: nn.Module, last: bool) -> Any:
    """A context in which backward passes leave the other processes alone, except for the last part of a batch."""
    return nullcontext() if last or not isinstance(net, DistributedDataParallel) else net.no_sync()


@contextmanager
def joined(device: torch.device, timeout: float = TIMEOUT) -> Iterator[World]:
    """The world that torchrun's environment describes, alone where there is none. Of GPUs each process has its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    if str(device) == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise SfumatoError(f"The {size} processes could not be joined: {' '.join(str(error).split())[:200]}.") from None
    try:
        yield World(rank, size, store, device)
    finally:
        dist.destroy_process_group()
