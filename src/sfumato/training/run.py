"""Train and resume runs, from data to model file: source -> spec -> network -> loop -> run folder."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from sfumato import data, folder, registry, schema, serialization
from sfumato.data import DataSpec, Source, normalising
from sfumato.data.kinds import with_kinds
from sfumato.data.labels import read_labels
from sfumato.data.statistics import blocks
from sfumato.diagnostics import examples, summary
from sfumato.distributed import World, joined, leads
from sfumato.errors import SfumatoError, counted, suggest
from sfumato.errors import place as path_of
from sfumato.files import write_text
from sfumato.machine import default_cpu, device_of
from sfumato.noise import kept
from sfumato.process import Discrete, Embedded
from sfumato.progress import reporting_to
from sfumato.sampling import apart
from sfumato.training import checkpoint, config, loggers
from sfumato.training.codes import AUTOENCODER
from sfumato.training.config import TrainConfig, from_dict
from sfumato.training.console import Console
from sfumato.training.embeddings import EMBEDDING, embedded
from sfumato.training.fine_tuning import start
from sfumato.training.hooks import usual
from sfumato.training.parts import (
    Objects,
    known_here,
    loss_of,
    model_for,
    rebuilt,
    require_heard,
    separate,
    suited,
    with_model,
)
from sfumato.training.session import Session
from sfumato.training.state import State

T = TypeVar("T")
CHANGEABLE = (
    "minutes", "steps", "lr", "decay", "clip", "guidance", "sample_every", "checkpoint_every", "loggers", "micro",
    "workers", "threads", "compile", "device", "precision", "parallel",
)  # fmt: skip


_PLACES = ("out", "autoencoder", "embedding")  # which change where a run is moved


class Interrupted(KeyboardInterrupt):
    """Training was stopped and its checkpoint saved; the message says how to resume."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, its model (the moving average), its settings and the lines of its log."""

    path: Path
    denoiser: Any = dataclasses.field(repr=False)
    config: TrainConfig = dataclasses.field(repr=False)
    metrics: list[dict[str, Any]] = dataclasses.field(repr=False)


def train(
    data: Any,
    out: str | os.PathLike[str] | None = None,
    labels: Any = None,
    console: Console | None = None,
    on_start: Callable[[Session], None] | None = None,
    modules: Iterable[type] = (),
    **settings: Any,
) -> Run:
    """Train one model and write its run folder: `stages.train`, whose arguments they are, without its stages."""
    settings, given = separate(settings, modules)
    chosen, labels = in_words(data, out, labels, settings)
    loss_of(chosen, given.loss)  # refuses a loss that cannot be made, before the data are read
    require_heard(chosen, given.loss)
    console = console or Console()
    with ExitStack() as stack:
        world = stack.enter_context(joined(device_of(chosen.device)))
        stack.enter_context(own_modes(world.device))
        make = lambda: prepared(data, labels, chosen, world.device, given)  # noqa: E731
        config, source, model = _opened(world, console, make)
        schema.require_utf8([config.to_dict(), source.name, model.spec.to_dict()])
        # before the folder: it refuses a loss that does not suit the network
        state = State(model, config, loss_of(config, given.loss), world)
        path = world.broadcast_result(lambda: stack.enter_context(folder.new(config.out, source.name)))
        for note in source.notes if world.leads else ():
            console.note(note)
        state.given = given.net is not None or config.init is not None
        session = usual(Session(path, config.replace(out=str(path)), source, state, console, world=world))
        if world.leads:
            write_text(path / "config.yaml", session.config.to_yaml())
        return _finish(session, on_start)


def resume(
    run: str | os.PathLike[str],
    data: Any = None,
    labels: Any = None,
    console: Console | None = None,
    on_start: Callable[[Session], None] | None = None,
    changed: bool = False,
    modules: Iterable[type] = (),
    **changes: Any,
) -> Run:
    """Resume the run of one model: `stages.resume`, whose arguments they are, without its stages."""
    path = folder.existing(run)
    with folder.held(path) if leads() else nullcontext():
        return _resume(path, data, labels, console or Console(), on_start, changed, modules, changes)


def _resume(
    path: Path, data: Any, labels: Any, console: Console, on_start: Callable[[Session], None] | None, changed: bool,
    modules: Iterable[type], changes: dict[str, Any],
) -> Run:  # fmt: skip
    contract, tensors, notes = checkpoint.latest(path)
    words, given = separate({name: changes.pop(name) for name in ("net", "loss") if name in changes}, modules)
    contract["config"] |= {name: word for name, word in words.items() if name == "loss"}
    known_here(contract["config"], path)
    settings = _changed(contract["config"], {**_edited(path, contract["config"], changed), **changes}, path)
    if data is None and not settings.data:
        raise SfumatoError(f"{path} was trained on an array in memory: pass it again, sf.resume(run, data=...).")
    with joined(device_of(settings.device)) as world, own_modes(world.device):
        source = _opened(world, console, lambda: _same(data, labels, settings, contract["spec"], path))
        model = rebuilt(contract, checkpoint.size(tensors), settings, world.device)
        state = State(model, settings, loss_of(settings, given.loss), world)
        state.given = contract.get("given", False)
        state.load(tensors, contract["counters"])
        for note in notes if world.leads else ():
            console.note(note)
        complete = world.broadcast(not summary.missing(path))
        if state.fraction(settings) >= 1 and not state.unlogged and complete:
            if settings.steps:
                done, total = counted(state.step, "step"), f"{settings.steps:,}"
            else:
                done, total = counted(float(f"{state.elapsed / 60:.3g}"), "minute"), f"{settings.minutes:g}"
            if any(changes.get(name) is not None for name in ("steps", "minutes")):
                raise SfumatoError(
                    f"{path} has already trained for {done}, and a budget is of the whole run, from its first step: "
                    "give more than that with --minutes or --steps."
                )
            raise SfumatoError(
                f"{path} has already trained for {done} of {total}: set a larger total with --minutes or --steps."
            )
        session = usual(Session(path, settings, source, state, console, resumed=True, world=world))
        if world.leads:
            console.note(f"Resuming from step {state.step:,}.")
            if (path / serialization.FILE).exists() and serialization.read_contract(path)["plans"]:
                console.note("Tuned plans are dropped, since the weights will change: tune again afterwards.")
            write_text(path / "config.yaml", settings.to_yaml())
        return _finish(session, on_start)


def in_words(data: Any, out: Any, labels: Any, settings: Mapping[str, Any]) -> tuple[TrainConfig, Any]:
    """(settings with the paths of data, labels and run folder; labels that are not in a file)."""
    words = os.fspath(data) if isinstance(data, str | os.PathLike) else ""
    named = os.fspath(labels) if isinstance(labels, str | os.PathLike) else settings.get("labels")
    place = None if out is None else str(path_of(out, "The run folder"))
    chosen = from_dict({**settings, "data": words, "out": place, "labels": named})
    return chosen, None if named else labels


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Compute as a run does whatever the caller's modes are, and restore its random generators, which dropout uses.

    Gradients are on; inference mode and autocast are off; the default device is the CPU; the default dtype, which all
    threads share, is float32.
    """
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(kept([device] if device.type == "cuda" else []))
        stack.enter_context(default_cpu())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", device.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(before)


def _opened(world: World, console: Console, make: Callable[[], T]) -> T:
    """Call make(), which opens the data, first in one process per machine; the very first one shows progress."""
    with reporting_to(console.count if world.leads else None):
        return world.local_main_first(make)


def _same(obj: Any, labels: Any, settings: TrainConfig, spec: dict[str, Any], path: Path) -> Source:
    """The data of a run to resume. Raises SfumatoError if they are not the data that it was trained on."""
    label_file = settings.labels if labels is None else None
    known = DataSpec.from_dict(spec)
    read = settings.replace(labels=label_file)
    source = opened(settings.data if obj is None else obj, labels, read, None if settings.init is None else known)
    if settings.init is not None or settings.autoencoder is not None:  # the spec may be of earlier data
        return source
    # columns that training did not use are left out
    own = {name: each for name, each in source.conditions.items() if name in known.conditions}
    source = dataclasses.replace(source, conditions=own)
    kept = known.to_dict() | {"name": source.name}
    found = DataSpec.fit(source, source.split(settings.holdout)[0], settings.normalise).to_dict()
    if found | {"normaliser": None} != kept | {"normaliser": None}:  # that of symbols differs
        raise SfumatoError(f"{source.name} is not the data that {path} was trained on: its statistics differ.")
    return source


def _finish(session: Session, on_start: Callable[[Session], None] | None) -> Run:
    try:
        if on_start is not None:
            on_start(session)
        if not _ended(session):
            _stop(session)
    finally:
        session.close()
    session.report()
    lines = folder.read(session.path / "metrics.jsonl")
    return Run(session.path, serialization.load(session.path), session.config, lines)


def _ended(session: Session) -> bool:
    """Train; returns False if the run was stopped before the end of its budget."""
    try:
        return session.go()
    except KeyboardInterrupt:
        if session.world.size > 1:  # processes interrupted at different points cannot save together
            raise
        return False


def _stop(session: Session) -> NoReturn:
    """Save a run that was stopped, and raise Interrupted, which says how to resume."""
    go_on = f"To resume: sfumato resume {session.path}{examples.modules()}"
    try:
        try:
            session.stop()
        except KeyboardInterrupt:  # a second one waits for what the first began; batch systems send several
            session.stop()
        message = f"Stopped at step {session.state.step:,}; the checkpoint is saved. {go_on}"
        if session.finished:
            message = f"Training is complete; only the final checks are missing. {go_on}"
        session.world.broadcast(None)
    except KeyboardInterrupt:
        step = folder.newest_step(session.path)
        message = f"Interrupted while saving; the newest checkpoint is that of step {step:,}. {go_on}"
    session.console.note(message)
    raise Interrupted(message)


def prepared(
    data: Any, labels: Any, settings: TrainConfig, device: torch.device, given: Objects | None = None
) -> tuple[TrainConfig, Source, Any]:
    """(settings with a budget, data, untrained model) for a new run."""
    given, own = given or Objects(), None
    if settings.init is not None:
        given = dataclasses.replace(given, init=start(given.init, settings, given.said))
        own = given.init.spec
    source = opened(data, labels, settings, own)
    spec = DataSpec.fit(source, source.split(settings.holdout)[0], settings.normalise)
    if settings.normalise == normalising.AUTO and settings.init is None:
        source.notes.extend(normalising.reason(spec.normaliser.kind))
    settings = suited(_with_budget(settings, source), spec, given.said)
    model = model_for(given, settings, source, spec, loss_of(settings, given.loss), device)
    if (
        (source.text is None or spec.whole_texts)
        and source.table is None
        and isinstance(getattr(model, "process", None), Discrete | Embedded)
    ):
        for part in blocks(source.x):  # what it refuses in a step would leave a run folder behind
            model.process.data(model.spec.normalise(part))
    loggers.check(settings.loggers)
    source.notes.extend(apart(spec.conditions))
    return with_model(settings, model), source, model


def opened(obj: Any, labels: Any, settings: TrainConfig, own: DataSpec | None = None) -> Source:
    """The data as the settings of a run say; labels that they name come first.

    own: the spec of a model that is trained further, whose kinds of conditions, tokens and columns are taken.
    """
    own = None if isinstance(obj, Source) else own
    if settings.labels is not None:
        labels = read_labels(settings.labels)
    found = data.open(
        obj, labels=labels, size=settings.size, conditions=own or settings.conditions, split=settings.split,
        key=settings.key,
        max_gb=settings.max_gb, length=settings.length, tokens=settings.tokens, columns=settings.columns,
        whole_texts=registry.bare(settings.process) == "deletion",
    )  # fmt: skip
    if own is not None and settings.conditions:
        kinds = {name: condition.kind for name, condition in own.conditions.items()}
        found = with_kinds(found, {**kinds, **settings.conditions}, known=True)
    if settings.embedding is not None:
        return embedded(found, settings.embedding, settings.unclip)
    if settings.sources is None:
        return found
    return data.with_sources(found, settings.sources, settings.pairs, settings.max_gb)


def _with_budget(settings: TrainConfig, source: Source) -> TrainConfig:
    """The settings with a budget, chosen from the size of the data if there is none."""
    if settings.minutes is not None or settings.steps is not None:
        return settings
    minutes = usual_minutes(source)
    source.notes.append(
        f"Training for {counted(minutes, 'minute')}, chosen from the data size (set --minutes or --steps)."
    )
    return settings.replace(minutes=minutes)


def usual_minutes(source: Source) -> float:
    """The budget of a run on these data where none is given."""
    return config.budget(len(source), math.prod(source.shape))


def _edited(path: Path, kept: dict[str, Any], accepted: bool) -> dict[str, Any]:
    """The settings in a run's config.yaml that differ from its checkpoint; an error unless `accepted`."""
    if not (path / "config.yaml").exists():
        return {}
    now, kept = config.from_yaml(str(path / "config.yaml")).to_dict(), from_dict(kept).to_dict()
    other = {name: value for name, value in now.items() if name not in _PLACES and value != kept[name]}
    if other and not accepted:
        listed = ", ".join(f"{name} {kept[name]} -> {value}" for name, value in other.items())
        raise SfumatoError(
            f"{path / 'config.yaml'} was edited since the checkpoint: {listed}. Accept this with --changed "
            "(changed=True in Python), or restore the old values."
        )
    return other


def _changed(old: dict[str, Any], changes: dict[str, Any], path: Path) -> TrainConfig:
    """The settings of a checkpoint with changes applied; a new budget replaces the old one."""
    for name in changes:
        if name not in old:
            raise SfumatoError(f"There is no setting {name!r}: {suggest(name, CHANGEABLE)}")
        if name not in CHANGEABLE:
            raise SfumatoError(f"{name} cannot change when {path} is resumed; only {', '.join(CHANGEABLE)} can.")
    given = {name: value for name, value in changes.items() if value is not None}
    if "minutes" in given and "steps" not in given:
        given["steps"] = None
    if "steps" in given and "minutes" not in given:
        given["minutes"] = None
    if old.get("autoencoder") is not None and (path / AUTOENCODER).is_dir():  # the folder may have been moved
        given["autoencoder"] = str(path / AUTOENCODER)
    for place in (path, path.parent):  # a prior lies in the folder of its decoder
        if old.get("embedding") is not None and (place / EMBEDDING).is_dir():
            given["embedding"] = str(place / EMBEDDING)
            break
    return from_dict({**old, **given, "out": str(path)}, where=str(path))
