"""A small run with a fault at each call of the file system: killed there, or told of a full or a broken disk.

    python tests/disk_faults.py FOLDER EVERY FAULT ...     a line of JSON for each EVERYth event, the faults in turn

This process has trained once, so that all is loaded, and forks a child for each event. The child trains, and the fault
stands at its event; what it leaves must be whole, and a second child goes on from there to the bits of a run without.
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image
from safetensors import SafetensorError

import sfumato as sf
from sfumato import files, folder, pictures
from sfumato.diagnostics import board_page, report
from sfumato.errors import SfumatoError
from sfumato.training import checkpoint
from sfumato.training.console import Silent
from sfumato.training.session import Hook, Session

STEPS, SAVES = 14, (4, 8, 11)  # and the steps after which a checkpoint is due
ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO, "interrupted": errno.EINTR}
FAULTS = ("kill", *ERRORS)
TIMED = {"elapsed", "eta", "rate", "data_wait"}
CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "chmod")  # of os


class Saves(Hook):
    """What FolderCommands does when a checkpoint is due, after fixed steps."""

    def step(self, session: Session, progress: Any) -> None:
        if progress.step in SAVES:
            session.save(model=True)
            session.report()


def data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)


def train(out: Path) -> None:
    how = {"steps": STEPS, "batch": 8, "net": "MLP(width=16, depth=1)", "precision": "float32", "snapshots": 3}
    sf.train(data(), out, console=Silent(), on_start=lambda session: session.hooks.append(Saves()), **how)


def go_on(out: Path) -> None:
    """What a user does after an accident: resume, or begin again where there is nothing to resume."""
    if not folder.found(out):
        return train(out)
    try:
        sf.resume(out, data(), console=Silent(), on_start=lambda session: session.hooks.append(Saves()))
    except SfumatoError as error:
        if "has already trained" not in str(error):
            raise


class Disk:
    """Counts the calls of the file system in a folder, with a fault at the one numbered `at`."""

    def __init__(self, root: Path, at: int, fault: str) -> None:
        self.root, self.at, self.fault, self.count = str(root), at, fault, 0

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        io.open = builtins.open = self._opened(io.open)  # pathlib takes the first
        safetensors.torch.save_file = self._saved(safetensors.torch.save_file)

    def _event(self, what: str, part: Callable[[], object] = lambda: None) -> None:
        """part: does half of what the call would do."""
        self.count += 1
        if self.count != self.at:
            return
        part()
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]), what)

    def _within(self, given: tuple[Any, ...]) -> bool:
        return isinstance(given[0], int) or os.fspath(given[0]).startswith(self.root)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            if self._within(given):
                self._event(name)
            return call(*given, **named)

        return counted

    def _opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
            if isinstance(path, int) or not self._within((path,)) or not set(mode) & set("wax+"):
                return call(path, mode, *given, **named)
            self._event("open")
            return Written(call(path, mode, *given, **named), self)

        return opened

    def _saved(self, call: Callable[..., None]) -> Callable[..., None]:
        """safetensors writes by itself, and has an error of its own."""

        def saved(tensors: Any, path: str, **named: Any) -> None:
            def half() -> None:
                call(tensors, path, **named)
                os.truncate(path, os.path.getsize(path) // 2)

            try:
                self._event("write", half)
            except OSError as error:
                words = f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})"
                raise SafetensorError(words) from None
            call(tensors, path, **named)

        return saved


class Written:
    """A file whose writes are events."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, text: Any) -> int:
        def half() -> None:
            self._file.write(text[: len(text) // 2])
            self._file.flush()

        self._disk._event("write", half)
        return self._file.write(text)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def whole(out: Path) -> None:
    """Every file with its final name can be read; of the log all but its last line."""
    for path in out.rglob("*"):
        if path.is_dir() or path.name.startswith("."):
            continue
        if path.suffix == ".safetensors":
            files.read_sealed(path)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
        elif path.suffix == ".yaml":
            assert len(yaml.safe_load(path.read_text("utf-8"))) > 30, path
        elif path.suffix == ".html":
            assert path.read_text("utf-8").rstrip().endswith("</html>"), path
    log = out / "metrics.jsonl"
    if log.exists():
        [json.loads(line) for line in log.read_text("utf-8").splitlines()[:-1]]


def facts(out: Path) -> dict[str, Any]:
    """What two runs must have in common."""
    _, tensors, notes = checkpoint.latest(out)
    assert not notes, notes
    lines = [{k: v for k, v in line.items() if k not in TIMED} for line in folder.read(out / "metrics.jsonl")]
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.parent.name != "samples")
    _, model = files.read_sealed(out / "model.safetensors")
    return {"tensors": dict(tensors), "model": model, "lines": lines, "names": names}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return one == other


def forked(work: Callable[[], None], quiet: bool = False) -> str:
    """How a child ended that did the work: "", an error's text, or "killed"."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        words = ""
        try:
            work()
        except SfumatoError as error:
            words = f"sentence: {error}"
        except BaseException as error:
            words = f"{type(error).__name__}: {error}"
        os.write(write, words.encode()[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        words = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else words


def events(root: Path) -> int:
    """The number of events of a run without a fault."""
    read, write = os.pipe()
    put = os.write

    def work() -> None:
        disk = Disk(root / "counted", 0, "")
        disk.install()
        train(root / "counted")
        put(write, str(disk.count).encode())

    assert forked(work) == ""
    return int(os.read(read, 20))


def trial(out: Path, at: int, fault: str, reference: dict[str, Any]) -> dict[str, Any]:
    def first() -> None:
        Disk(out, at, fault).install()
        train(out)

    def second() -> None:
        whole(out)
        go_on(out)
        whole(out)
        found = facts(out)
        if fault != "kill":  # an old file that could not be deleted waits for the next one, of which there may be none
            kept = {name for name in found["names"] if name.startswith(("checkpoints/", "averages/"))}
            found["names"] = sorted(set(found["names"]) - (kept - set(reference["names"])))
        wrong = [name for name in reference if not same(found[name], reference[name])]
        assert not wrong, f"other {', '.join(wrong)}: {found['names'] if 'names' in wrong else ''}"

    made = {"event": at, "fault": fault, "first": forked(first), "then": forked(second)}
    shutil.rmtree(out, ignore_errors=True)
    return made


def leave_out_curves() -> None:
    """Pictures stay blank: matplotlib takes nine tenths of the time of such a run, and touches no file."""
    board_page.chart = report.chart = lambda *_, **__: "<svg></svg>"
    pictures._scatter = lambda _: Image.new("RGB", (8, 8))


def main(place: Path, faults: Sequence[str], every: int) -> None:
    """Every so many events have one of the faults, in turn."""
    torch.set_num_threads(1)
    leave_out_curves()
    train(place / "reference")
    reference = facts(place / "reference")
    total = events(place)
    print(json.dumps({"events": total}), flush=True)
    for at, fault in zip(range(1, total + 1, every), itertools.cycle(faults), strict=False):
        print(json.dumps(trial(place / "run", at, fault, reference)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3:], int(sys.argv[2]))
