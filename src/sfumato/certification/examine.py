"""`certify`: every check on every schedule, and what counts as a fault."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sfumato.certification import law, ode
from sfumato.certification.certificate import Certificate, Findings
from sfumato.certification.foreign import Foreign
from sfumato.certification.slopes import Slope
from sfumato.certification.subjects import PlanSubject, SolverSubject, StepSubject, Subject
from sfumato.errors import SfumatoError
from sfumato.registry import make
from sfumato.schedule import Schedule
from sfumato.solvers import Adaptive, Plan

TOLERANCE = 0.15  # of a measured order
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
FOREIGN_COUNTS = (10, 20, 40, 100, 200, 500)  # divisors of a thousand trained steps
WHOLE_STEPS, LAW_STEPS = 20, 200
QUICK_CALLS = 400
ROUNDING = 1e-8


def certify(
    solver: Any,
    *,
    order: int | None = None,
    calls: int | Callable[[int], int] | None = None,
    name: str | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    quick: bool = False,
) -> Certificate:
    """Order, calls, contiguity, stability, repeatability and, for a stochastic solver, law, on the exact models.

    solver: one of `solvers` or its name; a Plan; a function (model, z, t, s, state) -> (z, state), whose state is None
    at first; or a scheduler with set_timesteps and step (`Foreign` takes more about one). order and calls are what it
    promises: the order (a Plan or a solver of ours says it itself), and the calls a step or a function of the number of
    steps. Errors are root mean square distances to the exact probability flow in units of hypot(alpha, sigma). quick
    takes fewer steps and samples.
    """
    begun = time.perf_counter()
    subject = as_subject(solver, name, order)
    curves = subject.schedules if schedules is None else dict(schedules)
    random = ode.repeats(subject, next(iter(curves.values()))).random
    found = []
    for i, (where, curve) in enumerate(curves.items()):
        work = Work(random, quick, sampled=not quick or i == len(curves) - 1)
        one = _examine(subject, where, curve, work)
        found.append(dataclasses.replace(one, faults=tuple(_faults(subject, one, calls))))
    return Certificate(subject.name, subject.order, random, tuple(found), time.perf_counter() - begun)


def as_subject(solver: Any, name: str | None = None, order: int | None = None) -> Subject:
    """The subject that stands for what a caller gave; a name is that of a solver of ours."""
    solver = make("solver", solver)
    if isinstance(solver, Subject):
        return solver
    if isinstance(solver, Adaptive):
        raise SfumatoError(
            "An adaptive solver takes the steps that its tolerances ask for: there is no order in them to certify."
        )
    if isinstance(solver, Plan):
        return PlanSubject(solver, name, order)
    if callable(getattr(solver, "plan", None)):
        return SolverSubject(solver, name, order)
    if callable(getattr(solver, "set_timesteps", None)):
        return Foreign(solver, order=order, name=name)
    if callable(solver):
        return StepSubject(solver, name, order)
    raise SfumatoError(
        f"Cannot certify a {type(solver).__name__}: give a solver, a Plan, a function (model, z, t, s, state) -> "
        "(z, state), or a scheduler with set_timesteps and step."
    )


class Work(NamedTuple):
    """random: it draws noise; quick: fewer steps and samples; sampled: the law is looked at by samples as well."""

    random: bool
    quick: bool
    sampled: bool

    def counts(self, subject: Subject) -> tuple[int, ...]:
        if isinstance(subject, Foreign):
            return FOREIGN_COUNTS
        return COUNTS if not self.quick else COUNTS[:7] if self.random else COUNTS[:6]


def _examine(subject: Subject, where: str, curve: Schedule | None, work: Work) -> Findings:
    """All the checks on one schedule."""
    counted = ode.calls(subject, curve)
    first, begin = ode.first_time(subject, curve)
    again = ode.repeats(subject, curve)
    random, slope = work.random, _slope(subject, curve, work)
    early = ode.start_order(subject, curve) if subject.local and not random and curve is not None else None
    whole = None if random else ode.whole_error(subject, curve, subject.fixed or WHOLE_STEPS)
    bias, marginal, steps = _law(subject, curve, work) if random else (None, None, None)
    return Findings(
        schedule=where,
        order=None if slope is None else slope.order,
        errors=() if slope is None else slope.errors,
        settled=slope is not None and slope.settled,
        start_order=early,
        calls=counted.law,
        counted=counted.counted,
        unused=counted.unused,
        first_call=first,
        t_start=begin,
        joins=(law.joins if random else ode.joins)(subject, curve, (40, 160)),
        bounded_from=ode.bounded_from(subject, curve),
        same=again.same,
        random=again.random,
        whole=None if whole is None else (subject.fixed or WHOLE_STEPS, whole),
        reference=None if random or subject.fixed is None else ode.reference(subject, curve),
        bias=bias,
        bias_steps=steps,
        marginal=marginal,
    )


def _slope(subject: Subject, curve: Schedule | None, work: Work) -> Slope | None:
    if subject.fixed is not None:
        return None
    measure = law.weak_order if work.random else ode.order
    return measure(subject, curve, work.counts(subject))


def _law(
    subject: Subject, curve: Schedule | None, work: Work
) -> tuple[law.Bias | None, law.Marginal | None, int | None]:
    steps = subject.fixed or LAW_STEPS
    walk = ode.attempt(lambda: subject.walk(curve, steps, subject.whole(curve)))
    if walk is None:
        return None, None, None
    if work.quick and subject.fixed is None and ode.calls_of(walk) > QUICK_CALLS:
        steps = max(1, steps * QUICK_CALLS // ode.calls_of(walk))
        walk = subject.walk(curve, steps, subject.whole(curve))
    marginal = law.marginal(walk, steps, 2000 if work.quick else 4000) if work.sampled else None
    return law.bias(walk), marginal, steps


def _faults(subject: Subject, found: Findings, calls: int | Callable[[int], int] | None) -> list[str]:
    """What is wrong, in words."""
    return [*_order_faults(subject, found), *_step_faults(subject, found, calls), *_law_faults(found)]


def _order_faults(subject: Subject, found: Findings) -> list[str]:
    faults = []
    declared, order = subject.order, found.order
    if order is not None:
        if found.random:
            # a Gaussian may be kinder than the order that holds for any data
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
        faults.append(f"calls whose answer is not used: {', '.join(str(k + 1) for k in found.unused)} of a short run")
    for steps, count in found.counted if calls is not None else ():
        promised = calls(steps) if callable(calls) else int(calls or 0) * steps
        if promised != count:
            faults.append(f"{count} calls in {steps} steps, declared {promised}")
            break
    if not found.random and abs(found.first_call - found.t_start) > 1e-9 * max(1.0, abs(found.t_start)):
        faults.append(f"the first call stands at t = {found.first_call:.6g}, the start at {found.t_start:.6g}")
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
    if found.bias is not None and found.order is None:
        for word, value, stderr in zip(("mean", "variance"), found.bias[:2], found.bias.stderr, strict=True):
            if abs(value) > 0.03 + 4 * stderr:
                faults.append(f"the {word} is {value:+.3f} off in {found.bias_steps} steps")
    if found.marginal is not None and found.marginal.distance > 1.5 * found.marginal.floor:
        m = found.marginal
        faults.append(f"samples are {m.distance:.3f} from the law in {m.steps} steps, exact ones {m.floor:.3f}")
    return faults
