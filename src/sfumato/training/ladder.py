"""The ladder: the distance of samples to the teacher's own fine solution, by the number of calls."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato import folder, serialization
from sfumato.conditions import declared
from sfumato.diagnostics import report
from sfumato.errors import counted
from sfumato.files import remove, write_text
from sfumato.flow_map import FlowMap
from sfumato.guidance import SCALE, GuidedByCondition
from sfumato.objectives.flow_maps import inside
from sfumato.progress import counting
from sfumato.sample_checks import samples_of
from sfumato.sampling import sample
from sfumato.training.session import Hook, Session

FINE = 64  # steps of the solve that distances are measured from
SHOWN, LARGE = 256, 64  # noises of a distance, and of samples of as many numbers and more
CALLS = (1, 2, 4, 8)
FIRST = "paths"  # in the folder of a student in two stages, the run of the first


class Rung(NamedTuple):
    """The distance of `shown` samples from the teacher's fine solve on the same noise, at one number of calls.

    calls; how: "student", "default" or the name of the teacher's stored plan; rms: root mean square difference, in
    standard deviations of the data.
    """

    calls: int
    how: str
    rms: float


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


@torch.no_grad()
def ladder(student: Any, teacher: Any, calls: Sequence[int] = CALLS, seed: int = 1, **cond: Any) -> list[Rung]:
    """How far samples are from the teacher's solution of the ODE on shared noise, for each number of calls: the
    student, the teacher's default solver, and the plans stored in its file.

    The solution is the teacher's own, by FINE steps of Heun's method. cond: conditions, one value or one for each of
    the `shown` samples; by default each class in its turn.
    """
    number = shown(teacher)
    cond = cond or in_turn(teacher, number)

    def states(model: Any, steps: int, solver: Any = None, whose: str = "") -> Tensor:
        with samples_of(whose):
            found: Tensor = sample(model, number, steps, solver, seed, normalised=True, cond=cond)
        return inside(teacher, found).double()

    with counting("The model's own fine solution, calls of its network") as count, ExitStack() as stack:
        if isinstance(net := getattr(teacher, "net", None), nn.Module):
            stack.callback(net.register_forward_pre_hook(lambda *_: count()).remove)
        fine = states(teacher, FINE, "heun", "The model's own fine solution")
    scale = float(fine.square().mean().sqrt())
    plans: Mapping[str, Any] = getattr(teacher, "plans", {}) or {}
    rungs = []
    for each in calls:
        ways: dict[str, tuple[Any, int, Any]] = {
            "student": (student, each, None),
            "default": (teacher, each, "multistep"),
        }
        ways |= {name: (teacher, plan.steps, plan) for name, plan in plans.items() if plan.calls == each}
        for how, (model, steps, solver) in ways.items():
            whose = f"The student in {counted(each, 'call')}" if how == "student" else ""  # the distance says it
            off = (states(model, steps, solver, whose) - fine).square().mean().sqrt()
            rungs.append(Rung(each, how, float(off) / scale))
    return rungs


def advice(rungs: Sequence[Rung]) -> str:
    """Which way to sample for each number of calls, in words."""
    best = [
        min((rung for rung in rungs if rung.calls == calls), key=lambda rung: rung.rms)
        for calls in sorted({rung.calls for rung in rungs})
    ]
    wins = [str(rung.calls) for rung in best if rung.how == "student"]
    if not wins:
        return "The teacher is nearer to its own solution at each of these numbers of calls: keep sampling it."
    others = [str(rung.calls) for rung in best if rung.how != "student"]
    words = f"The student is nearer with {_calls(wins)}"
    return f"{words}; with {_calls(others)} take the teacher." if others else f"{words}."


def _calls(numbers: list[str]) -> str:
    return f"{' or '.join(numbers)} call{'' if numbers == ['1'] else 's'}"


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
        if set(declared(teacher) or {}) - set(in_turn(teacher, SHOWN)):  # conditions whose values only data have
            return
        student = serialization.load(session.path, device=model.device)  # as it is used, in float32
        with session.state.spending("ladder"):
            rungs = ladder(student, teacher, sorted({*CALLS, *student.calls}))
        facts: dict[str, Any] = {"step": session.state.step, "fine_steps": FINE, "samples": shown(teacher)}
        facts["rungs"] = [rung._asdict() for rung in rungs]
        at = ", ".join(f"{scale:g}" for scale in scales(teacher))
        said = advice(rungs) + (f" Compared at a guidance of {at} in turn." if at else "")
        write_text(session.path / report.LADDER, json.dumps(facts | {"advice": said}, indent=1) + "\n")
