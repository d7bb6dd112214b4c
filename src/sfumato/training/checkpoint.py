"""Checkpoints: one sealed file each (`files`), written under a temporary name; the last two are kept.

`step_00001234.safetensors` holds weights, optimiser, moving averages, counters, settings and the data spec; for a
sharded network `step_00001234` is a folder of files (`shards`). Any number of processes can resume from either, with
whole or sharded weights. A damaged or incomplete checkpoint is skipped in favour of the previous one. The checkpoint
of step 0 is deleted once there is another, since settings and seed reproduce it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato import schema
from sfumato.data.spec import in_json as spec_in_json
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError
from sfumato.files import read_sealed, write_sealed
from sfumato.folder import found, step_of
from sfumato.serialization import TREE, innermost
from sfumato.training import shards
from sfumato.training.state import State

FORMAT, VERSION = "sfumato checkpoint", 1
KEEP = 2
_COUNTERS = schema.fields(
    {
        **{name: schema.whole(0) for name in ("step", "samples", "rollbacks", "triples", "unseen")},
        "elapsed": schema.number(-1e12, 1e12), "slower": schema.number(0, 1), "strikes": schema.listed(schema.whole(0)),
        "spent": schema.mapping(schema.number(0)),
    },
    {"unlogged": schema.flag},
)  # fmt: skip
_CONTRACT = schema.fields(
    {
        "format": schema.text, "version": schema.whole(1), "counters": _COUNTERS, "spec": spec_in_json, "net": TREE,
        "config": schema.mapping(schema.anything),
    },
    {"model": TREE, "given": schema.flag, "autoencoder": schema.text},
)  # fmt: skip


def write(run: Path, state: State, contract: dict[str, Any], world: World = ALONE) -> Path:
    """Write a checkpoint into a run folder and delete all but the last two.

    world: the processes of a sharded state, which all write; otherwise only the first one does.
    """
    path = run / "checkpoints" / f"step_{state.step:08d}"
    whole = {"format": FORMAT, "version": VERSION, "counters": state.counters(), **contract}
    schema.require(whole, _CONTRACT, f"{path} would not be read again")
    if state.sharded:
        path = shards.write(path, state.tensors(), whole, world)
    else:
        path = path.with_suffix(".safetensors")
        write_sealed(path, state.tensors(), whole)
    for i, old in enumerate(found(run) if world.leads else ()):
        if i < KEEP and (i == 0 or step_of(old)):
            continue
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(OSError):  # the next checkpoint tries again
                old.unlink()
    return path


def weights(run: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """(contract, tensors of the network and its average, notes) of the newest intact checkpoint.

    Tried twice, since a run in progress may delete the file while it is read.
    """
    try:
        return _weights(run)
    except SfumatoError:
        return _weights(run)


def _weights(run: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    contract, tensors, notes = latest(run)
    return contract, {name: tensors[name] for name in tensors if name.startswith(("net.", "ema."))}, notes


def size(tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """(number of tensors, number of their elements) of a checkpoint, without reading shards."""
    if isinstance(tensors, shards.Shards):
        return len(tensors), tensors.elements
    return len(tensors), sum(value.numel() for value in tensors.values())


def latest(run: Path) -> tuple[dict[str, Any], Mapping[str, Tensor], list[str]]:
    """(contract, tensors, notes) of the newest intact checkpoint; notes name those that were skipped, and why.

    Tensors of shards are read on access.
    """
    notes: list[str] = []
    paths = found(run)
    for path in paths:
        try:
            contract, tensors = shards.read(path) if path.is_dir() else read_sealed(path, "checkpoint")
            schema.require(contract, _CONTRACT, path)
            if innermost(contract.get("model", {"args": contract}))[1].get("net") != contract["net"]:
                raise SfumatoError(f"{path}: model and net are two networks.")
        except SfumatoError as error:
            notes.append(f"Skipped: {error}")
            continue
        if contract["format"] != FORMAT or contract["version"] > VERSION:
            notes.append(f"Skipped: {path} was written by another version of sfumato.")
            continue
        return contract, tensors, notes
    if paths:
        raise SfumatoError(f"{run} holds no checkpoint that can be read: {notes[0].removeprefix('Skipped: ')}")
    begun = any(Path(run).glob("*/config.yaml"))  # an earlier stage of a latent model, a cascade or an unCLIP pair
    again = (
        f"sfumato resume {run} ends its first stage"
        if begun
        else f"train into it again, sfumato train DATA --out {run}"
    )
    raise SfumatoError(f"{run} holds no checkpoint to resume from: {again}.")
