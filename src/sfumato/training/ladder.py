"""The ladder: the distance of samples to the teacher's own fine solution, and a metric beside it, by the number of
calls."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato import folder, noise, serialization
from sfumato.conditions import declared, unfolded
from sfumato.diagnostics import report
from sfumato.errors import SfumatoError, counted, whole, wholes
from sfumato.files import remove, write_text
from sfumato.flow_map import FlowMap
from sfumato.guidance import SCALE, GuidedByCondition, guided
from sfumato.latent_diffusion import refuse_latent
from sfumato.machine import default_cpu
from sfumato.metrics.shared_noise import OnSharedNoise
from sfumato.model import Denoiser
from sfumato.objectives.flow_maps import inside
from sfumato.objectives.taught import lesson
from sfumato.process import Gaussian, Interpolant, Spectral
from sfumato.progress import counting
from sfumato.sample_checks import samples_of
from sfumato.sampling import sample
from sfumato.training.session import Hook, Session

FINE = 64  # steps of the solve that distances are measured from
SHOWN, LARGE = 256, 64  # noises of a distance, and of samples of as many numbers and more
_OF_PAIRS = 256  # steps of its fine solution
CALLS = (1, 2, 4, 8)
FIRST = "paths"  # in the folder of a student in two stages, the run of the first


class Rung(NamedTuple):
    """The distance of `shown` samples from the teacher's fine solve on the same noise, at one number of calls.

    calls; how: "student", a solver of the teacher (`report.SOLVERS`) or the name of its stored plan; rms: root mean
    square difference, in standard deviations of the data. metric, value, low, high: the name of a metric of these
    samples beside those of the fine solve (`metrics.shared_noise`), kid or mmd, and its 95 % interval; None where it
    says nothing.
    """

    calls: int
    how: str
    rms: float
    metric: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None


def shown(model: Any) -> int:
    """The number of samples of a distance; of large ones fewer say as much, and cost more."""
    return LARGE if math.prod(getattr(model, "shape", None) or (1,)) >= LARGE else SHOWN


def in_turn(teacher: Any, count: int) -> dict[str, Any]:
    """The conditions of `count` samples of a model of classes, each in its turn; none for other models. One that hears
    a scale of guidance is told `scales` in turn, each for all classes."""
    label: Any = (declared(teacher) or {}).get("label")
    classes = list(getattr(label, "classes", ()))
    found: dict[str, Any] = {"label": [classes[i % len(classes)] for i in range(count)]} if classes else {}
    if some := scales(teacher):
        found[SCALE] = [some[i // max(1, len(classes)) % len(some)] for i in range(count)]
    return found


def scales(teacher: Any) -> list[float]:
    """The scales of guidance at which a teacher of a range is compared: the ends and the middle; else none."""
    if not isinstance(teacher, GuidedByCondition) or teacher.known is None:
        return []
    (low,), (high,) = teacher.known.low, teacher.known.high
    return [low, (low + high) / 2, high]


@default_cpu()
@torch.no_grad()
def ladder(
    student: Any,
    teacher: Any,
    calls: Sequence[int] = CALLS,
    seed: int = 1,
    samples: int | None = None,
    **cond: Any,
) -> list[Rung]:
    """How far samples are from the teacher's solution of the ODE on shared noise, for each number of calls, and how far
    their law is from its law: of the student, the teacher by a solver, and the plans stored in its file.

        rms = sqrt(E|x - x_fine|^2 / E|x_fine|^2),   normalised for the model

    student, teacher: models, or the paths of their files or runs, of the same data; a teacher without guidance is
    taken under that which the student was distilled at. The solution is the teacher's own,
    by 64 steps of Heun's method, of an interpolant by 256 of its own. samples: by default 256, or 64 of 64 numbers and
    more. cond: conditions, one value or one for each of the samples; by default each class in its turn. Of pairs they
    are the sources, input=... Raises SfumatoError for models of other data, or without an ODE.
    """
    student, teacher = _of_one_law(student, teacher)
    calls = wholes("calls", calls)
    number = shown(teacher) if samples is None else whole("samples", samples, 2)
    cond = dict(unfolded(cond)) or in_turn(teacher, number)
    pairs = isinstance(teacher.process, Interpolant)
    solver = report.SOLVERS[pairs]

    def states(model: Any, steps: int, by: Any = None, whose: str = "") -> Tensor:
        with samples_of(whose):
            found: Tensor = sample(model, number, steps, by, seed, normalised=True, cond=cond)
        return inside(teacher, found).double()

    with counting("The model's own fine solution, calls of its network") as count, ExitStack() as stack:
        if isinstance(net := getattr(teacher, "net", None), nn.Module):
            stack.callback(net.register_forward_pre_hook(lambda *_: count()).remove)
        fine = states(teacher, *((_OF_PAIRS, solver) if pairs else (FINE, "heun")), "The model's own fine solution")
    scale, compare = float(fine.square().mean().sqrt()), OnSharedNoise(getattr(teacher, "spec", None))
    seen = compare.seen(fine)
    plans: Mapping[str, Any] = getattr(teacher, "plans", {}) or {}
    rungs = []
    for each in calls:
        ways: dict[str, tuple[Any, int, Any]] = {
            "student": (student, each, None),
            solver: (teacher, each, solver),
        }
        ways |= {name: (teacher, plan.steps, plan) for name, plan in plans.items() if plan.calls == each}
        for how, (model, steps, by) in ways.items():
            whose = f"The student in {counted(each, 'call')}" if how == "student" else ""  # the distance says it
            found = states(model, steps, by, whose)
            rms, beside = float((found - fine).square().mean().sqrt()) / scale, compare(compare.seen(found), seen)
            rungs.append(Rung(each, how, rms, *(() if beside is None else (compare.name, *beside[:3]))))
    return rungs


def _of_one_law(*models: Any) -> list[Any]:
    """The models of a ladder, read from their files. Raises SfumatoError unless both sample numbers in like units."""
    loaded = [serialization.load_sampler(one) if isinstance(one, str | os.PathLike) else one for one in models]
    for one in loaded:
        refuse_latent(one, "A ladder")
        if not isinstance(process := getattr(one, "process", None), Gaussian | Spectral | Interpolant):
            name = type(one if process is None else process).__name__
            raise SfumatoError(f"A ladder is of models with an ODE, and {name} has none: compare samples by metrics.")
    mine, other = ((one.shape, getattr(getattr(one, "spec", None), "normaliser", None)) for one in loaded)
    if mine != other:
        raise SfumatoError("The student and the teacher of a ladder are of other data, or in other units: give a pair.")
    if getattr(loaded[1], "two_times", False):
        raise SfumatoError("The teacher of a ladder is a flow map, which has no fine solution: give the student first.")
    return [loaded[0], _as_taught(*loaded)]


def _as_taught(student: Any, teacher: Any) -> Any:
    """A teacher without guidance under that of the student's run, which the student keeps."""
    said = lesson((getattr(student, "provenance", None) or {}).get("loss"))
    if said is None or not isinstance(teacher, Denoiser):
        return teacher
    found = guided(teacher, said.guidance, said.interval)
    return found.encoded_by(student.spec) if isinstance(found, GuidedByCondition) else found


def advice(rungs: Sequence[Rung]) -> str:
    """Which way to sample for each number of calls, in words: the nearest, unless the metric's intervals are apart."""
    numbers = sorted({rung.calls for rung in rungs})
    found = [_better([rung for rung in rungs if rung.calls == calls]) for calls in numbers]
    wins = [str(calls) for calls, (student, _) in zip(numbers, found, strict=True) if student]
    others = [str(calls) for calls, (student, _) in zip(numbers, found, strict=True) if not student]
    against = [str(calls) for calls, (_, against) in zip(numbers, found, strict=True) if against]
    if not against and not wins:
        return "The teacher is nearer to its own solution at each of these numbers of calls: keep sampling it."
    first = "Take the student" if against else "The student is nearer"
    words = f"{first} with {_calls(wins)}" if wins else ""
    if others:
        words += f"{'; with' if wins else 'With'} {_calls(others)} take the teacher"
    if not against:
        return f"{words}."
    name = next(rung.metric for rung in rungs if rung.metric is not None).upper()
    return f"{words}. With {_calls(against)} this is by {name}, whose intervals are apart, against the distance."


def _better(rungs: Sequence[Rung]) -> tuple[bool, bool]:
    """(whether the student is the better of ways of one number of calls, whether its distance says otherwise)."""
    nearest = min(rungs, key=lambda rung: rung.rms).how == "student"
    ours = [rung for rung in rungs if rung.how == "student"]
    theirs = [rung for rung in rungs if rung.how != "student"]
    if ours and theirs and all(_surely(ours[0], rung) for rung in theirs):
        return True, not nearest
    if any(_surely(rung, one) for rung in theirs for one in ours):
        return False, nearest
    return nearest, False


def _surely(rung: Rung, other: Rung) -> bool:
    """Whether the interval of a rung's metric lies below that of the other's."""
    return rung.high is not None and other.low is not None and rung.high < other.low


def _calls(numbers: list[str]) -> str:
    *some, last = numbers
    return f"{', '.join(some)} or {last} calls" if some else f"{last} call{'' if last == '1' else 's'}"


class Climb(Hook):
    """Writes ladder.json at the end of a run whose student has a teacher; once the run goes on, it is of a step
    before."""

    def start(self, session: Session) -> None:
        path = session.path / report.LADDER
        if not session.world.leads or not path.exists():
            return
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            said = f"Of step {facts['step']:,}, before the run went on: {facts['advice']}"
        except (ValueError, TypeError, KeyError):  # of an earlier version, or spoilt
            remove(path)
            return
        if not facts.get("before"):
            write_text(path, json.dumps({**facts, "before": True, "advice": said}, indent=1) + "\n")

    def end(self, session: Session) -> None:
        teacher, model = getattr(session.state.loss, "teacher", None), session.state.best
        if teacher is None or not isinstance(model, FlowMap) or not session.world.leads:
            return
        if session.path.name == FIRST and folder.is_run(session.path.parent):  # another stage follows
            return
        if (told := _told(session, teacher)) is None:
            return
        student = serialization.load(session.path, device=model.device)  # as it is used, in float32
        with session.state.spending("ladder"):
            rungs = ladder(student, teacher, sorted({*CALLS, *student.calls}), cond=told)
        facts: dict[str, Any] = {"step": session.state.step, "fine_steps": FINE, "samples": shown(teacher)}
        facts |= {"held_out": len(_held(session))} if told else {}
        facts["rungs"] = [rung._asdict() for rung in rungs]
        at = ", ".join(f"{scale:g}" for scale in scales(teacher))
        said = advice(rungs) + (f" Compared at a guidance of {at} in turn." if at else "")
        write_text(session.path / report.LADDER, json.dumps(facts | {"advice": said}, indent=1) + "\n")


def _told(session: Session, teacher: Any) -> dict[str, Any] | None:
    """The conditions of held-out samples, in turn and in the user's spelling, where some values of the teacher's are
    known from data alone; None if these data do not have them either."""
    known, held, source = declared(teacher) or {}, _held(session), session.source
    others = set(known) - set(in_turn(teacher, 1))
    if not others:
        return {}
    if others - set(source.conditions):
        return None
    rows = held[noise.permutation(session.config.seed, 0, len(held))]  # not the first ones: folders are sorted by class
    rows = rows[torch.arange(shown(teacher)) % len(held)]
    return {name: source.conditions[name].take(rows).spelt for name in known if name in source.conditions}


def _held(session: Session) -> Tensor:
    return session.holdout if len(session.holdout) else session.train
