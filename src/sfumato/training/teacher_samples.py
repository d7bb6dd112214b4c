"""Samples of a teacher, which a student learns from where no data are given, drawn in parts that are kept.

RUN/teacher_samples.json       what is asked for: of which teacher, by which seed, how many
RUN/teacher_samples-00000.npz  a part, by the number of its first sample, until all are there
RUN/teacher_samples.npz        all of them; of text .jsonl
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato import machine, noise, schema
from sfumato.conditions import declared
from sfumato.data.text import END
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError, whole
from sfumato.files import atomic, remove, write_text
from sfumato.guidance import SCALE
from sfumato.process import source_of
from sfumato.progress import clock, counting
from sfumato.sampling import BATCH, sample
from sfumato.text_samples import sample_text
from sfumato.training.config import budget
from sfumato.training.ladder import in_turn

MOST, LEAST, SHARE = 4096, BATCH, 0.2  # samples; of the minutes, what drawing them may take
SAMPLES, TEXTS, ASKED = "teacher_samples.npz", "teacher_samples.jsonl", "teacher_samples.json"  # in a run folder
_COUNT, _LARGEST = schema.optional(schema.whole(1)), 1 << 20
_FIELDS = schema.fields(
    {"file": schema.choice(SAMPLES, TEXTS), "teacher": schema.text, "seed": schema.whole(), "samples": _COUNT,
     "minutes": schema.optional(schema.number()), "number": _COUNT, "part": _COUNT},
    {"request": schema.text},
)  # fmt: skip
_INSTEAD = "pass the training data, data= (--data)"


def number(seconds: float, minutes: float, least: int = LEAST) -> int:
    """How many samples of `seconds` each take SHARE of the minutes, from `least` to MOST."""
    return max(least, min(MOST, int(SHARE * 60 * minutes / max(seconds, 1e-9))))


def ask(path: Path, teacher: Any, words: str, settings: dict[str, Any], request: str = "") -> Path:
    """The file in a run folder that `draw` makes, of as many samples as the settings say, or as suit their minutes.

    words: which teacher it is. What is there of the same samples is kept, other ones are deleted. request: of which
    run they are (`awaited`).
    """
    _require_classes_alone(teacher, _INSTEAD)
    count, minutes = settings.get("samples"), settings.get("minutes")
    count = None if count is None else affordable(count, teacher)
    if minutes is None and settings.get("steps") is None:  # the minutes of training on them
        minutes = budget(MOST, math.prod(teacher.shape))
    file = path / (SAMPLES if getattr(teacher.spec, "text", None) is None else TEXTS)
    asked = {"file": file.name, "teacher": words, "seed": settings.get("seed", 0), "samples": count, "minutes": minutes}
    if (path / ASKED).exists() and asked.items() <= (before := _asked(path)).items():
        _write(path / ASKED, {**before, "request": request})
        return file
    for each in (file, *_parts(file)):
        remove(each)
    number = MOST if count is None and minutes is None else count
    _write(path / ASKED, {**asked, "number": number, "part": None, "request": request})
    return file


def affordable(count: Any, teacher: Any) -> int:
    """The count. Raises SfumatoError unless it is one of samples that fit into the free memory."""
    count = whole("samples", count, least=2)
    needed = 8.0 * count * math.prod(teacher.shape)  # of all and of their parts, where they are joined
    machine.affordable(needed, f"{count:,} samples of the teacher", "take fewer.")
    return count


def awaited(path: Path, request: str = "") -> bool:
    """Whether samples that a run folder asks for are still to be drawn, all or some; for this request, if one is
    given."""
    if not (path / ASKED).exists():
        return False
    asked = _asked(path)
    return request in ("", asked.get("request")) and not (path / asked["file"]).exists()


def any_drawn(path: Path) -> bool:
    """Whether a run folder has samples of a teacher, all or some."""
    return any(each.exists() or _parts(each) for each in (path / SAMPLES, path / TEXTS))


def draw(path: Path, teacher: Any, world: World = ALONE, note: Callable[[str], None] = lambda line: None) -> None:
    """Draw what `ask` has asked for and is not yet there. note: told how many, where the minutes of the run say so."""
    asked = world.broadcast_result(lambda: _asked(path))
    file, size = path / asked["file"], asked["part"] or BATCH * world.size
    there = world.broadcast_result(lambda: _parts(file))
    made = dict[int, Any]()
    some = partial(_arrays if file.name == SAMPLES else _texts, teacher, seed=asked["seed"], world=world)
    if asked["number"] is None:
        start = time.monotonic()
        made[0] = some(torch.arange(size))
        seconds = world.broadcast((time.monotonic() - start) / size)
        asked |= {"number": (count := number(seconds, asked["minutes"], size))}
        note(_said(count, seconds))
    if there:
        note(f"{min(len(there) * size, asked['number']):,} samples of the teacher are there already, in {path}.")
    if asked["part"] is None:
        world.broadcast_result(lambda: _write(path / ASKED, {**asked, "part": size}))
    parts = dict[Path, int]()
    with counting("Drawing samples of the teacher", asked["number"]) as drawn:
        for index in torch.arange(asked["number"]).split(size):
            first = int(index[0])
            one = file.with_stem(f"{file.stem}-{first:05d}")
            if one not in there:
                world.broadcast_result(partial(_write, one, made.pop(first) if first in made else some(index)))
            drawn(len(index))
            parts[one] = len(index)
    world.broadcast_result(lambda: _join(file, parts))


def drawn(
    teacher: Any, count: int, seed: int, world: World = ALONE, instead: str = _INSTEAD
) -> tuple[Any, list[str] | None]:  # fmt: skip
    """(samples of a teacher in the user's units, their labels); each class is drawn equally often.

    instead: what to do about other conditions, for the error.
    """
    _require_classes_alone(teacher, instead)
    parts = []
    with counting("Drawing samples of the teacher", count) as done:
        for index in torch.arange(count).split(BATCH * world.size):
            parts.append(_arrays(teacher, index, seed, world))
            done(len(index))
    labels = [each for part in parts for each in part["y"]] if "y" in parts[0] else None
    if isinstance(parts[0]["x"], list):
        return [each for part in parts for each in part["x"]], labels
    return torch.cat([part["x"] for part in parts]), labels


def _require_classes_alone(teacher: Any, instead: str) -> None:
    told = in_turn(teacher, 1)
    other = next((name for name in declared(teacher) or {} if name not in ("label", *told)), None)
    if other is not None:
        pairs = "" if source_of(teacher.process) is None else ", with what each starts from, sources= (--from)"
        raise SfumatoError(f"The model has the condition {other!r}, whose values only data have: {instead}{pairs}.")


def _arrays(teacher: Any, index: Tensor, seed: int, world: World) -> dict[str, Any]:
    """Samples by their numbers, x, with their labels y, and scales spread evenly over the teacher's range of them."""
    cond = {name: each[int(index[0]) :] for name, each in in_turn(teacher, int(index[-1]) + 1).items()}
    if SCALE in cond:
        (low,), (high,) = teacher.known.low, teacher.known.high
        cond[SCALE] = (low + (high - low) * noise.spread(seed, index, noise.DATA)).tolist()
    x = sample(teacher, seed=seed, index=index, cond=cond, world=world)
    return {"x": x, **{"y" if name == "label" else name: each for name, each in cond.items()}}


def _texts(teacher: Any, index: Tensor, seed: int, world: World) -> dict[str, Any]:
    """Documents."""
    return {"text": [each for one in sample_text(teacher, seed=seed, index=index) for each in one.split(END) if each]}


def _said(count: int, seconds: float) -> str:
    return (
        f"The student learns from {count:,} samples of the teacher, drawn in about {clock(count * seconds)}: as many "
        f"as take a fifth of the minutes, from {LEAST} to {MOST:,} (--samples sets the number; --data takes data)."
    )


def _asked(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = schema.json_of(schema.read_text(path / ASKED, _LARGEST), path / ASKED)
    schema.require(found, _FIELDS, path / ASKED)
    return found


def _parts(file: Path) -> list[Path]:
    """The parts of a file of samples that are there, in order."""
    return sorted(file.parent.glob(f"{file.stem}-*{file.suffix}"))


def _write(path: Path, made: dict[str, Any]) -> None:
    if path.suffix == ".npz":
        columns: dict[str, Any] = {name: np.asarray(each) for name, each in made.items()}
        with atomic(path) as draft, draft.open("wb") as file:
            np.savez(file, **columns)
        return
    rows = [{"text": each} for each in made["text"]] if path.suffix == ".jsonl" else [made]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _join(file: Path, parts: dict[Path, int]) -> None:
    """Make one file of the parts, of so many samples each."""
    if file.suffix == ".npz":
        held = [_columns(part, count) for part, count in parts.items()]
        _write(file, {name: np.concatenate([each[name] for each in held]) for name in held[0]})
    else:
        write_text(file, "".join(part.read_text("utf-8") for part in parts))
    for part in _parts(file):
        remove(part)


def _columns(part: Path, count: int) -> dict[str, Any]:
    """The arrays of a part, which is deleted if it is not what was written."""
    try:
        with np.load(part) as held:
            found = {name: held[name] for name in held.files}
    except Exception:  # zipfile, zlib and NumPy raise what they please at spoilt files
        found = {}
    if "x" not in found or any(len(each) != count for each in found.values()):
        remove(part)
        raise SfumatoError(f"{part} was spoilt, and is deleted: give the same command again, which draws it anew.")
    return found
