"""Checkpoints: one sealed file each (`files`), written under a temporary name, the last two kept.

That of step 0 goes with the next: it holds what the settings and the seed make anyway.

`step_00001234.safetensors` holds weights, optimiser, moving average, counters, settings and the data spec. A file that
is cut, changed or half-written is never chosen: the one before it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.files import read_sealed, write_sealed
from sfumato.training.state import State

FORMAT, VERSION = "sfumato checkpoint", 1
KEEP = 2
_NAME = re.compile(r"step_(\d+)\.safetensors")


def write(run: Path, state: State, contract: dict[str, Any]) -> Path:
    """Write the checkpoint of a run folder; older ones than the last two go."""
    folder = run / "checkpoints"
    path = folder / f"step_{state.step:08d}.safetensors"
    whole = {"format": FORMAT, "version": VERSION, "counters": state.counters(), **contract}
    write_sealed(path, state.tensors(), whole)
    kept = found(run)
    for i, old in enumerate(kept):
        if i >= KEEP or i and step_of(old) == 0:
            old.unlink(missing_ok=True)
    return path


def found(run: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint file, by its name."""
    return int(path.stem.removeprefix("step_"))


def latest(run: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """(contract, tensors, notes) of the newest whole checkpoint; notes say which were passed over and why."""
    notes: list[str] = []
    paths = found(run)
    for path in paths:
        try:
            contract, tensors = read_sealed(path, "checkpoint")
        except SfumatoError as error:
            notes.append(f"Passed over: {error}")
            continue
        if contract.get("format") != FORMAT or contract.get("version", 0) > VERSION:
            notes.append(f"Passed over: {path} was written by another version of sfumato.")
            continue
        return contract, tensors, notes
    if paths:
        raise SfumatoError(f"{run} holds no checkpoint that can be read: {notes[0].removeprefix('Passed over: ')}")
    raise SfumatoError(f"{run} holds no checkpoint to resume from: give a run folder of sfumato train.")
