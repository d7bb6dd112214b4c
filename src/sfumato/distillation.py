"""Distillation: a model that samples in few calls, from a trained one: teacher -> flow map -> quality against calls."""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sfumato import folder, serialization
from sfumato.conditions import Text, declared
from sfumato.distributed import World, joined
from sfumato.errors import SfumatoError, suggest, wholes
from sfumato.flow_map import innermost
from sfumato.guidance import Scale, guided, is_range
from sfumato.latent_diffusion import refuse_latent
from sfumato.machine import default_cpu, device_of
from sfumato.nets.layout import channels_last
from sfumato.objectives.adversary import reads
from sfumato.objectives.taught import TaughtLoss, lesson
from sfumato.process import Masked, Paired
from sfumato.registry import Named, make, register
from sfumato.training import Run, teacher_samples, train
from sfumato.training.console import Console
from sfumato.training.ladder import FIRST as PATHS
from sfumato.training.ladder import advice as advice
from sfumato.training.ladder import ladder as ladder
from sfumato.training.run import own_modes
from sfumato.training.session import Session
from sfumato.training.stages import STUDENT, complete, student

AUTO, OF_MASKS = "trajectory-consistency", "sdtt"
OF_PICTURES = "trajectory-consistency(cut=0.3)"  # a longer cut gets there sooner
OF_PAIRS = "direct-distillation"  # whose targets are the teacher's alone: errors near a source grow along a path
OF_PATHS = "path-distillation(paths={}, adversary=1)"  # of pictures of at most _KEPT numbers, by a U-Net
_KEPT = 4096
_PATHS, _HELD = 4096, 1 << 22  # paths that are kept, in memory and checkpoints, at most, and numbers of all their ends
TEACHER = "teacher.safetensors"  # in a run folder
_KNOWN = 16  # digits of a hash
_WORDS = (str, int, float, tuple, list, dict, type(None))  # settings that a file holds


@default_cpu()
def distill(
    teacher: Any,
    out: str | os.PathLike[str] | None = None,
    data: Any = None,
    labels: Any = None,
    method: str = "auto",
    calls: Sequence[int] = (1, 2, 4),
    guidance: Scale | tuple[float, float] | None = None,
    interval: tuple[float, float] | None = None,
    samples: int | None = None,
    console: Console | None = None,
    on_start: Callable[[Session], None] | None = None,
    **settings: Any,
) -> Run:
    """Train a flow map that samples like `teacher` in few calls: `sf.distill("runs/photos", minutes=5)`.

    teacher: a denoiser of real numbers, its file or its run; or one of masked symbols, whose student is a denoiser that
    says in one call what it says in several (`objectives.symbol_distillation`), and has no ladder. data: its training
    data, in any form that `sf.train` takes; by default `samples` of its own samples, so that its file is enough: 4,096,
    or of a run in minutes as many as take a fifth of these (`teacher_samples.number`), which count beside them.
    method: the name of a loss (`objectives.flow_maps`, `objectives.laws`), or of two, "a + b", of which the second goes
    on from where the first has led in two fifths of the budget; "auto" is what comes nearest to the teacher in equal
    time, AUTO, of pictures OF_PICTURES, of small ones of a U-Net OF_PATHS, and else of pairs OF_PAIRS. init: a student,
    file or run, that is trained further, in place of one that starts at the teacher. calls: the numbers of calls that
    the student is for. guidance, interval: the scale of the teacher's guidance and its levels of logsnr, which the
    student then has for good, at no second call; or a range of scales, (1, 4), of which it hears one as its condition,
    `sf.sample(student, label="cat", guidance_scale=2.5)`. settings: those of `sf.train`.
    The run is one of `sf.train`, whose settings name the teacher's file: `sf.resume` continues it exactly. A teacher
    that is an object, and samples drawn from it, are kept in the run folder. A run whose distance to the teacher keeps
    rising stops with an error; beside it a metric is measured, of the law of the samples (`metrics.shared_noise`). Its
    report ends with the ladder: both, from the teacher's own fine solution, by the number of calls, of the student, the
    teacher and its tuned plans.
    """
    name = "model"
    if isinstance(teacher, str | os.PathLike):
        name = Path(teacher).stem if Path(teacher).is_file() else Path(teacher).name
    how: dict[str, Any] = {"console": console, "on_start": on_start}
    asked = (method, calls, guidance, interval, samples, settings)
    said = isinstance(teacher, str | os.PathLike) and all(isinstance(each, _WORDS) for each in settings.values())
    request = f"{teacher} {asked}" if said else ""
    with _nothing_if_refused() as made:
        with joined(device_of(settings.get("device", "auto"))) as world:
            path = world.broadcast_result(lambda: _made(out, f"{name}-distilled", request, made))
            stages, given = in_words(path, teacher, data, *asked, world, request)
        if not all(isinstance(each, _WORDS) for settings in stages for each in settings.values()):
            if len(stages) > 1:
                raise SfumatoError(
                    "A student in two stages is trained from files: save the model that it begins at (sf.save), give "
                    "its path as init, and name what else is an object."
                )
            complete(path, stages[-1]["loss"], settings.get("device", "auto"), console)
            return train(given, path, labels, **how, **stages[0])  # of objects, which no file keeps
        return student(path, stages, given, labels, how)


def _made(out: str | os.PathLike[str] | None, name: str, request: str, made: list[Path]) -> Path:
    """The folder of a new run, or of the same one that was killed while it drew. made: as `folder.new` has it."""
    again = partial(teacher_samples.awaited, request=request) if request else None
    with folder.new(None if out is None else os.fspath(out), name, again, made) as path:
        return path


@contextmanager
def _nothing_if_refused() -> Iterator[list[Path]]:
    """Yields the list of folders that are made for a run (`folder.new`), which are deleted where it is refused before
    it has results."""
    made: list[Path] = []
    try:
        yield made
    except SfumatoError:
        results = made and (any(map(folder.begun, (made[0], made[0] / PATHS))) or teacher_samples.any_drawn(made[0]))
        if made and not results:
            shutil.rmtree(made[0], ignore_errors=True)
            for outer in made[1:]:
                with suppress(OSError):  # another run has begun there
                    outer.rmdir()
        raise


def in_words(
    path: Path,
    teacher: Any,
    data: Any,
    method: str,
    calls: Sequence[int],
    guidance: Scale | tuple[float, float] | None,
    interval: tuple[float, float] | None,
    samples: int | None,
    settings: dict[str, Any],
    world: World,
    request: str = "",
) -> tuple[list[dict[str, Any]], Any]:
    """(the settings of each stage of the run in `path`, its data), with the teacher in a file; its samples are not yet
    drawn. request: as `teacher_samples.ask` takes it."""
    if isinstance(teacher, str | os.PathLike):
        file = serialization.locate(teacher).absolute()
    else:
        innermost(teacher)
        file = world.broadcast_result(lambda: serialization.save(teacher, path / TEACHER)).absolute()
    facts = serialization.read_contract(file)
    words = f"file({str(file)!r}, hash={facts['hash'][:_KNOWN]!r}"
    words += "" if guidance is None else f", guidance={guidance!r}"
    words += ")" if interval is None else f", interval={tuple(interval)!r})"
    model = serialization.load_sampler(file, device=world.device)
    if getattr(model, "two_times", False):
        _refuse_student(file, facts)
    if method == "auto":
        method = _chosen(model, world)
    losses = [loss_named(each, words, calls) for each in method.split(" + ")]
    if len(losses) > 2:
        raise SfumatoError(f"A student is trained in one stage or in two, and {method!r:.80} names {len(losses)}.")
    refuse_latent(model, "Distillation")
    of_lengths, of_tables = (getattr(model.spec, name, None) is not None for name in ("lengths", "table"))
    if of_lengths or of_tables:
        what = "tables" if of_tables else "sequences of several lengths"
        raise SfumatoError(f"A model of {what} has no student in few steps: take fewer steps, sample(steps=...).")
    if is_range(guidance) and data is not None:
        raise SfumatoError("Only a teacher's samples have scales of guidance: leave data out, or give one scale.")
    if not is_range(guidance):  # which samples of the teacher bring to the student
        with own_modes(world.device):
            _require_suited(losses, settings.get("init", file))
    if data is None:
        model, asked = guided(model, guidance, interval), {**settings, "samples": samples}
        data = world.broadcast_result(lambda: teacher_samples.ask(path, model, words, asked, request))
    budgets = [settings] if len(losses) == 1 else [{**settings, **_budget(settings, i)} for i in range(2)]
    own = [_kind(Named("loss")[loss.partition("(")[0]]).settings for loss in losses]
    base = {"guidance": 1.0, "init": str(file)}
    return [{**base, **a, **b, "loss": c} for a, b, c in zip(own, budgets, losses, strict=True)], data


def _require_suited(losses: Sequence[str], init: Any) -> None:
    """Raise SfumatoError for a loss that cannot train what its stage begins at, before samples are drawn for it."""
    model = serialization.load(init) if isinstance(init, str | os.PathLike) else copy.deepcopy(init)
    for word in losses:
        loss = make("loss", word)
        model = loss.begun(model)
        loss.suits(model)


def _refuse_student(file: Path, facts: Any) -> None:
    """Raise SfumatoError for a teacher that is a flow map: what it samples in its few calls is no solution to learn."""
    first = lesson(facts["provenance"].get("loss"))
    instead = "train it further on its data, sf.train(data, init=...)"
    if first is not None:
        instead = f"distil its own teacher, {first.teacher}, and to train it further give it as init (--init)"
    raise SfumatoError(f"{file} is a flow map already, which samples in few calls: {instead}.")


def _chosen(model: Any, world: World) -> str:
    """The method that "auto" stands for."""
    if isinstance(getattr(model, "process", None), Masked):
        return OF_MASKS
    paired = isinstance(model.process, Paired)
    if getattr(model.spec, "kind", None) != "image":
        return OF_PAIRS if paired else AUTO
    texts = any(isinstance(each, Text) for each in (declared(model) or {}).values())  # of several lengths
    numbers = math.prod(model.shape)
    if world.size > 1 or texts or numbers > _KEPT or not reads(model):
        return OF_PAIRS if paired else OF_PICTURES
    return OF_PATHS.format(min(_PATHS, _HELD // numbers))


def _budget(settings: dict[str, Any], stage: int) -> dict[str, Any]:
    """A stage's share of the minutes or steps; without any, that of the default budget is known where it starts."""
    if (steps := settings.get("steps")) is not None:
        first = max(1, round(STUDENT[0] * steps))
        return {"steps": first if stage == 0 else max(1, steps - first)}
    return {"minutes": STUDENT[stage] * settings["minutes"]} if settings.get("minutes") is not None else {}


@register("teacher", "file")
def file_teacher(path: str, guidance: Any = 1.0, interval: tuple[float, float] | None = None, hash: str = "") -> Any:
    """The model of a file or run that a loss learns from, guided if `guidance`, a scale, one per condition or a range
    that samples draw theirs from, is not 1.

    interval: the logsnr between which guidance acts. hash: the beginning of the file's hash; another file is refused,
    so that a resumed run has the teacher that it began with.
    """
    facts = serialization.read_contract(path)
    if not facts["hash"].startswith(hash):
        raise SfumatoError(
            f"{path} is no longer the teacher of this run: its hash begins with {facts['hash'][: len(hash)]}, and was "
            f"{hash}. Put the file back, or distil the new one in a new run."
        )
    model = serialization.load_sampler(path)
    if isinstance(model, nn.Module):
        channels_last(model)
    return guided(model, guidance, interval)


def loss_named(method: str, teacher: str, calls: Sequence[int]) -> str:
    """The setting that names a method's loss, its teacher and the student's numbers of calls."""
    name, _, own = method.strip().partition("(")
    calls = wholes("calls", calls)
    known = [each for each, kind in Named("loss").items() if _is_taught(kind)]
    if name not in known:
        raise SfumatoError(f"There is no method {method!r} of distillation: {suggest(name, known)}")
    own = own.strip().removesuffix(")")
    word = f"{name}({own + ', ' if own else ''}teacher={teacher}, calls={calls!r})"
    make("loss", word)  # refuses what is wrong before anything is drawn
    return word


def _kind(loss: Any) -> Any:
    """The class of a registered loss."""
    return getattr(loss, "func", loss)


def _is_taught(loss: Any) -> bool:
    return isinstance(_kind(loss), type) and issubclass(_kind(loss), TaughtLoss)
