"""The process that a forecast is measured in: a run of its own, in a folder that goes, told to `forecast` as JSON.

    python -m sfumato.training.calibration JOB.json RESULT.json

It starts as `sfumato train` does, takes some steps with the run's own loop, and then does once, in their order, all
that a run does beside them, so that its largest memory is a run's largest memory and every cost is one that was paid.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from sfumato import artefact, registry, sampling
from sfumato.data import Source
from sfumato.data.column import unpacked
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.machine import memory
from sfumato.machine.memory import available
from sfumato.machine.parts import out_of_memory
from sfumato.plans import make_plan
from sfumato.training import checkpoint, compiling, occasions, snapshots
from sfumato.training.config import from_dict
from sfumato.training.console import Silent
from sfumato.training.costs import BASE64, Costs, Snapshots, Twice, step_seconds, steps_of
from sfumato.training.costs import loop as summed
from sfumato.training.judging import Labelled, judge
from sfumato.training.loop import Progress, fit
from sfumato.training.precision import compute_dtype, device_of
from sfumato.training.report import write as write_report
from sfumato.training.run import prepared
from sfumato.training.session import Session
from sfumato.training.state import State

FIRST, STEPS = 4, 20  # steps that are slower, and those that are measured, at least
_LEAST, _MOST = 2.0, 400  # seconds that are measured where steps are short, and steps then
_DEPTH = 4  # of gradients by noise level; more take as much longer


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def steps(state: State, run: Iterator[Progress]) -> tuple[list[float], list[float], list[Progress]]:
    """(seconds of the first steps, seconds of the others, what they told) of a run's loop.

    Where memory does not suffice and parts are halved, or the number of threads changes, all begins anew with these.
    """
    first: list[float] = []
    found: list[float] = []
    told: list[Progress] = []
    ways, start = (state.micro, torch.get_num_threads()), time.perf_counter()
    for progress in run:
        now, way = time.perf_counter(), (state.micro, torch.get_num_threads())
        (first if len(first) < FIRST else found).append(now - start)
        told.append(progress)
        if way != ways:
            first, found, ways = [], [], way
        if len(found) >= _MOST or len(found) >= STEPS and sum(found) >= _LEAST:
            break
        start = time.perf_counter()
    return first, found, told


def validation(session: Session, total: float) -> tuple[Twice, float, tuple[float, float], int]:
    """(seconds of losses, seconds of gradients beyond, work of both, bytes in the log) of a run of `total` samples."""
    (training, holdout), state = session.parts(), session.state
    if holdout is None:
        return Twice(0.0, 0.0), 0.0, (0.0, 0.0), 0
    measure = judge(state, session.config, *holdout, Labelled(*training), total)
    average = state.ema.denoiser if state.ema else None
    first, later = (timed(lambda: measure.measure(state.denoiser, average)) for _ in range(2))
    _, seldom, depth = occasions.validations(*measure.cost, total)
    depth, gradients = min(depth, _DEPTH), 0.0
    found = measure.measure(state.denoiser, average)
    if seldom:
        start = time.perf_counter()
        found = measure.measure(state.denoiser, average, state.samples, depth)
        gradients = max(0.0, time.perf_counter() - start - later) / depth
    work = (measure.cost.losses, measure.cost.gradients)
    return Twice(first, later), gradients, work, len(json.dumps(found.to_dict()))


def rehearse(session: Session, started: float) -> tuple[Costs, int]:
    """(what everything costs that a run does, done once; threads that it computed with)."""
    path, config = session.path, session.config
    write_text(path / "config.yaml", config.to_yaml())
    session.save()
    one = {"settings": _bytes(path / "config.yaml")}
    start = time.time() - started
    endless = config.replace(steps=1 << 40) if config.steps else config.replace(minutes=1e9)
    if config.compile == "auto":  # what a long run may gain by what is compiled beside it cannot be promised
        endless = endless.replace(compile="never")
    (x, cond), _ = session.parts()
    loop: Any = fit(session.denoiser, x, endless, cond, None, session.state)
    with closing(loop):  # which holds what it has freed, and so does all that happens between steps
        first, found, told = steps(session.state, loop)
        one["line"] = _log(session, told)
        none = Twice(0.0, 0.0)  # for how many steps there will be, about
        guess = Costs(start, first, found, none, 0.0, (0.0, 0.0), none, Snapshots(0.0, 0.0, 0.0, 1), 0.0, 0.0, {})
        many = steps_of(guess, config, step_seconds(found).value)
        total = float(many * config.batch)
        losses, gradients, work, one["validation_line"] = validation(session, total)
        averages = _snapshots(session, one)
        asked = config.sample_every is not None or session.halfway(total)
        grid = _grids(session, occasions.grids(config, many) if asked else 0, total, one)
        saving = timed(lambda: session.save(model=True)) + timed(lambda: write_report(path))
        threads = torch.get_num_threads()
    known = Costs(start, first, found, losses, gradients, work, grid, averages, saving, 0.0, one)
    state, seconds = session.state, summed(known, config, many, step_seconds(found).value)[0]
    state.step, state.samples, state.elapsed = many, many * config.batch, max(seconds, 60 * (config.minutes or 0.0))
    return dataclasses.replace(known, end=_end(session, one)), threads


def _end(session: Session, one: dict[str, int]) -> float:
    """Seconds of what follows the last step; bytes of all that is left. The counters are those of the run's end."""
    path = session.path
    seconds = timed(session.end) + timed(lambda: write_report(path)) + timed(lambda: artefact.load(path))
    pictures = [_bytes(each) for each in sorted((path / "samples").glob("step_*.png"))]
    one["checkpoint"], one["model"] = _bytes(checkpoint.found(path)[0]), _bytes(path / artefact.FILE)
    one["last_grid"] = pictures[-1] if pictures else 0
    one["report"] = max(0, _bytes(path / "report.html") - round(BASE64 * sum(pictures)))
    one["settings"] += sum(_bytes(each) for each in path.glob("*.json"))
    one["copies"] = _bytes(path / "samples") - sum(pictures)
    return seconds


def _log(session: Session, told: list[Progress]) -> int:
    """Write the lines of a run's log; bytes of one."""
    assert session.log is not None
    lines = [progress.to_dict() for progress in told if progress.loss is not None]
    for line in lines:
        session.log.write(line)
    return max(len(json.dumps(line)) + 1 for line in lines)


def _snapshots(session: Session, one: dict[str, int]) -> Snapshots:
    """Seconds of one that stands alone, of one that says what changed, and of another after that."""
    one["snapshot"] = one["change"] = 0
    averages, state = session.state.averages, session.state
    if averages is None:
        return Snapshots(0.0, 0.0, 0.0, snapshots.STRETCH)
    found: list[Path] = []

    def write() -> None:
        step = state.step + len(found)
        found.append(snapshots.write(session.path, averages.snapshot(), step, state.samples))

    alone, change, third = (timed(write) for _ in range(3))
    one["snapshot"], one["change"] = _bytes(found[0]), _bytes(found[1])
    return Snapshots(alone, change, max(0.0, third - change), snapshots.STRETCH)


def _grids(session: Session, count: int, total: float, one: dict[str, int]) -> Twice:
    """Seconds of the grids on the way: the first, and where there are more another one."""
    one["grid"] = 0
    if not count:
        return Twice(0.0, 0.0)
    if not hasattr(session.denoiser, "process"):
        seconds = timed(session.reconstructions)
        return Twice(seconds, seconds)
    layout, found = session.layout(total, False), []
    first = timed(lambda: found.append(session.grid(layout)))
    later = timed(lambda: session.grid(layout)) if count > 1 else first
    one["grid"] = _bytes(found[0])
    return Twice(first, later)


def _bytes(path: Path) -> int:
    """Of a file, or of all that is in a folder."""
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())


def train(job: dict[str, Any], free: dict[str, int | None]) -> dict[str, Any]:
    """What the run that a job names costs, and what it consists of."""
    settings = from_dict(job["config"])
    device = device_of(settings.device)
    handed = "source" in job
    data, labels = (_source(job["source"]), None) if handed else (settings.data, job.get("labels"))
    settings, source, denoiser = prepared(data, labels, settings.replace(labels=None) if handed else settings, device)
    state, path = State(denoiser, settings), Path(job["run"])
    (path / "samples").mkdir(parents=True)
    (path / "checkpoints").mkdir()
    session = Session(path, settings.replace(out=str(path), loggers=None), source, state, Silent())
    try:
        costs, threads = rehearse(session, job["started"])
    finally:
        session.close()
    facts = {**_facts(session, device), "threads": threads}
    return {"facts": facts, "config": settings.to_dict(), "costs": vars(costs), "memory": _held(device) | free}


def _facts(session: Session, device: torch.device) -> dict[str, Any]:
    source, denoiser = session.source, session.denoiser
    assert denoiser.spec is not None
    dtype = denoiser.compute_dtype or torch.float32
    return {
        "data": source.name, "samples": len(source), "train": len(session.train), "holdout": len(session.holdout),
        "shape": list(source.shape), "dtype": denoiser.spec.dtype, "classes": len(source.classes),
        "conditions": list(denoiser.spec.conditions), "notes": source.notes, "network": type(denoiser.net).__name__,
        "parameters": sum(p.numel() for p in denoiser.parameters()), "device": str(device),
        "precision": str(dtype).removeprefix("torch."),
        "micro": min(session.state.micro, session.config.batch), "compile": compiling.when(denoiser, session.config),
    }  # fmt: skip


def sample(job: dict[str, Any], free: dict[str, int | None]) -> dict[str, Any]:
    """What `sfumato sample RUN` costs: ten of each class, or 64 samples, in one batch of at most 256."""
    settings = from_dict(job["config"])
    device = device_of(settings.device)
    denoiser = artefact.load(job["run"], device=device)
    denoiser.compute_dtype = compute_dtype("auto", device)  # as the command does, whatever the training had
    assert denoiser.spec is not None
    if not hasattr(denoiser, "process"):  # an autoencoder draws no samples
        return {"number": 0, "steps": 0, "seconds": 0.0, "memory": _held(device) | free}
    classes = len(denoiser.spec.classes)
    number = 10 * classes if 0 < classes <= 20 else 64
    options: dict[str, Any] = {"guidance": settings.guidance} if classes else {}
    plan = make_plan(denoiser, None, None, **options)
    if classes:
        options["label"] = torch.arange(number) % classes
    seconds = timed(lambda: sampling.sample(denoiser, number, solver=plan, **options))
    return {"number": number, "steps": plan.steps, "seconds": seconds, "memory": _held(device) | free}


def _held(device: torch.device) -> dict[str, int | None]:
    """Bytes at most of this process, and of an accelerator's allocator."""
    own: dict[str, int | None] = {"held": memory.held()}
    return own if device.type == "cpu" else own | {"device_held": torch.cuda.max_memory_reserved(device)}


def _free(device: torch.device) -> dict[str, int | None]:
    """Bytes that this process may hold, of the machine and of an accelerator."""
    room, now = available(), memory.held(largest=False) or 0
    own: dict[str, int | None] = {"free": int(room) + now if math.isfinite(room) else None}
    return own if device.type == "cpu" else own | {"device_free": torch.cuda.mem_get_info(device)[0]}


def _source(facts: dict[str, Any]) -> Source:
    """Data that was in the memory of the process that asks (`forecast`)."""
    from safetensors.torch import load_file

    tensors = load_file(facts.pop("path"))
    bounds, conditions = facts.pop("bounds"), unpacked(tensors, facts.pop("conditions"))
    source = Source(tensors["x"], None, [], bounds=None if bounds is None else tuple(bounds), **facts)
    return source.having(conditions)


def main() -> None:
    given, result = sys.argv[1:]
    job = json.loads(Path(given).read_text(encoding="utf-8"))
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    memory.yielding()
    for path in job.get("modules", ()):
        registry.add_file(path)
    free: dict[str, int | None] = {}
    try:
        device = device_of(job["config"]["device"])
        free = _free(device)
        with memory.limited():
            told = {"train": train, "sample": sample}[job["what"]](job, free)
    except SfumatoError as error:
        told = {"error": str(error)}
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        told = {"out_of_memory": True, **free}
    Path(result).write_text(json.dumps(told, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
