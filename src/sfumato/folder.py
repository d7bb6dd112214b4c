"""A run folder: config.yaml metrics.jsonl samples/ averages/ report.html checkpoints/ model.safetensors."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError, place
from sfumato.files import Busy, locked, no_links, reason, sweep, write_text
from sfumato.serialization import FILE

INCIDENTS, LOCK = "incident.json", ".lock"
DRAFTS = ".*.shards"  # checkpoints in shards that are being written (`training.shards`)
_SIGNS = ("config.yaml", "checkpoints", FILE)  # a folder with any of these is a run
_NAME = re.compile(r"step_(\d+)(?:-(\d+))?(\.safetensors)?")


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in _SIGNS)


def begun(path: Path) -> bool:
    """Whether a run folder holds results: a checkpoint, a model or a line of the log."""
    log = path / "metrics.jsonl"
    return bool(found(path)) or (path / FILE).exists() or (log.exists() and log.stat().st_size > 0)


@contextmanager
def new(out: str | None, name: str) -> Iterator[Path]:
    """Create a folder for a new run and hold it (`held`) within the block.

    A run that was killed before its first checkpoint may be begun again. Raises SfumatoError if the folder holds any
    other run or cannot be written.
    """
    with ExitStack() as stack:
        if out is None:
            path = next(each for each in _candidates(name) if _free(each, stack))
        else:
            path = _chosen(out)
            stack.enter_context(_created(path))
        yield path


def _free(path: Path, stack: ExitStack) -> bool:
    """Begin a run in a folder that holds none; False if another process has begun one meanwhile."""
    with suppress(Busy):
        if not is_run(path):
            stack.enter_context(_created(path))
            return True
    return False


def _chosen(out: str) -> Path:
    """The folder that the user chose for a new run."""
    if not out.strip():
        raise SfumatoError("The run folder has no name: give one, --out runs/NAME, or leave it out.")
    path = Path(out).expanduser()
    if path.exists() and not path.is_dir():
        raise SfumatoError(f"{path} is a file: give a folder for the run.")
    return path


@contextmanager
def _created(path: Path) -> Iterator[None]:
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
    with held(path):
        if begun(path):
            raise SfumatoError(f"{path} already holds a run: continue it with `sfumato resume {path}` or set --out.")
        with _writing(path):
            for part in ("samples", "checkpoints"):
                (path / part).mkdir(exist_ok=True)
        yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Let no other process train in a run folder within the block, and delete what killed ones left half written.

    The lock is RUN/.lock; the system releases it when the process ends, however it ends. Raises Busy if another process
    trains there, and SfumatoError if the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            with _writing(path):
                stack.enter_context(locked(path / LOCK, create=True))
                sweep(path)
                for draft in (path / "checkpoints").glob(DRAFTS):
                    shutil.rmtree(draft, ignore_errors=True)
        except Busy:
            raise Busy(
                f"{path} is being trained by another process: wait for it, or end it with "
                f"`sfumato control {path} stop`."
            ) from None
        yield


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SfumatoError(f"The run folder {path} cannot be written: {reason(error)}. Give another --out.") from None


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
        try:
            self._file = open(path, "a", encoding="utf-8", opener=no_links)
        except OSError as error:
            raise SfumatoError(f"{path} cannot be written: {reason(error)}.") from None

    def write(self, line: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise SfumatoError(f"{self.path} cannot be written: {reason(error)}.") from None

    def close(self) -> None:
        with suppress(OSError):  # all lines are written already, or the error was raised there
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without an incomplete last one."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def incidents(run: Path) -> list[dict[str, Any]]:
    """The skipped steps (`guard.Incident`) in incident.json; empty if there is no such file."""
    path = run / INCIDENTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


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
