"""What a run will take, before it is started: memory, time, disk, from a calibration of some steps in a fresh process.

The process (`calibration`) does what a run does, so that its largest memory is a run's; the sum of its costs over a run
is `costs`. A second one loads the model that the first has left and samples it. No torch here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sfumato import registry
from sfumato.errors import SfumatoError
from sfumato.training import costs as sums
from sfumato.training.config import TrainConfig, from_dict
from sfumato.training.costs import Costs, Interval


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What `sf.train` would take with the same data and settings. Seconds, bytes.

    facts: data, samples, train, holdout, shape, dtype, classes, conditions, network, parameters, device, precision,
    threads, micro (samples that are computed at once; fewer than a batch where memory does not suffice), notes of the
    data, compile (when the network is: never; before the first step, which the total then holds; or beside the run,
    whose gain nobody knows before: then the time of steps is an upper figure, and steps of a budget in minutes are a
    lower one).
    steps: of the optimiser, in the budget; epochs. step: seconds of one; thousand: of 1,000 with all that is between
    them; total: of the process, with start and end; loop: its parts, without them. memory: train and sample, the
    largest resident memory of a process that does either, and free, what the machine has (None where a system does not
    say); on an accelerator also device_train, device_sample and device_free. disk: the run folder by its parts, with
    total and free. sampling: number, steps, seconds of what `sfumato sample` draws.
    """

    config: TrainConfig
    facts: dict[str, Any]
    steps: Interval
    epochs: float
    step: Interval
    thousand: Interval
    total: Interval
    start: float
    loop: dict[str, float]
    end: float
    memory: dict[str, int | None]
    disk: dict[str, int]
    sampling: dict[str, Any]

    @property
    def fits(self) -> bool | None:
        """Whether memory and disk suffice; None where the system does not say what is held."""
        pairs = [(self.disk["total"], self.disk["free"])]
        for place in ("", "device_"):
            free = self.memory.get(f"{place}free")
            needs = (self.memory.get(place + what) for what in ("train", "sample"))
            pairs += [(need, free) for need in needs if need is not None and free is not None]
        if any(need > free for need, free in pairs):
            return False
        return None if self.memory["train"] is None or self.memory["free"] is None else True

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        named = {name: value._asdict() for name, value in vars(self).items() if isinstance(value, Interval)}
        return {**vars(self), **named, "config": self.config.to_dict(), "fits": self.fits}


def forecast(data: Any, out: str | os.PathLike[str] | None = None, labels: Any = None, **settings: Any) -> Forecast:
    """What training would take: `sf.forecast("photos/", net="base", minutes=60)`.

    data, out, labels, settings: those of `sf.train`. A calibration of 20 steps or more runs in a process of its own and
    leaves nothing; data in memory are handed to it through a file that goes. Raises SfumatoError for what `sf.train`
    would refuse, and where memory does not suffice even for one sample at a time.
    """
    words = os.fspath(data) if isinstance(data, str | os.PathLike) else ""
    named = os.fspath(labels) if isinstance(labels, str | os.PathLike) else settings.pop("labels", None)
    place = None if out is None else os.fspath(out)
    chosen = from_dict({**settings, "data": words, "out": place, "labels": named})
    with tempfile.TemporaryDirectory(prefix="sfumato-") as folder:
        job: dict[str, Any] = {"config": chosen.to_dict(), "run": str(Path(folder, "run")), "threads": _threads()}
        job["modules"] = registry.FILES
        if not words:
            job["source"] = _handed(data, None if named else labels, chosen, Path(folder, "data.safetensors"))
        elif labels is not None and not named:
            job["labels"] = labels if isinstance(labels, list) else labels.tolist()
        found = _process({**job, "what": "train"}, Path(folder), chosen)
        drawn = _process({**job, "what": "sample"}, Path(folder), chosen)
    return _summed(found, drawn, chosen)


def _handed(data: Any, labels: Any, settings: TrainConfig, path: Path) -> dict[str, Any]:
    """Data in memory as a file, and the rest of what a Source holds."""
    from safetensors.torch import save_file

    from sfumato import data as sources
    from sfumato.data.column import packed
    from sfumato.data.labels import read_labels
    from sfumato.data.rows import Rows

    if settings.labels is not None:
        labels = read_labels(settings.labels)
    source = sources.open(data, labels=labels, size=settings.size, conditions=settings.conditions)
    if isinstance(source.x, Rows):
        raise SfumatoError(f"{source.name} stays on the disk: give its path, which another process can read, too.")
    columns, conditions = packed(source.conditions)
    tensors = {"x": source.x, **columns}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, str(path))
    rest = ("ids", "kind", "name", "skipped", "notes", "groups", "bounds")
    return {"path": str(path), "conditions": conditions, **{name: getattr(source, name) for name in rest}}


def _threads() -> int | None:
    """As many threads as this process computes with, where torch is loaded."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def _process(job: dict[str, Any], folder: Path, settings: TrainConfig) -> dict[str, Any]:
    """What a process of its own tells of a job."""
    given, result = folder / "job.json", folder / "result.json"
    result.unlink(missing_ok=True)
    given.write_text(json.dumps({**job, "started": time.time()}), encoding="utf-8")
    here = str(Path(__file__).parents[2])
    lead = {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")])), "RANK": "0"}
    command = [sys.executable, "-m", "sfumato.training.calibration", str(given), str(result)]
    done = subprocess.run(
        command, env={**os.environ, **lead}, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    told = json.loads(result.read_text(encoding="utf-8")) if done.returncode == 0 else {}
    if "error" in told:
        raise SfumatoError(told["error"])
    if done.returncode == -9 or "out_of_memory" in told:
        raise SfumatoError(_too_large(job["what"], settings, told.get("free")))
    if not told:
        raise RuntimeError(f"The calibration ended with status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return told


def _too_large(what: str, settings: TrainConfig, free: int | None) -> str:
    """Why a process ended: parts of one sample have been tried, unless the system was quicker."""
    doing = "Training" if what == "train" else "Sampling"
    room = "is free" if free is None else f"is free ({free / 1e9:.1f} GB)"
    ways = "a smaller --net or --size" + ("" if settings.micro == 1 else ", or --micro 1")
    return f"{doing} with these settings needs more memory than {room}: try {ways}."


def _summed(found: dict[str, Any], drawn: dict[str, Any], settings: TrainConfig) -> Forecast:
    facts, costs = found["facts"], Costs.from_dict(found["costs"])
    config = from_dict({**found["config"], "labels": settings.labels, "data": settings.data, "out": settings.out})
    step = sums.step_seconds(costs.steps)
    rows = [_sums(costs, config, one) for one in step]
    steps, thousand, total = (Interval(*(row[name] for row in rows)) for name in ("steps", "thousand", "total"))
    if config.steps is None:  # slower steps are fewer
        steps = Interval(steps.value, steps.high, steps.low)
    held = {
        f"{place}{what}": each["memory"][f"{place}held"]
        for place in ("", "device_")
        for what, each in (("train", found), ("sample", drawn))
        if f"{place}held" in each["memory"]
    } | {name: value for name, value in found["memory"].items() if name.endswith("free")}
    seconds, parts = sums.loop(costs, config, int(steps.value), step.value)
    disk = sums.disk(costs, config, int(steps.value), seconds)
    place = Path(config.out or "runs").expanduser().absolute()
    while not place.exists():
        place = place.parent
    return Forecast(
        config=config, facts=facts, steps=steps, epochs=steps.value * config.batch / facts["train"], step=step,
        thousand=thousand, total=total, start=costs.start, loop=parts, end=costs.end, memory=held,
        disk={**disk, "total": sum(disk.values()), "free": shutil.disk_usage(place).free},
        sampling={name: drawn[name] for name in ("number", "steps", "seconds")},
    )  # fmt: skip


def _sums(costs: Costs, config: TrainConfig, step: float) -> dict[str, Any]:
    steps = sums.steps_of(costs, config, step)
    seconds, parts = sums.loop(costs, config, steps, step)
    between = sum(parts.values()) - parts["steps"]
    return {"steps": steps, "thousand": 1000 * (step + between / steps), "total": costs.start + seconds + costs.end}
