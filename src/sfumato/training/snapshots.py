"""Snapshots of averages in a run folder, a byte a weight: each but the first of a stretch says what changed.

    theta_k = theta_(k-1) + scale q_k,   q_k = round((average_k - theta_(k-1)) / scale) in -127 .. 127, int8

scale is max |.| / 127 of each output channel, theta_0 the average in half precision. theta_(k-1) is what a reader has,
so that errors do not add up: each is scale / sqrt(12) of its own change, and averages change little in between.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.files import read_header, read_sealed, write_sealed

FOLDER = "averages"
STRETCH = 8  # snapshots from one that stands alone to the next
_NAME = re.compile(r"step_(\d+)\.safetensors")
_FORMAT, _WHAT = "sfumato averages", "snapshot of averages"
_ROW = 16  # numbers that one scale serves at least
Weights = dict[str, Tensor]


class Snapshot(NamedTuple):
    """One file: at which step and how many samples seen, and the step of the snapshot that it changes, if any."""

    step: int
    samples: int
    widths: tuple[float, ...]
    base: int | None
    path: Path


def found(run: Path) -> list[Snapshot]:
    """The snapshots of a run folder, by rising step."""
    folder = run / FOLDER
    paths = sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name)) if folder.is_dir() else []
    return [_of(path) for path in paths]


def _of(path: Path) -> Snapshot:
    contract, _ = read_header(path, _WHAT)
    return Snapshot(contract["step"], contract["samples"], tuple(contract["widths"]), contract["base"], path)


def write(run: Path, averages: Mapping[float, Mapping[str, Tensor]], step: int, samples: int) -> Path:
    """Add a snapshot of the averages, width -> weights; later ones, of a part of the run that was lost, go."""
    earlier = []
    for snapshot in found(run):
        if snapshot.step >= step:
            snapshot.path.unlink(missing_ok=True)
        else:
            earlier.append(snapshot)
    alone = len(earlier) % STRETCH == 0
    # one at a time is held: all of them are up to fourteen networks
    before: Weights = {} if alone else deque(read(earlier[-(len(earlier) % STRETCH) :]), maxlen=1)[0][2]
    stored: Weights = {}
    for width, weights in averages.items():
        changes = {name: _change(value.detach().cpu(), before.get(name)) for name, value in weights.items()}
        before = {name: _apply(before.get(name), change) for name, change in changes.items()}
        for name, change in changes.items():
            stored |= {f"{width:g}.{kind}.{name}": value for kind, value in change.items()}
    path = run / FOLDER / f"step_{step:08d}.safetensors"
    base = None if alone else earlier[-1].step
    write_sealed(
        path, stored, {"format": _FORMAT, "step": step, "samples": samples, "widths": list(averages), "base": base}
    )
    return path


def read(snapshots: list[Snapshot]) -> Iterator[tuple[Snapshot, float, Weights]]:
    """(snapshot, width, weights) of each average in turn; the weights are float32 at least."""
    before: Weights = {}
    last: int | None = None
    for snapshot in snapshots:
        if snapshot.base is None:
            before = {}
        elif snapshot.base != last:
            raise SfumatoError(f"{snapshot.path} changes the snapshot of step {snapshot.base}, which is gone.")
        _, tensors = read_sealed(snapshot.path, _WHAT)
        for width in snapshot.widths:
            changes: dict[str, Weights] = {}
            for full, value in tensors.items():
                if full.startswith(start := f"{width:g}."):
                    kind, _, name = full.removeprefix(start).partition(".")
                    changes.setdefault(name, {})[kind] = value
            before = {name: _apply(before.get(name), change) for name, change in changes.items()}
            yield snapshot, width, before
        last = snapshot.step


def _change(value: Tensor, before: Tensor | None) -> Weights:
    """What is stored of a tensor: half precision where it stands alone and fits, whole numbers and scales else."""
    if not value.is_floating_point():
        return {"whole": value}
    if before is None:
        half = value.half()
        return {"whole": half if bool(half.isfinite().all()) else value}
    change = (value.to(before) - before).reshape(_rows(value), -1)
    scale = (change.abs().amax(1, keepdim=True) / 127).float()
    change = change / torch.where(scale > 0, scale, 1)
    return {"change": change.round().clamp(-127, 127).to(torch.int8).view(value.shape), "scale": scale}


def _rows(value: Tensor) -> int:
    """Output channels, where each has numbers enough for a scale of its own."""
    return len(value) if value.ndim > 1 and value[0].numel() >= _ROW else 1


def _apply(before: Tensor | None, change: Weights) -> Tensor:
    if "whole" in change:
        whole = change["whole"]
        return whole.float() if whole.dtype == torch.float16 else whole
    assert before is not None
    step = change["change"].to(before).reshape(len(change["scale"]), -1) * change["scale"].to(before)
    return before + step.view(before.shape)
