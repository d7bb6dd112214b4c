"""Sharded checkpoints: a folder with one safetensors file per process.

    checkpoints/step_00001234/  contract.json  shard-00001-of-00002.safetensors  shard-00002-of-00002.safetensors

Each process writes its rows of every tensor; the first one also writes the unsharded tensors. contract.json is written
last, with the hash of every file, and the folder is renamed once all of it is on disk, so that a folder with its final
name is complete. Any number of processes can read it: a tensor is the concatenation of the rows of all files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfumato import schema
from sfumato.distributed import World, local
from sfumato.errors import SfumatoError
from sfumato.files import first_line, flush, reason, require_plain, seal, write_text

CONTRACT = "contract.json"
_LARGEST = 100_000_000  # bytes, as of the header of a single file
_CONTRACT = schema.fields({"hash": schema.text, "files": schema.mapping(schema.text)})


def write(final: Path, tensors: Mapping[str, Tensor], contract: Mapping[str, Any], world: World) -> Path:
    """Write whole and sharded tensors into one folder. All processes call this, and return once it is complete.

    final: its path; a number is appended if that is taken. Raises SfumatoError in all processes if one cannot write.
    """
    place = world.broadcast_result(lambda: _begin(final))
    try:
        files = dict(world.gather_results(lambda: _save(place, tensors, world)))
        return world.broadcast_result(lambda: _finish(place, final, {**contract, "files": files}))
    finally:
        if world.leads:
            shutil.rmtree(place, ignore_errors=True)


def _begin(final: Path) -> Path:
    """Create a folder with a temporary name."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        place = final.parent / f".{final.name}.{os.getpid()}.shards"
        place.mkdir()
        return place
    except OSError as error:
        raise SfumatoError(f"{final} cannot be written: {reason(error)}.") from None


def _save(place: Path, tensors: Mapping[str, Tensor], world: World) -> tuple[str, str]:
    """Write this process's file; returns its name and hash."""
    own = {name: value for name, value in tensors.items() if world.leads or local(value) is not value}
    path = place / f"shard-{world.rank + 1:05d}-of-{world.size:05d}.safetensors"
    try:
        save_file({name: local(value).detach().cpu().contiguous() for name, value in own.items()}, path)
        flush(path)
        return path.name, _hash(path)
    except (OSError, SafetensorError) as error:
        words = reason(error) if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        raise SfumatoError(f"{place.parent} cannot be written by process {world.rank}: {words}.") from None


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
    require_plain(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> tuple[dict[str, Any], Shards]:
    """(contract, tensors) of a folder. Raises SfumatoError if a file does not match its hash."""
    try:
        contract = schema.json_of(schema.read_text(path / CONTRACT, _LARGEST), path / CONTRACT)
        schema.require(contract, _CONTRACT, path / CONTRACT)
        there = sorted(file.name for file in path.iterdir() if file.name != CONTRACT)
        if there != sorted(contract["files"]) or not all(_is_plain(path / name) for name in there):
            raise SfumatoError(f"{path} is damaged: its files are not those, and only those, that its contract lists.")
        if seal({}, contract) != contract["hash"] or {name: _hash(path / name) for name in there} != contract["files"]:
            raise SfumatoError(f"{path} is damaged: its contents do not match their hashes. Copy it again.")
        return contract, Shards(path / name for name in there)
    except OSError as error:
        raise SfumatoError(f"{path} is incomplete: {error.filename}: {reason(error)}.") from None
    except SafetensorError as error:
        raise SfumatoError(f"{path} is damaged: a file cannot be read ({first_line(error)}).") from None


def _is_plain(path: Path) -> bool:
    """Whether a path is a regular file, and neither a link nor a device, which might never end."""
    return stat.S_ISREG(path.lstat().st_mode)


class Shards(Mapping[str, Tensor]):
    """The tensors of several files by name, each read whole on access."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: dict[str, list[Any]] = {}
        for path in paths:
            file = safe_open(path, "pt")
            for name in file.keys():  # noqa: SIM118
                self._files.setdefault(name, []).append(file)

    @property
    def elements(self) -> int:
        """The number of elements of all tensors, from the files' headers."""
        each = ((file, name) for name, files in self._files.items() for file in files)
        return sum(math.prod(file.get_slice(name).get_shape()) for file, name in each)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __getitem__(self, name: str) -> Tensor:
        parts = [file.get_tensor(name) for file in self._files[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
