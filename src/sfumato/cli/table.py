"""`sample` and `impute` of a model of a table: a .csv, .tsv, .parquet or .feather file of the same columns."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from sfumato import imputation, serialization
from sfumato.cli import write
from sfumato.cli.process import at_work
from sfumato.cli.run import Voice
from sfumato.columns import Known, uncalibrated
from sfumato.data import frames
from sfumato.data.table_schema import TableSchema
from sfumato.distributed import World
from sfumato.errors import SfumatoError, SfumatoWarning, whole
from sfumato.machine import device_of
from sfumato.progress import counting
from sfumato.sampling import in_order, known_columns, rows_at_once, sample
from sfumato.solver_selection import make_plan

NUMBER = 1000


def refuse(options: Any) -> None:
    """Raise SfumatoError for flags of tables, given of another model."""
    if options.given:
        raise SfumatoError("--given is for models of tables, and this is none: leave it out, or use --condition")
    if options.uncalibrated:
        raise SfumatoError("--uncalibrated is for models of tables, and this is none: leave it out")


def draw(options: Any, denoiser: Any, origin: dict[str, Any], world: World) -> dict[str, Any]:
    """Sample and write rows; returns out, files, seconds and the manifest, which begins with `origin`."""
    started = time.monotonic()
    if options.condition or options.class_ is not None:
        raise SfumatoError("what is known of the rows of a table is said by --given NAME=VALUE")
    out = world.broadcast_result(lambda: options.out or write.free("samples.csv"))
    path = world.broadcast_result(lambda: write.check(out, frames.FILES, "a table"))
    index = torch.arange(options.first, options.first + origin["number"])
    twice = [name for name, count in Counter(name for name, _ in options.given).items() if count > 1]
    if twice:
        raise SfumatoError(f"--given says two values of {twice[0]!r}: leave one out")
    plain = uncalibrated(denoiser)
    if options.uncalibrated and plain is denoiser and options.weights != "raw":
        warnings.warn(
            SfumatoWarning("The model has not been calibrated, so --uncalibrated changes nothing."), stacklevel=2
        )
    denoiser = plain if options.uncalibrated else denoiser
    plan, given = make_plan(denoiser, options.steps, options.solver), dict(options.given)
    model = known_columns(denoiser, given, len(index), options.seed) if given else denoiser
    with frames.writing(path) if world.leads else nullcontext(print) as append:
        for rows in _batches(options, model, index, world):
            world.broadcast_result(partial(_append, append, denoiser.spec.table, rows))
    facts = {**origin, "solver": plan.name, "steps": plan.steps, **({"given": given} if given else {})}
    facts |= {"uncalibrated": True} if options.uncalibrated else {}
    return {"out": out, "files": 1, "seconds": round(time.monotonic() - started, 2), "manifest": facts}


def _batches(options: Any, model: Any, index: torch.Tensor, world: World) -> Iterator[torch.Tensor]:
    """The rows of the table, in the batches in which `sample` draws them all, so that they are the same."""
    batch = options.batch or rows_at_once(model)
    how = {"steps": options.steps, "solver": options.solver, "seed": options.seed, "batch": batch, "world": world}
    with counting("Drawing rows", len(index)) as count:
        for part in in_order(model, len(index), batch * world.size):
            own = model.rows(part) if isinstance(model, Known) else model
            z = sample(own, index=index[part], normalised=True, **how)
            yield own.spec.denormalise(own.process.table(z))
            count(len(part))


def _append(append: Callable[[Any], None], table: TableSchema, rows: torch.Tensor) -> None:
    append(frames.arrow(table, rows))


@at_work()
def impute(options: Any, voice: Voice) -> None:
    """Write a table with its empty cells filled."""
    started, number = time.monotonic(), whole("-n", options.number)
    out = options.out or write.free("imputed.csv")
    path = write.check(out, frames.FILES, "a table")
    paths = [path] if number == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(number)]
    denoiser = serialization.load_sampler(options.model, options.weights, device_of(options.device))
    made = imputation.impute(
        denoiser, options.data, number, steps=options.steps, seed=options.seed, batch=options.batch
    )
    for each, table in zip(paths, [made] if number == 1 else made, strict=True):
        frames.write(table, each)
    given = frames.arrow_of(options.data)
    filled = sum(column.null_count for column in given.columns)
    left = sum(column.null_count for column in (made if number == 1 else made[0]).columns)
    voice.say(f"{', '.join(map(str, paths))}: {filled - left:,} of {filled:,} empty cells filled.")
    table = denoiser.spec.table
    beyond = {name: table.field(name).beyond(column) for name, column in frames.columns_of(given, table).items()}
    beyond = {name: count for name, count in beyond.items() if count}
    if beyond:
        where = ", ".join(f"{count:,} in {name!r}" for name, count in beyond.items())
        voice.say(f"Values beyond those of training count as the nearest of these: {where}.")
    facts = {"out": [str(each) for each in paths], "model": str(options.model), "data": options.data, "beyond": beyond}
    seconds = round(time.monotonic() - started, 1)
    voice.emit({**facts, "empty": filled, "filled": filled - left, "seconds": seconds})
