"""Several processes that work together, started by torchrun.

    torchrun --nproc-per-node 4 -m sfumato.cli train photos/

Each takes a share of the same work. Noise and noise levels belong to the sample, so that the number of processes only
affects the time taken and the rounding of sums. Only the first process writes files and prints.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sfumato.errors import SfumatoError

TIMEOUT = 600.0  # seconds after which a process that does not respond counts as lost
OPENING = 12 * 3600.0  # the same while data are opened: decoding a large folder may take hours
_IDLE_WAIT = 10.0  # most seconds to wait at the end for gloo's threads to become idle
_ANSWER = 10.0  # seconds in which processes must respond, once one seems lost

_T = TypeVar("_T")


def leads() -> bool:
    """Whether this process is the first one, also before it has joined the others."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))) == 0


@dataclasses.dataclass(frozen=True)
class World:
    """This process and those that it works with; size 1 is a single process."""

    rank: int = 0
    size: int = 1
    store: Any = None
    device: torch.device = torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's share of a batch of `count` samples."""
        if count % self.size:
            raise SfumatoError(f"A batch of {count} cannot be shared by {self.size} processes: give a multiple.")
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def all_gather(self, own: Tensor) -> Tensor:
        """Concatenate the processes' tensors (B, ...), all of one shape, to (size B, ...) in order of rank."""
        if self.size == 1:
            return own
        own = own.contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return torch.cat(found)

    def parallel_map(self, compute: Callable[[Tensor], Any], index: Tensor) -> Any:
        """compute(index), (len(index), ...) or a dict of such, each process computing a share of the rows.

        All get the whole result. They call `compute` with equally many rows, as sharded weights require: short shares
        repeat the last row.
        """
        if self.size == 1:
            return compute(index)
        own = -(-len(index) // self.size)
        places = torch.arange(self.rank * own, (self.rank + 1) * own).clamp_(max=len(index) - 1)

        def gathered(found: Any) -> Any:
            if isinstance(found, dict):
                return {name: gathered(part) for name, part in found.items()}
            return self.all_gather(found)[: len(index)]

        return gathered(compute(index[places]))

    def all_reduce(self, own: Tensor) -> Tensor:
        """The sum over all processes; may overwrite `own`."""
        if self.size > 1:
            own = own.contiguous()
            dist.all_reduce(own)
        return own

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is true in any process."""
        return flag if self.size == 1 else float(self.all_reduce(torch.tensor(float(flag), device=device))) > 0

    def broadcast(self, value: _T) -> _T:
        """The value in the first process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_result(self, make: Callable[[], _T]) -> _T:
        """Call make() in the first process only; all get its result, or its error."""
        made: list[Any] = self.gather_results(lambda: make() if self.leads else None)
        return made[0]

    def all_gather_object(self, value: _T, group: Any = None) -> list[_T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group)
        return found

    def gather_results(self, make: Callable[[], _T]) -> list[_T]:
        """The results of make() in all processes, by rank; an error in one is raised in all."""
        made: list[Any] = self.all_gather_object(_tried(make))
        if error := next((each for each in made if isinstance(each, SfumatoError)), None):
            raise error
        return made

    def local_main_first(self, make: Callable[[], _T]) -> _T:
        """Call make() in every process, first in one per machine, so that the others find the cache filled.

        They wait for each other for at most OPENING seconds, but notice at once if a process ends. An error in one is
        raised in all.
        """
        if self.size == 1:
            return make()
        first, made = os.environ.get("LOCAL_RANK", "0") == "0", None
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=OPENING))
        for turn in (True, False):
            if first == turn:
                made = _tried(make)
            errors = self.all_gather_object(made if isinstance(made, SfumatoError) else None, group)
            if error := next(filter(None, errors), None):
                raise error
        dist.destroy_process_group(group)
        return made  # type: ignore[return-value]

    def missing(self) -> list[int]:
        """The ranks that do not respond within _ANSWER seconds; all others call this after the same error."""
        keys = [f"there/{rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], "yes")
        try:
            self.store.wait(keys, timedelta(seconds=_ANSWER))
        except (RuntimeError, ValueError):  # some are missing
            return [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        return []


def _tried(make: Callable[[], _T]) -> _T | SfumatoError:
    """make(), or the SfumatoError that it raised."""
    try:
        return make()
    except SfumatoError as error:
        return error


@contextmanager
def _naming_missing(world: World) -> Iterator[World]:
    """Within the block, replace communication errors by one that names the processes that do not respond."""
    try:
        yield world
    except RuntimeError as error:
        missing = world.missing() if _is_of_communication(error) else []
        if not missing:
            raise
        names = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(map(str, missing))}"
        raise SfumatoError(
            f"Of {world.size} processes {names} (counted from 0) did not respond: check the last output, and continue "
            "with sfumato resume if a checkpoint was saved."
        ) from None


def _is_of_communication(error: RuntimeError) -> bool:
    words = str(error).lower()
    named = ("gloo", "nccl", "connection", "timed out", "timeout", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in words for word in named)


ALONE = World()
_joined = itertools.count()  # each use has its own names in the store


def local(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds, or the tensor itself if it is whole."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, which all processes must call; a whole tensor is returned as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard(whole: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds of `like`, without communication."""
    if local(like) is like:
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


@contextmanager
def joined(device: torch.device | str = "cpu", timeout: float | None = None) -> Iterator[World]:
    """The world that torchrun's environment describes, or a single process. Each process uses its own GPU.

    Raises SfumatoError, with the rank, if another process ends or does not respond for `timeout` seconds.

    with sf.joined("cuda") as world:
        samples = sf.sample(sf.load("runs/photos", device=world.device), 10_000, world=world)
    """
    device, timeout = torch.device(device), TIMEOUT if timeout is None else timeout
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=device)
        return
    if str(device) == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if dist.is_initialized():  # by the caller, who also cleans up
        store = dist.distributed_c10d._get_default_store()
        with _naming_missing(World(dist.get_rank(), dist.get_world_size(), store, device)) as world:
            yield world
        return
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
        store = dist.distributed_c10d.PrefixStore(f"sfumato/{next(_joined)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout),
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise SfumatoError(f"The {size} processes could not be joined: {' '.join(str(error).split())[:200]}.") from None
    try:
        with _naming_missing(World(rank, size, store, device)) as world:
            yield world
    finally:
        dist.destroy_process_group()
        _wait_for_gloo()


def _wait_for_gloo() -> None:
    """Wait until gloo's threads, which live as long as a mesh or a wrapped network, have freed their last tensors.

    One that does so while the interpreter ends aborts the process (pytorch issue 190489): without waiting, five of six
    runs of two processes in shards with torch 2.13.
    """
    end, quiet = time.monotonic() + _IDLE_WAIT, 0
    while quiet < 2 and time.monotonic() < end:
        time.sleep(0.01)  # releases the interpreter's lock, which a thread may be waiting for
        quiet = 0 if any(_at_work(task) for task in Path("/proc/self/task").glob("*")) else quiet + 1


def _at_work(task: Path) -> bool:
    try:
        return (task / "comm").read_text().startswith("pt_gloo") and ") S" not in (task / "stat").read_text()
    except OSError:  # the thread has ended
        return False
