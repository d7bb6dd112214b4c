"""Predict a run's time, memory and disk by doing a few of its steps, and everything it does between steps once.

    seconds = start + first steps + (n - first) step + sum over events of count * cost + end,   n steps

For a budget in minutes the sum is solved for n. The run's own loop and session do the work, on the real data, in this
process and in a temporary folder.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sfumato import registry, serialization
from sfumato.conditions import of_data
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.folder import Log, read
from sfumato.folder import found as checkpoints
from sfumato.guidance import guide
from sfumato.machine import available, device_of, out_of_memory, peak_memory
from sfumato.nets import Couplings, flops
from sfumato.nets.lora import trainable, unadapted
from sfumato.noised import evaluating
from sfumato.process import source_of
from sfumato.progress import counting
from sfumato.sampling import sample
from sfumato.solver_selection import make_plan
from sfumato.training import averages, stages
from sfumato.training.codes import AUTOENCODER
from sfumato.training.config import TrainConfig, from_dict
from sfumato.training.console import Silent
from sfumato.training.evaluation_schedule import log_every, validations
from sfumato.training.grids import halfway
from sfumato.training.guard import precision
from sfumato.training.hooks import usual
from sfumato.training.loop import Progress, fit
from sfumato.training.parts import Objects
from sfumato.training.run import in_words, own_modes, prepared
from sfumato.training.session import Session
from sfumato.training.state import State
from sfumato.training.validation import judge

FIRST, STEPS = 4, 20  # slower warm-up steps, and the least number of steps measured after them
_LEAST = 2.0  # seconds of measurement, at least


class Range(NamedTuple):
    """An estimate from the median step time, with its values at the 10 % and 90 % quantiles of the step time."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The time (seconds), memory and disk (bytes) that `sf.train` would need with the same data and settings.

    facts: data, samples, train, holdout, shape, dtype, classes, conditions, network, parameters, trained (the number of
    parameters that are), flops (of one call of the network on one sample, `nets.flops`; None for a network of the
    user's), device, precision, threads, micro (samples computed at once; fewer than a batch if memory is short), notes
    on the data. steps:
    optimiser steps in the budget; epochs: the same in epochs. step: median time of one. total: time of the whole run;
    parts: the same for its start, its steps, the work between them, the weights of rows of a table and its end. memory:
    train, the peak resident memory of this process while it rehearsed the run, and free, the memory that it may use;
    with an accelerator also device_train and device_free. disk: the run folder by parts, with total and free. sampling:
    number, steps and seconds of a default `sfumato sample`. before: of a latent model the forecast of its autoencoder,
    unless that is given; all else is then of the denoiser.
    """

    config: TrainConfig
    facts: dict[str, Any]
    steps: Range
    epochs: float
    step: Range
    total: Range
    parts: dict[str, float]
    memory: dict[str, int]
    disk: dict[str, int]
    sampling: dict[str, Any]
    before: tuple[Forecast, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether there is enough memory and disk space."""
        known, disk = self.memory, sum(each.disk["total"] for each in (*self.before, self))
        on_device = known.get("device_train", 0) <= known.get("device_free", 0)
        own = disk <= self.disk["free"] and known["train"] <= known["free"] and on_device
        return own and all(each.fits for each in self.before)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        named = {name: value._asdict() for name, value in vars(self).items() if isinstance(value, Range)}
        before = [each.to_dict() for each in self.before]
        return {**vars(self), **named, "config": self.config.to_dict(), "fits": self.fits, "before": before}


@dataclasses.dataclass
class Costs:
    """Seconds of each warm-up step (first), of each later step (warm), and of one of every other kind of work (one).

    work: cost of a validation in samples, for its losses and its gradients; one["validation"] is the time per sample.
    """

    config: TrainConfig
    first: list[float]
    warm: list[float]
    one: dict[str, float] = dataclasses.field(default_factory=dict)
    work: tuple[float, float] = (0.0, 0.0)

    @property
    def step(self) -> Range:
        """The median and the outer deciles of the step time, which a few slow steps do not change."""
        low, middle, high = np.quantile(self.warm, (0.1, 0.5, 0.9)).tolist()
        return Range(middle, low, high)

    def counts(self, steps: int, step: float) -> dict[str, float]:
        """How often a run of `steps` steps of `step` seconds does every other kind of work."""
        config, (losses, gradients) = self.config, self.work
        often, seldom, depth = validations(losses, gradients, float(steps * config.batch))
        every = config.sample_every or steps
        return {
            "validation": max(1, often) * losses + seldom * depth * gradients,
            "grids": int(steps > 1) if config.sample_every is None else (steps - 1) // every,
            "averages": min(config.snapshots, steps),
            "checkpoints": int(steps * step / (60 * config.checkpoint_every)),
        }

    def loop(self, steps: int, step: float) -> dict[str, float]:
        """Seconds of each kind of work in a loop of `steps` steps of `step` seconds."""
        alone = math.fsum(self.first[:steps]) + max(0, steps - len(self.first)) * step
        counts = self.counts(steps, step)
        return {"steps": alone, **{name: count * self.one.get(name, 0.0) for name, count in counts.items()}}

    def steps(self, step: float) -> int:
        """The number of optimiser steps in the budget: the smallest that uses it up."""
        if self.config.steps is not None:
            return self.config.steps
        budget = 60 * (self.config.minutes or 0.0)
        most = len(self.first) + math.ceil(budget / step)
        return 1 + bisect_left(range(1, most), budget, key=lambda n: math.fsum(self.loop(n, step).values()))


def forecast(
    data: Any, out: str | os.PathLike[str] | None = None, labels: Any = None,
    note: Callable[[str], None] = lambda line: None, **settings: Any,
) -> Forecast:  # fmt: skip
    """Predict the time, memory and disk that training would need: `sf.forecast("photos/", net="base", minutes=60)`.

    data, out, labels, settings: as for `sf.train`, but without objects. note: told what follows the timing of steps.
    Trains for about 24 steps and discards the result; only decoded images stay in the cache, for the run to use. The
    random state of the caller is unchanged.
    Raises SfumatoError for whatever `sf.train` would refuse, and if memory is too small even for one sample at a time.
    """
    chosen, labels = in_words(data, out, labels, settings)
    if chosen.cascade is not None:
        raise SfumatoError(
            "A cascade is trained in stages, and a plan is of one: plan each with --size and its share of the budget, "
            'all but the first with --loss "upscaling(factor=2)", too.'
        )
    if chosen.unclip or chosen.embedding is not None:
        raise SfumatoError(
            "An unCLIP pair is trained in two stages, and a plan is of one: plan the data without unclip and embedding "
            "on half of the budget, which the decoder takes; the prior is small."
        )
    device, given = device_of(chosen.device), Objects(said=frozenset(settings))
    latent = chosen.latent or chosen.autoencoder is not None
    with own_modes(device), tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
        try:
            return (_of_latent if latent else _measured)(data, labels, chosen, Path(folder), given, note)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise SfumatoError(
                "Training with these settings needs more memory than is free, even for one sample at a time: try a "
                "smaller --net or --size."
            ) from None


def _of_latent(
    data: Any, labels: Any, chosen: TrainConfig, path: Path, given: Objects, note: Callable[[str], None]
) -> Forecast:
    """The forecast of the denoiser, with that of its autoencoder, which is hardly trained here, before it."""
    place, last = path / AUTOENCODER, chosen
    before: tuple[Forecast, ...] = ()
    if chosen.autoencoder is not None and stages.is_file(chosen.autoencoder):
        place.mkdir()
        shutil.copyfile(serialization.locate(chosen.autoencoder), place / serialization.FILE)
    else:
        words = {"data": chosen.data, "labels": chosen.labels, "out": chosen.out, **stages.of_autoencoder(chosen)}
        before = (_measured(data, labels, from_dict(words), place, given, note),)
        last = chosen.replace(reconstruction=0, **stages.share_of_budget(chosen, 1 - stages.SHARE))
    found = _measured(data, labels, last.replace(latent=True, autoencoder=str(place)), path, given, note)
    notes = [each for each in found.facts["notes"] if not before or "The autoencoder explains" not in each]
    return dataclasses.replace(found, before=before, facts={**found.facts, "notes": notes})


def _measured(
    data: Any, labels: Any, chosen: TrainConfig, path: Path, given: Objects, note: Callable[[str], None]
) -> Forecast:
    start, free = time.perf_counter(), _free(device_of(chosen.device))
    config, source, model = prepared(data, labels, chosen, device_of(chosen.device), given)
    for part in ("samples", "checkpoints"):
        (path / part).mkdir(parents=True)
    own = config.replace(out=str(path), loggers=None)
    write_text(path / "config.yaml", own.to_yaml())
    with closing(usual(Session(path, own, source, State(model, own), Silent()))) as session:
        session.save()
        starting = time.perf_counter() - start
        costs, end, facts = _rehearsed(session, note)
        weighing = session.state.spent.get("calibration", 0.0)
        memory = {"train": peak_memory(), **free}
        if model.device.type == "cuda":
            memory["device_train"] = torch.cuda.max_memory_reserved(model.device)
        step, steps = costs.step, [costs.steps(each) for each in costs.step]
        loops = [costs.loop(*each) for each in zip(steps, step, strict=True)]
        disk, place = _disk(session, costs, steps[0]), Path(config.out or "runs").expanduser().absolute()
        room = shutil.disk_usage(next(each for each in (place, *place.parents) if each.exists())).free
        return Forecast(
            config=config, facts=facts, steps=Range(steps[0], min(steps), max(steps)),
            epochs=steps[0] * config.batch / facts["train"], step=step,
            total=Range(*(starting + math.fsum(each.values()) + end for each in loops)),
            parts={"start": starting, **loops[0], "weights of rows": weighing, "end": end - weighing}, memory=memory,
            disk={**disk, "total": sum(disk.values()), "free": room}, sampling=_sampling(session),
        )  # fmt: skip


def _rehearsed(session: Session, note: Callable[[str], None]) -> tuple[Costs, float, dict[str, Any]]:
    """(costs of steps and of the work between them, seconds of the end of a run, facts), by rehearsing them."""
    config, state, (x, cond) = session.config, session.state, session.parts()[0]
    loop: Any = fit(session.denoiser, x, config.replace(steps=1 << 40, minutes=None), cond, None, state)
    # everything runs while the loop is open, with its number of threads
    with closing(loop), closing(Log(session.path / "metrics.jsonl")) as log:
        taken = _steps(log, loop)
        costs = Costs(config, taken[:FIRST], taken[FIRST:])
        note("Timing a validation, samples and the end of the run.")
        many = costs.steps(costs.step.value)  # an estimate: no other work is measured yet
        _validate(session, log, costs, float(many * config.batch))
        if state.averages:
            weights = averages.tensors(state.averages)
            costs.one["averages"] = _timed(lambda: averages.write(session.path, weights, state.step, state.samples))
        seconds = math.fsum(costs.loop(many, costs.step.value).values())
        state.step, state.samples, state.elapsed = many, many * config.batch, max(seconds, 60 * (config.minutes or 0))
        state.spent.clear()
        first = _timed(session.report)  # includes loading matplotlib
        ending, report = _timed(session.end) + first, _timed(session.report)
        costs.one["checkpoints"] = state.spent["checkpoints"] + report
        if config.sample_every is not None or halfway(session):
            costs.one["grids"] = state.spent["grids"]
        return costs, ending + report + _timed(lambda: serialization.load(session.path)), _facts(session)


def _steps(log: Log, loop: Iterator[Progress]) -> list[float]:
    """Seconds of each step; writes the log as a run would."""
    found, last = list[float](), time.perf_counter()
    with counting("Timing steps", FIRST + STEPS) as count:
        for progress in loop:
            found.append(time.perf_counter() - last)
            count(len(found) <= FIRST + STEPS)
            if progress.loss is not None:
                log.write(progress.to_dict())
            if len(found) >= FIRST + STEPS and sum(found[FIRST:]) >= _LEAST:
                return found
            last = time.perf_counter()
    return found


def _validate(session: Session, log: Log, costs: Costs, total: float) -> None:
    """Validate once, as a run of `total` samples does."""
    (training, holdout), state = session.parts(), session.state
    if holdout is None:
        return
    measure, average = judge(state, session.config, *holdout, training, total), state.ema
    costs.work = (measure.cost.losses, measure.cost.gradients)
    deep = validations(*costs.work, total)[1] > 0  # whether the run will measure gradients at all
    start = time.perf_counter()
    found = measure.measure(state.denoiser, average.denoiser if average else None, state.samples if deep else None)
    costs.one["validation"] = (time.perf_counter() - start) / (costs.work[0] + deep * costs.work[1])
    log.write({**read(log.path)[-1], **found.to_dict()})


def _facts(session: Session) -> dict[str, Any]:
    source, denoiser = session.source, session.denoiser
    assert denoiser.spec is not None
    parameters, trained = trainable(denoiser)
    law = denoiser.spec.lengths
    return {
        "data": source.name, "samples": len(source), "train": len(session.train), "holdout": len(session.holdout),
        "shape": list(source.shape), "lengths": law and law.describe(source.shape[0]), "dtype": denoiser.spec.dtype,
        "classes": len(source.classes), "conditions": list(denoiser.spec.conditions), "notes": source.notes,
        "network": type(unadapted(denoiser.net)).__name__, "parameters": parameters, "trained": trained,
        "flops": _flops(denoiser.net), "device": str(denoiser.device), "precision": precision(denoiser),
        "threads": torch.get_num_threads(),
        "micro": min(session.state.micro, session.config.batch),
    }  # fmt: skip


def _flops(net: nn.Module) -> int | None:
    """The work of a network of this package, as long as it says the shape of a sample."""
    known = registry.ships("network", type(net).__name__) and hasattr(net, "shape")
    return flops(net) if known and not isinstance(net, Couplings) else None


def _disk(session: Session, costs: Costs, steps: int) -> dict[str, int]:
    """Bytes of the run folder by parts at the end of a run of `steps` steps."""
    path, config, counts = session.path, session.config, costs.counts(steps, costs.step.value)
    lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    often = max(1, validations(*costs.work, float(steps * config.batch))[0])
    more = int(counts["grids"]) if "grids" in costs.one else 0  # besides the one drawn here
    return {
        "checkpoints": (1 + bool(counts["checkpoints"])) * _bytes(checkpoints(path)[0]),
        "model": _bytes(path / serialization.FILE),
        "averages": int(counts["averages"]) * _bytes(*averages.found(path)),
        "samples": _bytes(*path.glob("samples/*")) + more * _bytes(*path.glob("samples/step_*.png")),
        "log": -(-steps // log_every(config)) * len(lines[0]) + often * len(lines[-1]),
        "other": _bytes(*path.glob("*.html"), *path.glob("*.json"), *path.glob("*.yaml")),
    }


def _bytes(*files: Path) -> int:
    return sum(each.stat().st_size for each in files)


def _sampling(session: Session) -> dict[str, Any]:
    """The size and seconds of a default `sfumato sample`: ten samples of each of up to 20 classes, or 64 samples."""
    best, classes = session.state.best, len(session.source.classes)
    if not hasattr(best, "process"):  # an autoencoder draws no samples
        return {"number": 0, "steps": 0, "seconds": 0.0}
    number = 10 * classes if 0 < classes <= 20 else 64
    alone = not classes or getattr(best, "two_times", False)  # a student's guidance is in its weights
    guided = best if alone else guide(best, session.config.guidance)
    plan: Any = make_plan(guided, None, None)
    cond: dict[str, Any] = {"label": torch.arange(number) % classes} if classes else {}
    if (name := source_of(best.process)) is not None:
        cond[name] = of_data(best.spec, session.source, torch.arange(number) % len(session.source.x))[name]
    with evaluating(best):
        seconds = _timed(lambda: sample(guided, number, solver=plan, cond=cond))
    return {"number": number, "steps": plan.steps, "seconds": seconds}


def _timed(work: Callable[[], Any]) -> float:
    """Seconds that work() takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _free(device: torch.device) -> dict[str, int]:
    """Bytes of memory that this process may use, on the machine and on an accelerator. Resets the peaks measured."""
    with suppress(OSError):  # only Linux can reset it; elsewhere the peak covers the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    found = {"free": int(available()) + peak_memory()}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        found["device_free"] = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return found
