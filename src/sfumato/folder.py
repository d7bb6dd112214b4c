"""A run folder: config.yaml metrics.jsonl samples/ averages/ report.html checkpoints/ model.safetensors."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sfumato import schema
from sfumato.errors import SfumatoError, place
from sfumato.files import Busy, locked, no_links, reason, sweep, write_text
from sfumato.serialization import FILE

INCIDENTS, LOCK = "incident.json", ".lock"
DRAFTS = ".*.shards"  # checkpoints in shards that are being written (`training.shards`)
_LARGEST = 1 << 30  # bytes of a log
_FIGURE, _ROWS = schema.optional(schema.figure), schema.listed(schema.whole(0))
_LINE = schema.fields(
    {"step": schema.whole(0), "samples": schema.whole(1)},
    {
        **dict.fromkeys(("epoch", "fraction", "lr", "eta", "rate"), schema.figure),
        **dict.fromkeys(("valid_grad_square", "valid_grad_variance"), schema.figure),
        **dict.fromkeys(("loss", "grad_norm", "data_wait"), _FIGURE), "elapsed": schema.number(-1e12, 1e12),
        **{f"triples_{name}": schema.listed(schema.number()) for name in ("raw", "ema", "train")},
        **{f"bins_{name}": schema.listed(schema.number()) for name in ("edges", "logsnr", "weight")},
        "bins_density": schema.listed(schema.number(1e-300)), "triples_sample": _ROWS,
        "triples_levels": schema.whole(1), "done": schema.flag,
    },
)  # fmt: skip
_KINDS = {"valid_": _FIGURE, "bins_": schema.optional(schema.listed(_FIGURE)), "bands_": schema.listed(schema.anything)}
_SKIPPED = schema.listed(
    schema.fields(
        {"step": schema.whole(0), "where": schema.text, "lr": schema.number(0)},
        {"samples": _ROWS, "rows": _ROWS, "precision": schema.text, "rolled_back": schema.optional(schema.whole(0))},
    )
)


def _line(value: Any, where: str) -> None:
    """The check of a line of the log: types, and that columns of one table have one length."""
    _LINE(value, where)
    for kind, check in _KINDS.items():
        for name in value:
            if name.startswith(kind):
                check(value[name], name)
    for kind in ("triples_", "bins_"):
        columns = {name: each for name, each in value.items() if name.startswith(kind) and isinstance(each, list)}
        size = {len(each) - (name == "bins_edges") for name, each in columns.items()}
        if columns and (len(size) > 1 or min(size) < 1):
            raise SfumatoError(f"{kind}*: expected columns of one length.")
    lacking = sorted(name for name in _belonging(value) if value.get(name) is None)
    if lacking:
        raise SfumatoError(f"the key {lacking[0]!r} is missing, which belongs to others that are there.")


def _belonging(line: Mapping[str, Any]) -> set[str]:
    """The keys of a line that its others need beside them."""
    needed: set[str] = set()
    if any(name.startswith("triples_") for name in line):
        needed |= {"triples_sample", "triples_levels", "triples_raw"}
    if "bins_edges" in line:
        needed |= {f"bins_{name}" for name in ("logsnr", "weight", "density")}
        for name in ("raw", "ema", "trivial"):
            if line.get(f"bins_{name}") is not None:
                needed |= {f"bins_{name}_stderr", f"bins_loss_{name}", f"bins_loss_{name}_stderr"}
    if line.get("bins_grad_square") is not None:
        needed |= {f"bins_grad_{name}{error}" for name in ("square", "variance") for error in ("", "_stderr")}
        needed |= {"valid_grad_square", "valid_grad_variance"}
    return needed


_SIGNS = ("config.yaml", "checkpoints", FILE)  # a folder with any of these is a run
_NAME = re.compile(r"step_(\d+)(?:-(\d+))?(\.safetensors)?")


def is_run(path: Path) -> bool:
    return any((path / name).exists() for name in _SIGNS)


def begun(path: Path) -> bool:
    """Whether a run folder holds results: a checkpoint, a model or a line of the log."""
    log = path / "metrics.jsonl"
    return bool(found(path)) or (path / FILE).exists() or (log.exists() and log.stat().st_size > 0)


@contextmanager
def new(
    out: str | None, name: str, again: Callable[[Path], bool] | None = None, made: list[Path] | None = None
) -> Iterator[Path]:
    """Create a folder for a new run and hold it (`held`) within the block.

    A run that was killed before its first checkpoint may be begun again; without `out`, where again(folder) says that
    it is the same run. made: is told which folders are created, inner ones first. Raises SfumatoError if the folder
    holds any other run or cannot be written.
    """
    with ExitStack() as stack:
        if out is None:
            path = next(each for each in _candidates(name) if _free(each, stack, again, made))
        else:
            path = _chosen(out)
            stack.enter_context(_created(path, made))
        yield path


def _free(path: Path, stack: ExitStack, again: Callable[[Path], bool] | None, made: list[Path] | None) -> bool:
    """Begin a run in a folder that holds none; False if another process has begun one meanwhile."""
    with suppress(Busy):
        if not is_run(path) or (again is not None and again(path)):
            stack.enter_context(_created(path, made))
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
def _created(path: Path, made: list[Path] | None = None) -> Iterator[None]:
    lacking = [each for each in (path, *path.parents) if not each.exists()]
    with _writing(path, " Give another --out."):
        path.mkdir(parents=True, exist_ok=True)
    if made is not None:
        made.extend(lacking)
    with held(path):
        if begun(path):
            raise SfumatoError(f"{path} already holds a run: continue it with `sfumato resume {path}` or set --out.")
        with _writing(path, " Give another --out."):
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


def is_held(path: Path) -> bool:
    """Whether another process trains in a run folder, as far as the locks of its file system tell."""
    try:
        with locked(path / LOCK):
            return False
    except Busy:
        return True
    except OSError:  # there is no lock
        return False


@contextmanager
def _writing(path: Path, hint: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SfumatoError(f"The run folder {path} cannot be written: {reason(error)}.{hint}") from None


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
    """The lines of a metrics.jsonl, without an incomplete last one. Raises SfumatoError, which names line and key."""
    texts = schema.read_text(path, _LARGEST).split("\n") if path.exists() else [""]
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = schema.json_of(text, f"{path}, line {number}")
        except SfumatoError:
            if number == len(texts):  # being written, or cut short by a kill
                break
            raise
        schema.require(line, _line, f"{path}, line {number}")
        lines.append(line)
    if len({len(line["bins_grad_square"]) for line in lines if line.get("bins_grad_square") is not None}) > 1:
        raise SfumatoError(f"{path}: its lines have different numbers of bins_grad_square.")
    return lines


def incidents(run: Path) -> list[dict[str, Any]]:
    """The skipped steps (`guard.Incident`) in incident.json; empty if there is no such file."""
    path = run / INCIDENTS
    found: list[dict[str, Any]] = schema.json_of(schema.read_text(path, _LARGEST), path) if path.exists() else []
    schema.require(found, _SKIPPED, path)
    return found


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
