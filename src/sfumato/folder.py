"""A run folder: config.yaml metrics.jsonl samples/ averages/ report.html checkpoints/ model.safetensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError, place
from sfumato.files import read_text, reason, write_text
from sfumato.serialization import FILE

INCIDENTS = "incident.json"
_SIGNS = ("config.yaml", "checkpoints", FILE)  # a folder with any of these is a run
_NAME = re.compile(r"step_(\d+)(?:-(\d+))?(\.safetensors)?")


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in _SIGNS)


def new(out: str | None, name: str) -> Path:
    """Create a folder for a new run and check that it is writable. Raises SfumatoError if it already holds a run."""
    if out is None:
        path = next(p for p in _candidates(name) if not is_run(p))
    elif not out.strip():
        raise SfumatoError("The run folder has no name: give one, --out runs/NAME, or leave it out.")
    else:
        path = Path(out).expanduser()
        if path.exists() and not path.is_dir():
            raise SfumatoError(f"{path} is a file: give a folder for the run.")
        if is_run(path):
            raise SfumatoError(f"{path} already holds a run: continue it with `sfumato resume {path}` or set --out.")
    try:
        (path / "samples").mkdir(parents=True, exist_ok=True)
        (path / "checkpoints").mkdir(exist_ok=True)
        probe = path / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SfumatoError(f"The run folder {path} cannot be written: {reason(error)}. Give another --out.") from None
    return path


def _candidates(name: str) -> Iterator[Path]:
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-") or "run"
    yield Path("runs") / stem
    number = 2
    while True:
        yield Path("runs") / f"{stem}-{number}"
        number += 1


def existing(path: str | os.PathLike[str]) -> Path:
    """The path of an existing run folder. Raises SfumatoError if there is none."""
    path = place(path, "A run folder")
    if not path.is_dir():
        raise SfumatoError(f"{path} is not a run folder: give the folder that sfumato train made.")
    if not is_run(path):
        raise SfumatoError(f"{path} holds no run: give the folder that sfumato train made.")
    return path


class Log:
    """metrics.jsonl: one JSON object per line, each flushed at once."""

    def __init__(self, path: Path, upto: int | None = None) -> None:
        """upto: the step of the checkpoint that a run resumes from; later lines are removed."""
        self.path = path
        if upto is not None and path.exists():
            kept = [line for line in read(path) if line["step"] <= upto]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise SfumatoError(f"{self.path} cannot be written: {reason(error)}.") from None

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without an incomplete last one."""
    lines = []
    for text in read_text(path).splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def incidents(run: Path) -> list[dict[str, Any]]:
    """The skipped steps (`guard.Incident`) in incident.json; empty if there is no such file."""
    path = run / INCIDENTS
    return json.loads(read_text(path)) if path.exists() else []


def found(run: Path) -> list[Path]:
    """The checkpoints, newest first."""
    folder = run / "checkpoints"
    matches = [(_NAME.fullmatch(p.name), p) for p in folder.iterdir()] if folder.is_dir() else []
    return [p for *_, p in sorted(((int(m[1]), int(m[2] or 0), p) for m, p in matches if m), reverse=True)]


def step_of(path: Path) -> int:
    """The step of a checkpoint or snapshot, from its name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint; 0 without any."""
    return max(map(step_of, found(run)), default=0)
