"""`evaluate`: metrics of samples against real data, and sweeps of them over ways to sample."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.cli import write
from sfumato.cli.look import opened, with_training_data
from sfumato.cli.process import at_work
from sfumato.cli.run import Voice
from sfumato.errors import SfumatoError, suggest
from sfumato.machine import device_of
from sfumato.metrics import Evaluator, Metric, Point, sweep
from sfumato.metrics.drawing import FORMATS, calls, draw
from sfumato.metrics.evaluation import SWEPT, is_model, named
from sfumato.metrics.evaluation import opened as judged
from sfumato.registry import make
from sfumato.training.precision import compute_dtype

_KINDS = {"steps": int, "guidance": float, "seed": int, "solver": str}


@at_work()
def evaluate(options: Any, voice: Voice) -> None:
    started = time.monotonic()
    over = swept(options.sweep)
    out = options.out or write.free("sweep.png")
    if Path(out).suffix.lower() not in FORMATS:
        raise SfumatoError(f"{out} has no known kind: end it in {', '.join(FORMATS)}")
    if options.out is not None and not over:
        raise SfumatoError("-o names the picture of a sweep: give --sweep steps=5,10,20, or leave -o out")
    for each in named(options.metrics or ()):
        make("metric", each)  # a misspelt name before any work
    options = with_training_data(options, "give --reference DATA", "sf.metrics.evaluate")
    device = device_of(options.device)
    model = judged(options.model, options.weights, device)
    if is_model(model):
        model.compute_dtype = compute_dtype("auto", device)
    evaluator = Evaluator(
        model, opened(options, getattr(model, "spec", None)), options.metrics, options.number,
        features=options.features, part=options.part, weights=options.weights, batch=options.batch, device=device,
        unordered=options.unordered or None,
    )  # fmt: skip
    how = {name: getattr(options, name) for name in SWEPT}
    facts = {"model": str(options.model), "data": options.data}
    if over:
        points = sweep(evaluator, over, **{name: value for name, value in how.items() if name not in over})
        draw(points, Path(out).expanduser())
        facts |= {
            "out": out,
            "points": [{"settings": each.settings, "metrics": plain(each.metrics)} for each in points],
        }
        voice.say(*table(points), f"{out}: each metric over the calls of the network.")
    else:
        found = evaluator(**how)
        facts["metrics"] = plain(found)
        voice.say(*report(found, evaluator))
    voice.emit({**facts, "seconds": round(time.monotonic() - started, 1)})


def swept(pairs: Sequence[tuple[str, str]]) -> dict[str, list[Any]]:
    """--sweep steps=5,10 --sweep solver=heun as {"steps": [5, 10], "solver": ["heun"]}."""
    found: dict[str, list[Any]] = {}
    for name, values in pairs:
        if name not in SWEPT:
            raise SfumatoError(f"{name} cannot be swept: {suggest(name, SWEPT)}")
        try:
            found[name] = [_KINDS[name](value) for value in values.split(",")]
        except ValueError:
            raise SfumatoError(
                f"--sweep {name}={values} is not understood: write values with commas, steps=5,10,20"
            ) from None
    return found


def plain(found: dict[str, Metric]) -> dict[str, Any]:
    return {name: metric.to_dict() for name, metric in found.items()}


def report(found: dict[str, Metric], evaluator: Evaluator) -> list[str]:
    """A line for each metric, and what they have in common."""
    lines = [f"{'metric':<20} {'value':>10}   {'95 % interval':<22} {'real data':>10}   protocol"]
    for name, metric in found.items():
        low, high = metric.interval.low, metric.interval.high
        floor = "-" if metric.floor is None else f"{metric.floor.value:.4g}"
        lines.append(f"{name:<20} {metric.value:>10.4g}   {f'{low:.4g} to {high:.4g}':<22} {floor:>10}   {metric.hash}")
    part = "" if evaluator.part == "all" else f" ({evaluator.part})"
    count, name = evaluator.reference.n, evaluator.source.name
    return [*lines, f"{count:,} samples against {name}{part}; real data: as many others of them."]


def table(points: Sequence[Point]) -> list[str]:
    """A line for each way to sample: its settings, its calls, and each metric with half its interval."""
    names, settings = list(points[0].metrics), list(points[0].settings)
    head = [f"{name:<10}" for name in settings] + [f"{'calls':>5}"] + [f"{name:>20}" for name in names]
    lines = ["  ".join(head)]
    for point in points:
        row = [f"{point.settings[name]!s:<10}" for name in settings] + [f"{calls(point):>5}"]
        row += [f"{f'{each.value:.4g} +- {each.interval.half:.2g}':>20}" for each in point.metrics.values()]
        lines.append("  ".join(row))
    floors = [metric.floor for metric in points[0].metrics.values()]
    row = [f"{'real data':<10}"] + [" " * 10] * (len(settings) - 1) + [" " * 5]
    row += [f"{'-' if floor is None else f'{floor.value:.4g} +- {floor.half:.2g}':>20}" for floor in floors]
    return [*lines, "  ".join(row)]
