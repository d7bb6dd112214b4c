"""The processes that work together: torchrun starts them.

    torchrun --nproc-per-node 4 -m sfumato.cli train photos/

Each takes a share of the same work, and what belongs to a sample (noise, level) goes with it, so that their number
changes nothing but the time. The first process alone writes files and speaks.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sfumato.errors import SfumatoError
from sfumato.shared_memory import SharedMemory

TIMEOUT = 600.0  # seconds after which a process that does not answer is missing
_LETTING_GO = 10.0  # seconds at most in which threads become quiet at the end
_ANSWER = 5.0  # seconds in which the others say that they are there, once one is missing
_FIRST_LOOK, _LOOK = 0.05, 1.0  # seconds between two looks at what others have said: at first, and at most
_PULSES = 20  # that a process gives in the time after which it is missing

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class World:
    """This process among those that work together; of size 1, alone, everything is what it is without."""

    rank: int = 0
    size: int = 1
    store: Any = None
    device: torch.device = torch.device("cpu")
    timeout: float = TIMEOUT
    memory: SharedMemory | None = dataclasses.field(default=None, compare=False, repr=False)

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

    def whole(self, own: Tensor) -> Tensor:
        """The shares of all processes, in the order of the batch."""
        if self.size == 1:
            return own
        if self.memory is not None:
            return self.memory.whole(own)
        raw = own.contiguous().reshape(-1).view(torch.uint8)  # bytes, which every backend carries
        found = [torch.empty_like(raw) for _ in range(self.size)]
        dist.all_gather(found, raw)
        return torch.cat(found).view(own.dtype).reshape(-1, *own.shape[1:])

    def mapped(self, compute: Callable[[Tensor], Any], index: Tensor) -> Any:
        """compute(index), (len(index), ...) or a dict of such, each process computing a share of the rows.

        All have all of it, and call `compute` with as many rows, as weights in shards ask for: short shares repeat the
        last row.
        """
        if self.size == 1:
            return compute(index)
        own = -(-len(index) // self.size)
        places = torch.arange(self.rank * own, (self.rank + 1) * own).clamp_(max=len(index) - 1)

        def joined(found: Any) -> Any:
            if isinstance(found, dict):
                return {name: joined(part) for name, part in found.items()}
            return self.whole(found)[: len(index)]

        return joined(compute(index[places]))

    def sum(self, own: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            own = own.contiguous()
            dist.all_reduce(own)
        return own

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """parts[r], flat, goes to process r; what each process sent here, of the given sizes."""
        out = parts[0].new_empty(sum(sizes))
        dist.all_to_all_single(out, torch.cat(list(parts)), list(sizes), [len(part) for part in parts])
        return list(out.split(list(sizes)))

    def lead(self, value: _T) -> _T:
        """What the first process has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def told(self, make: Callable[[], _T]) -> _T:
        """What the first process makes, and alone makes; where that is an error it is one in all."""
        made: Any = None
        if self.leads:
            try:
                made = make()
            except SfumatoError as error:
                made = error
        made = self.lead(made)
        if isinstance(made, SfumatoError):
            raise made
        return made

    def in_turn(self, make: Callable[[], _T]) -> _T:
        """make() of every process, those of a machine after its first one, whose cache they then find filled.

        It may take any time: the others wait for as long as a process lives, and for none that is silent for the
        time-out. An error in one is an error in all.
        """
        if self.size == 1:
            return make()
        turn = _Turn(self)
        with self.together():
            if first := int(os.environ.get("LOCAL_RANK", "0")):
                turn.wait(self.rank - first)
            made = turn.take(make)
            for rank in range(self.size):
                turn.wait(rank)
        return made

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


@final
class _Turn:
    """One piece of work that every process does in its own time: its pulse, its end, and waiting for that of others.

    Only one thread at a time asks the store: requests of two have been seen to hang for minutes.
    """

    def __init__(self, world: World) -> None:
        self.world, self._name = world, f"turn/{next(_turns)}"

    def _key(self, what: str, rank: int) -> str:
        return f"{self._name}/{what}/{rank}"

    def take(self, make: Callable[[], _T]) -> _T:
        """make(), while a thread says that this process lives; the others hear of its end."""
        why, over = "it was broken off", threading.Event()
        thread = threading.Thread(target=self._beat, args=(over,), daemon=True)
        thread.start()
        try:
            made = make()
            why = ""
        except SfumatoError as error:
            why = str(error)
            raise
        finally:
            over.set()
            thread.join()
            self.world.store.set(self._key("end", self.world.rank), why)
        return made

    def _beat(self, over: threading.Event) -> None:
        try:
            while not over.wait(self.world.timeout / _PULSES):
                self._live()
        except RuntimeError:  # who keeps the store is gone: this process hears it when it asks
            pass

    def _live(self) -> None:
        self.world.store.add(self._key("pulse", self.world.rank), 1)

    def wait(self, rank: int) -> None:
        """Until that process is done; SfumatoError where it failed, or has been silent for the time-out."""
        store, pause, heard, since = self.world.store, _FIRST_LOOK, 0, time.monotonic()
        while not store.check([self._key("end", rank)]):
            time.sleep(pause)
            pause = min(1.2 * pause, _LOOK, self.world.timeout / _PULSES)
            self._live()
            pulse = store.add(self._key("pulse", rank), 0)
            if pulse != heard:
                heard, since = pulse, time.monotonic()
            elif time.monotonic() - since > self.world.timeout:
                raise SfumatoError(
                    f"Of {self.world.size} processes process {rank} (counted from 0) has given no sign of life for "
                    f"{self.world.timeout:g} s while the data were opened: look at what it said last, and start again."
                )
        if why := store.get(self._key("end", rank)).decode():
            raise SfumatoError(why)


ALONE = World()
_turns = itertools.count()
_joined = itertools.count()  # each time under names of its own in the store


def local(tensor: Tensor) -> Tensor:
    """The shard that this process holds of a tensor, or the tensor itself where it is whole."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@contextmanager
def joined(device: torch.device | str = "cpu", timeout: float | None = None) -> Iterator[World]:
    """The world that torchrun's environment describes, alone where there is none. Of GPUs each process has its own.

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
    if dist.is_initialized():  # by the caller, who also ends it
        store = dist.distributed_c10d._get_default_store()
        yield World(dist.get_rank(), dist.get_world_size(), store, device, memory=_memory(device))
        return
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
        store = dist.distributed_c10d.PrefixStore(f"sfumato/{next(_joined)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout),
        )  # fmt: skip
        memory = _memory(device)
    except (RuntimeError, ValueError) as error:
        raise SfumatoError(f"The {size} processes could not be joined: {' '.join(str(error).split())[:200]}.") from None
    try:
        yield World(rank, size, store, device, timeout, memory)
    finally:
        dist.destroy_process_group()
        _settled()


def _memory(device: torch.device) -> SharedMemory | None:
    if device.type != "cpu" or dist.get_backend() != "gloo":
        return None
    return SharedMemory.of(dist.get_rank(), dist.get_world_size())


def _settled() -> None:
    """Wait until gloo's threads, which live as long as a mesh or a wrapped network, have let go of their last tensors.

    One that does so while the interpreter ends aborts the process, after all its work is done (pytorch issue 190489).
    """
    end, quiet = time.monotonic() + _LETTING_GO, 0
    while quiet < 2 and time.monotonic() < end:
        time.sleep(0.01)  # without the interpreter's lock, for which a thread may wait
        quiet = 0 if any(_at_work(task) for task in Path("/proc/self/task").glob("*")) else quiet + 1


def _at_work(task: Path) -> bool:
    try:
        return (task / "comm").read_text().startswith("pt_gloo") and ") S" not in (task / "stat").read_text()
    except OSError:  # it is over
        return False
