"""Distillation: a model that samples in few calls, from a trained one: teacher -> flow map -> quality against calls."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import serialization
from sfumato.compose import Wrapped
from sfumato.conditions import declared
from sfumato.errors import SfumatoError, an, suggest, whole
from sfumato.flow_map import FlowMap
from sfumato.guidance import Guided, Scale
from sfumato.machine import default_cpu
from sfumato.model import Denoiser
from sfumato.objectives.flow_maps import MapLoss
from sfumato.registry import Named, make
from sfumato.sampling import sample
from sfumato.training import Run, train

AUTO = "trajectory-consistency"
DRAWN = 4096  # samples of the teacher, where no data are given
FINE = 64  # steps of the solve that distances are measured from
SHOWN = 256  # noises of a distance


class Rung(NamedTuple):
    """The distance of `count` samples from the teacher's fine solve on the same noise, at one number of calls.

    calls; how: "student", "default" or the name of the teacher's stored plan; rms: root mean square difference, in
    standard deviations of the data.
    """

    calls: int
    how: str
    rms: float


@default_cpu()
def distill(
    teacher: Any,
    out: str | os.PathLike[str] | None = None,
    data: Any = None,
    labels: Any = None,
    method: str = "auto",
    calls: Sequence[int] = (1, 2, 4),
    guidance: Scale | None = None,
    interval: tuple[float, float] | None = None,
    samples: int = DRAWN,
    **settings: Any,
) -> Run:
    """Train a flow map that samples like `teacher` in few calls: `sf.distill("runs/photos", minutes=5)`.

    teacher: a denoiser of real numbers, its file or its run. data: its training data, in any form that `sf.train`
    takes; by default `samples` of its own samples, so that its file is enough. method: the name of a loss
    (`objectives.flow_maps`); "auto" is the one that comes nearest to the teacher in equal time. calls: the numbers of
    calls that the student is for. guidance, interval: the scale of the teacher's guidance and its levels of logsnr,
    which the student then has for good, at no second call. settings: those of `sf.train`.
    Returns the run; `ladder(run.denoiser, teacher)` compares the two by the number of calls.
    """
    teacher = serialization.load(teacher) if isinstance(teacher, str | os.PathLike) else teacher
    student = FlowMap.student(innermost(teacher), tuple(calls))
    guide = teacher if guidance is None else Guided(teacher, guidance, interval)
    if data is None:
        data, labels = drawn(guide, whole("samples", samples, least=2), settings.get("seed", 0))
    loss = loss_named(method, guide, settings.get("seed", 0))
    return train(data, out, labels, model=student, loss=loss, **{"guidance": 1.0, **settings})


def loss_named(method: str, teacher: Any, seed: int = 0) -> Any:
    """The loss of a method, with its teacher."""
    method = AUTO if method == "auto" else method
    known = [name for name, kind in Named("loss").items() if _is_map(kind)]
    if method.split("(")[0] not in known:
        raise SfumatoError(f"There is no method {method!r} of distillation: {suggest(method, known)}")
    return make("loss", method, {"teacher": teacher, "seed": seed})


def _is_map(kind: Any) -> bool:
    return isinstance(getattr(kind, "func", kind), type) and issubclass(getattr(kind, "func", kind), MapLoss)


def innermost(teacher: Any) -> Denoiser:
    """The denoiser within a teacher."""
    while isinstance(teacher, Wrapped):
        teacher = teacher.inner
    if not isinstance(teacher, Denoiser):
        raise SfumatoError(
            f"Distillation starts from a denoiser, such as sf.load gives, not {an(type(teacher).__name__)}."
        )
    return teacher


def drawn(teacher: Any, count: int, seed: int) -> tuple[Any, Any]:
    """(samples of a teacher in the user's units, their labels); each class is drawn equally often."""
    known = dict(declared(teacher) or {})
    if set(known) - {"label"}:
        raise SfumatoError(
            f"The model has the condition {next(name for name in known if name != 'label')!r}, whose values only data "
            "have: pass data=, the data that it was trained on."
        )
    cond = in_turn(teacher, count)
    return sample(teacher, count, seed=seed, cond=cond), cond.get("label")


def in_turn(teacher: Any, count: int) -> dict[str, list[str]]:
    """The conditions of `count` samples of a model of classes, each in its turn; none for other models."""
    label: Any = (declared(teacher) or {}).get("label")
    classes = list(getattr(label, "classes", ()))
    return {"label": [classes[i % len(classes)] for i in range(count)]} if classes else {}


@torch.no_grad()
def ladder(student: Any, teacher: Any, calls: Sequence[int] = (1, 2, 4, 8), seed: int = 1, **cond: Any) -> list[Rung]:
    """How far samples are from the teacher's solution of the ODE on shared noise, for each number of calls: the
    student, the teacher's default solver, and the plans stored in its file.

    The solution is the teacher's own, by FINE steps of Heun's method. cond: conditions, one value or one for each of
    the SHOWN samples; by default each class in its turn.
    """
    cond = cond or in_turn(teacher, SHOWN)

    def states(model: Any, steps: int, solver: Any = None) -> Tensor:
        found: Tensor = sample(model, SHOWN, steps, solver, seed, normalised=True, cond=cond)
        return found.double()

    fine = states(teacher, FINE, "heun")
    scale = float(fine.square().mean().sqrt())
    plans: Mapping[str, Any] = getattr(teacher, "plans", {}) or {}
    rungs = []
    for count in calls:
        ways: dict[str, tuple[Any, int, Any]] = {
            "student": (student, count, None),
            "default": (teacher, count, "multistep"),
        }
        ways |= {name: (teacher, plan.steps, plan) for name, plan in plans.items() if plan.calls == count}
        for how, (model, steps, solver) in ways.items():
            off = (states(model, steps, solver) - fine).square().mean().sqrt()
            rungs.append(Rung(count, how, float(off) / scale))
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
    words = f"The student is nearer with {' or '.join(wins)} calls"
    return f"{words}; with {' or '.join(others)} calls take the teacher." if others else f"{words}."
