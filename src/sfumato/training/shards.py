"""Checkpoints in shards: a folder with one safetensors file a process, by torch.distributed.checkpoint.

    checkpoints/step_00001234/  contract.json  shard-00001-...safetensors  shard-00002-...safetensors

Each process writes what it holds. contract.json comes last, with the hash of every file, and the folder gets its name
when all is on the disk: one that has it is whole. It is read by any number of processes, each what it needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sfumato.distributed import World
from sfumato.errors import SfumatoError
from sfumato.files import flush, reason, seal, write_text

CONTRACT = "contract.json"


def write(final: Path, tensors: Mapping[str, Tensor], contract: Mapping[str, Any], world: World) -> Path:
    """Write tensors, whole ones and shards, as one folder; all processes do, and return when it has its name.

    final: its path; where that is taken a number is added. SfumatoError in all where one cannot write.
    """
    place = world.broadcast_result(lambda: _begin(final))
    try:
        _save(place, tensors)
        own = {p.name: _hash(p) for p in place.iterdir() if p.name.startswith(f"shard-{world.rank + 1:05d}-")}
        files = {name: value for each in world.all_gather_object(own) for name, value in each.items()}
        return world.broadcast_result(lambda: _finish(place, final, {**contract, "files": files}))
    finally:
        if world.leads:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the word that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _begin(final: Path) -> Path:
    """A folder under a temporary name; those that killed processes left go."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for old in final.parent.glob(".*.shards"):
            shutil.rmtree(old, ignore_errors=True)
        place = final.parent / f".{final.name}.{os.getpid()}.shards"
        place.mkdir()
        return place
    except OSError as error:
        raise SfumatoError(f"{final} cannot be written: {reason(error)}.") from None


def _save(place: Path, tensors: Mapping[str, Tensor]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    alone = not dist.is_initialized()
    plain = {name: value if value.is_contiguous() else value.contiguous() for name, value in tensors.items()}
    try:
        with _quiet():
            save(plain, storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True), no_dist=alone)
    except CheckpointException as error:  # which all processes get
        rank, (first, _) = next(iter(error.failures.items()))
        words = reason(first) if isinstance(first, OSError) else " ".join(str(first).split())[:200]
        raise SfumatoError(f"{place.parent} cannot be written by process {rank}: {words}.") from None


def _finish(place: Path, final: Path, contract: dict[str, Any]) -> Path:
    write_text(place / CONTRACT, json.dumps({**contract, "hash": seal({}, contract)}))
    name, number = final, 1
    while name.exists():
        name, number = final.with_name(f"{final.name}-{number}"), number + 1
    try:
        flush(place)
        os.replace(place, name)
        flush(name.parent)
    except OSError as error:
        raise SfumatoError(f"{final} cannot be written: {reason(error)}.") from None
    return name


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> tuple[dict[str, Any], Shards]:
    """(contract, tensors) of a folder whose files are all there and as they were written; SfumatoError otherwise."""
    try:
        contract = json.loads((path / CONTRACT).read_text(encoding="utf-8"))
        found = {name: _hash(path / name) for name in contract["files"]}
    except OSError as error:
        raise SfumatoError(f"{path} is not whole: {error.filename}: {reason(error)}.") from None
    except (ValueError, KeyError, TypeError):
        raise SfumatoError(f"{path} is damaged: its contract cannot be read.") from None
    if seal({}, contract) != contract.get("hash") or found != contract["files"]:
        raise SfumatoError(f"{path} is damaged: its contents do not match their hashes. Copy it again.")
    return contract, Shards(path)


class Shards(Mapping[str, Tensor]):
    """The tensors of a folder by name; one that is asked for is read whole, `into` reads each process's shards."""

    def __init__(self, path: Path) -> None:
        self.path, self._known = path, self._reader(path).read_metadata().state_dict_metadata

    @staticmethod
    def _reader(path: Path) -> Any:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        return HuggingFaceStorageReader(str(path))

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __getitem__(self, name: str) -> Tensor:
        return self.some([name])[name]

    def some(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, whole, by one reading of the files."""
        known: Any = {name: self._known[name] for name in names}
        found = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in known.items()}
        self.into(found)
        return found

    def into(self, own: Mapping[str, Tensor]) -> None:
        """Fill tensors, whole ones or shards, by name; RuntimeError where one has another shape, SfumatoError where the
        files are gone."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_loader import load

        for name, value in own.items():
            known: Any = self._known[name]
            if known.size != value.shape:
                raise RuntimeError(f"{name} has the shape {tuple(known.size)} where it is {tuple(value.shape)}")
        try:
            with torch.no_grad(), _quiet():
                load(dict(own), storage_reader=self._reader(self.path), no_dist=True)
        except (CheckpointException, OSError):
            raise SfumatoError(f"{self.path} was taken away while it was read.") from None
