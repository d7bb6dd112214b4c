"""`distill`: train a student that samples in few calls, and show what it is worth."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from sfumato import serialization
from sfumato.cli.plan import duration, page
from sfumato.cli.process import outliving_output
from sfumato.cli.run import Voice
from sfumato.cli.sample import guidance_scale
from sfumato.cli.train import console, following, working
from sfumato.conditions import declared
from sfumato.diagnostics.report import LADDER, beside, called
from sfumato.distillation import distill as train_student
from sfumato.distillation import in_words
from sfumato.distributed import World
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.machine import device_of
from sfumato.training import teacher_samples
from sfumato.training.console import Console
from sfumato.training.forecast import forecast
from sfumato.training.stages import complete

_FEW = 64  # samples of the teacher that a plan draws


@outliving_output()
def distill(options: Any, voice: Voice) -> None:
    calls = numbers(options.steps)
    teacher = serialization.load_sampler(options.model, device=device_of(options.device))
    scale: Any = options.guidance
    if not isinstance(scale, tuple):
        scale = guidance_scale(options, teacher, declared(teacher) or {})
    asked = {
        "method": options.method, "calls": calls, "guidance": scale, "interval": options.guidance_interval,
        "samples": options.samples,
    }  # fmt: skip
    settings = {"minutes": options.minutes, "seed": options.seed, "device": options.device}
    given = {"init": options.init, "sources": options.sources, "pairs": options.pairs}
    settings |= {name: value for name, value in given.items() if value is not None}
    with working(voice) as begin:
        if options.plan:
            _plan(options, asked, settings, voice, teacher)
            return
        run = train_student(
            options.model, options.out, options.data, options.labels, console=console(voice), on_start=begin,
            **asked, **settings,
        )  # fmt: skip
    facts = serialization.read_contract(run.path)
    ladder = ladder_of(run.path)
    rungs = ladder["rungs"] if ladder else []
    voice.emit(
        {"event": "done", "run": str(run.path), "model": facts["path"], "hash": facts["hash"], "ladder": rungs,
         "report": str(run.path / "report.html")}
    )  # fmt: skip
    voice.say(*climbed(ladder))
    voice.say("", f"Done: the run is in {run.path}", *following(run.path))


def _plan(options: Any, asked: dict[str, Any], settings: dict[str, Any], voice: Voice, teacher: Any) -> None:
    """The forecast of the run, in words or as JSON; nothing is kept. Of the samples of the teacher a few are drawn, and
    repeated."""
    wanted, drawing = options.samples, 0.0
    if wanted is not None:
        teacher_samples.affordable(wanted, teacher)
    with tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
        world, path = World(device=device_of(options.device)), Path(folder)
        asked |= {"samples": _FEW if wanted is None else min(wanted, _FEW)}
        stages, data = in_words(path, options.model, options.data, settings=settings, world=world, **asked)
        if not options.data:
            voice.note(f"Drawing {asked['samples']} samples of the teacher.")
            start = time.monotonic()
            complete(path, stages[-1]["loss"], options.device, Console())
            each = (time.monotonic() - start) / asked["samples"]
            wanted = teacher_samples.number(each, options.minutes) if wanted is None else wanted
            drawing = wanted * each
            _repeated(data, wanted)
        found = []
        for words in stages:
            voice.note(f"Timing a few steps of {words['loss'].partition('(')[0]}; nothing is kept.")
            found.append(forecast(data, options.out, options.labels, voice.note, **words))
    fits = {"fits": all(each.fits for each in found), "drawing": drawing}
    voice.emit({**found[-1].to_dict(), **fits, "before": [each.to_dict() for each in found[:-1]]})
    if drawing:
        voice.say(f"Before the run, {wanted:,} samples of the teacher are drawn: about {duration(drawing)}.")
    for number, each in enumerate(found, 1):
        voice.say(
            *(["", f"Stage {number} of {len(found)}, {each.config.loss.partition('(')[0]}:"] if found[1:] else [])
        )
        voice.say(*page(each))


def _repeated(path: Path, count: int) -> None:
    """Make a file of a few samples one of `count`, by repeating them."""
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(path, "".join(islice(cycle(lines), count)))
        return
    with np.load(path) as held:
        rows = {name: each[np.arange(count) % len(each)] for name, each in held.items()}
    np.savez(path, **rows)


def ladder_of(run: Path) -> dict[str, Any] | None:
    """The ladder that a student's run has ended with; None for other runs."""
    found: dict[str, Any] | None = json.loads((run / LADDER).read_text()) if (run / LADDER).exists() else None
    return found


def climbed(ladder: dict[str, Any] | None) -> list[str]:
    """A ladder and its advice as lines of text."""
    return [*table(ladder["rungs"]), ladder["advice"]] if ladder else []


def table(rungs: Sequence[dict[str, Any]]) -> list[str]:
    """A ladder as lines of text: the distances, and the metric with half the width of its interval."""
    found = {(rung["calls"], rung["how"]): rung for rung in rungs}
    title = "Distance to the model's own fine solution on the same noise, in standard deviations of the data:"
    lines = _columns(title, {at: f"{rung['rms']:.3f}" for at, rung in found.items()}, 12)
    known = {at: rung for at, rung in found.items() if rung.get("value") is not None}
    if known:
        name = next(iter(known.values()))["metric"].upper()
        cells = {at: beside(rung) for at, rung in known.items()}
        lines += _columns(f"{name} of these samples beside the fine solution's, 0 for one law, ± 95 %:", cells, 18)
    return lines


def _columns(title: str, cells: dict[tuple[int, str], str], width: int) -> list[str]:
    """A table of cells by (number of calls, way)."""
    ways = list(dict.fromkeys(way for _, way in cells))
    lines = ["", title, "  calls" + "".join(f"{called(way):>{width}}" for way in ways)]
    for count in sorted({count for count, _ in cells}):
        lines.append(f"{count:>7}" + "".join(f"{cells.get((count, way), '-'):>{width}}" for way in ways))
    return lines


def numbers(words: str) -> tuple[int, ...]:
    """The numbers of calls in "1,2,4"."""
    try:
        found = tuple(int(word) for word in words.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise SfumatoError(f"--steps are numbers of calls, such as 1,2,4, not {words!r:.60}.")
    return found
