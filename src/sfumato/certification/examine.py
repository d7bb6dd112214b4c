"""`certify`: run every check on every schedule and decide what counts as a fault."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from sfumato.certification import checks, law
from sfumato.certification.certificate import Certificate, Findings
from sfumato.certification.foreign import Foreign
from sfumato.certification.subjects import PlanSubject, SolverSubject, StepSubject, Subject
from sfumato.errors import SfumatoError, an, counted
from sfumato.machine import default_cpu
from sfumato.registry import make
from sfumato.schedule import Schedule
from sfumato.solvers import Adaptive, Plan

TOLERANCE = 0.15  # on a measured order
WHOLE_STEPS, LAW_STEPS, LAW_CALLS = 20, 200, 400  # laws are measured in LAW_STEPS steps, or as many as LAW_CALLS allow
ROUNDING = 1e-8


@default_cpu()
def certify(
    solver: Any,
    *,
    order: int | None = None,
    calls: int | Callable[[int], int] | None = None,
    name: str | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    quick: bool = False,
) -> Certificate:
    """Measure order, calls, contiguity, stability, repeatability and, for a stochastic solver, law, on exact models.

    solver: one of `solvers` or its name; a Plan; a function (model, z, t, s, state) -> (z, state), whose state starts
    as None; or a scheduler with set_timesteps and step (`Foreign` has more options). order, calls: what the solver
    promises: its order (known for plans and solvers of this library), and its calls per step, or a function of the
    number of steps. Errors are root mean square distances to the exact probability flow in units of hypot(alpha,
    sigma). quick: use fewer steps and samples.
    """
    begun = time.perf_counter()
    subject = as_subject(solver)
    subject.name, subject.order = name or subject.name, subject.order if order is None else order
    curves = subject.schedules if schedules is None else dict(schedules)
    found = []
    for i, (where, curve) in enumerate(curves.items()):
        one = _examine(subject, where, curve, quick, sampled=not quick or i == len(curves) - 1)
        found.append(dataclasses.replace(one, faults=tuple(_faults(subject, one, calls))))
    return Certificate(subject.name, subject.order, found[0].random, tuple(found), time.perf_counter() - begun)


def as_subject(solver: Any) -> Subject:
    """The subject for a caller's solver; a name refers to a solver of this library."""
    solver = make("solver", solver)
    if isinstance(solver, Subject):
        return solver
    if isinstance(solver, Adaptive):
        raise SfumatoError("An adaptive solver chooses its steps by its tolerances: it has no order to certify.")
    if isinstance(solver, Plan):
        return PlanSubject(solver)
    if callable(getattr(solver, "plan", None)):
        return SolverSubject(solver)
    if callable(getattr(solver, "set_timesteps", None)):
        return Foreign(solver)
    if callable(solver):
        return StepSubject(solver)
    raise SfumatoError(
        f"Cannot certify {an(type(solver).__name__)}: give a solver, a Plan, a function (model, z, t, s, state) -> "
        "(z, state), or a scheduler with set_timesteps and step."
    )


def _examine(subject: Subject, where: str, curve: Schedule | None, quick: bool, sampled: bool) -> Findings:
    """All checks on one schedule; sampled: whether to check the law of a stochastic solver by samples as well."""
    counted = checks.count_calls(subject, curve)
    first, begin = checks.first_time(subject, curve)
    same, random = checks.repeats(subject, curve)
    counts = subject.counts[: 7 if random else 6] if quick else subject.counts
    measure = law.weak_order if random else checks.order
    slope = None if subject.fixed else measure(subject, curve, counts)
    many, cost = counted[-1]
    steps = subject.fixed or (min(LAW_STEPS, LAW_CALLS * many // cost) if random else WHOLE_STEPS)
    setup = subject.attempt(curve, steps)
    drawn = setup if random else None
    return Findings(
        schedule=where,
        order=None if slope is None else slope.order,
        errors=() if slope is None else slope.errors,
        settled=slope is not None and slope.settled,
        start_order=checks.start_order(subject, curve) if subject.local and not random else None,
        calls=checks.calls_law(counted),
        counted=counted,
        unused=checks.unused_calls(subject, curve),
        first_call=first,
        t_start=begin,
        joins=checks.joins(subject, curve, law.defect if random else checks.defect),
        bounded_from=checks.bounded_from(subject, curve),
        same=same,
        random=random,
        whole=None if random or setup is None else (steps, checks.distance(setup)),
        reference=None if random or subject.fixed is None else checks.reference(subject, curve),
        bias=None if drawn is None else law.bias(drawn),
        bias_steps=None if drawn is None else steps,
        marginal=None if drawn is None or not sampled else law.marginal(drawn, steps, 2000 if quick else 4000),
    )


def _faults(subject: Subject, found: Findings, calls: int | Callable[[int], int] | None) -> list[str]:
    """The broken promises, one sentence each."""
    return [*_order_faults(subject, found), *_step_faults(subject, found, calls), *_law_faults(found)]


def _order_faults(subject: Subject, found: Findings) -> list[str]:
    faults = []
    declared, order = subject.order, found.order
    if order is not None:
        if found.random:
            # on a Gaussian the order may be higher than for general data
            if order < (1 if declared is None else declared) - TOLERANCE:
                faults.append(f"mean and variance converge with order {order:.2f}, not {declared or 1}")
        elif declared is None and order < 1 - TOLERANCE:
            faults.append(f"order {order:.2f}: it does not converge to the probability flow")
        elif declared is not None and abs(order - declared) > TOLERANCE:
            faults.append(f"order {order:.2f}, declared {declared}")
    early = found.start_order
    if declared is not None and early is not None and early < declared - 1 - TOLERANCE:
        faults.append(f"the first steps are of order {early:.2f}; order {declared} needs {declared - 1}")
    return faults


def _step_faults(subject: Subject, found: Findings, calls: int | Callable[[int], int] | None) -> list[str]:
    faults = []
    if found.unused:
        faults.append(f"calls whose result is not used: {', '.join(str(k + 1) for k in found.unused)} of a short run")
    for steps, count in found.counted if calls is not None else ():
        promised = calls(steps) if callable(calls) else int(calls or 0) * steps
        if promised != count:
            faults.append(f"{counted(count, 'call')} in {counted(steps, 'step')}, declared {promised}")
            break
    if not found.random and abs(found.first_call - found.t_start) > 1e-9 * max(1.0, abs(found.t_start)):
        faults.append(f"the first call is at t = {found.first_call:.6g}, but the start at {found.t_start:.6g}")
    if found.whole is not None and found.reference is not None and found.whole[1] > found.reference + ROUNDING:
        faults.append(f"{found.whole[1]:.2g} from the exact map, where DDIM on the same calls is {found.reference:.2g}")
    if isinstance(subject, PlanSubject) and subject.odd_lines():
        lines = ", ".join(str(k) for k in subject.odd_lines())
        faults.append(f"steps do not join: from call {lines} the table leads to another level than that of the next")
    coarse, fine = found.joins
    limit = _joins_limit(subject, found)
    if not (fine <= limit or (subject.fixed is None and fine <= coarse / 2)):
        faults.append(f"steps do not join: states are {fine:.1e} sigma off the level of their call, however many steps")
    if found.bounded_from is None:
        faults.append("runs on a stiff Gaussian are not bounded, or not finite")
    if not found.same:
        faults.append("the same seed gives other samples")
    return faults


def _joins_limit(subject: Subject, found: Findings) -> float:
    """Below this, steps join whatever their number."""
    if subject.fixed is not None:
        return 0.3  # one number of steps shows no trend
    chance = 0.0 if found.bias is None else found.bias.stderr[1]
    # Langevin updates at a finite step are a little off their level, and say so by their order
    return max(ROUNDING, 100 * subject.floor, 12 * chance, 0.02 if found.random else 0.0)


def _law_faults(found: Findings) -> list[str]:
    faults = []
    if (bias := found.bias) is not None and found.order is None:
        for word, value, stderr in zip(("mean", "variance"), (bias.mean, bias.variance), bias.stderr, strict=True):
            if abs(value) > 0.03 + 4 * stderr:
                faults.append(f"the {word} is {value:+.3f} off in {found.bias_steps} steps")
    if found.marginal is not None and found.marginal.distance > 1.5 * found.marginal.floor:
        m = found.marginal
        faults.append(f"samples are {m.distance:.3f} from the law in {m.steps} steps, exact ones {m.floor:.3f}")
    return faults
