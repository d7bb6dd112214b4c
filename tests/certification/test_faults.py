"""A certificate finds what is wrong: each seeded fault is flagged, and the right solver beside it passes."""

import dataclasses
import functools
import math

import pytest
import torch

from sfumato.certification import certify
from sfumato.errors import SfumatoError
from sfumato.schedules import VE, Cosine, Flow
from sfumato.solvers import DDIM, Multistep, Plan, Solver, grids

FLOW = {"flow": Flow()}


def level(model, t):
    alpha, sigma = model.process.schedule(t)
    return float(alpha), float(sigma)


def two_m(fault=False):
    """DPM-Solver++ 2M (2211.01095, Algorithm 2); fault: sigma_t where sigma_s belongs, in the weight of the past."""

    def step(model, z, t, s, state):
        (at, st), (as_, ss) = level(model, t), level(model, s)
        x = model(z, t).x
        h = math.log(as_ / ss) - math.log(at / st)
        mean = x
        if state is not None:
            past, last = state
            weight = math.log(as_ / (st if fault else ss)) - math.log(at / st)
            mean = x + weight / (2 * last) * (x - past)
        return ss / st * z - as_ * math.expm1(-h) * mean, (x, h)

    return step


def ddim(model, z, t, s, state):
    (at, st), (as_, ss) = level(model, t), level(model, s)
    x = model(z, t).x
    return as_ * x + ss / st * (z - at * x), None


def ancestral(factor=1.0):
    """DDPM's step (2006.11239, Eq. 7), its noise times `factor`."""

    def step(model, z, t, s, state):
        (at, st), (as_, ss) = level(model, t), level(model, s)
        x = model(z, t).x
        ratio = at / as_
        spread = st**2 - ratio**2 * ss**2
        mean = ratio * ss**2 / st**2 * z + as_ * spread / st**2 * x
        return mean + factor * math.sqrt(spread) * ss / st * torch.randn_like(z), None

    return step


def fault_of(solver, **options):
    found = certify(solver, schedules=options.pop("schedules", FLOW), quick=True, **options)
    assert found.passed == (not found.faults)
    return " ".join(found.faults)


@pytest.mark.slow
def test_a_user_function_of_order_two_passes():
    found = certify(two_m(), order=2, calls=1, quick=True)
    assert found.passed, found.faults
    assert [one.schedule for one in found.findings] == ["VP", "VE", "flow"]
    for one in found.findings:
        assert one.order == pytest.approx(2, abs=0.15) and one.calls == "K" and not one.random


@pytest.mark.parametrize("curve", [Flow(), VE()], ids=["flow", "VE"])
def test_an_order_one_fault_is_flagged(curve):
    """A multistep with sigma_t where sigma_s belongs is consistent, finite, and of order 1."""
    said = fault_of(two_m(fault=True), order=2, schedules={"curve": curve})
    assert "declared 2" in said and "curve: order" in said


def test_an_order_one_fault_is_flagged_without_a_declared_order_where_it_does_not_converge():
    def halved(model, z, t, s, state):
        end, state = ddim(model, z, t, s, state)
        return z + 0.5 * (end - z), state

    assert "does not converge" in fault_of(halved)


def ramp(model, z, t, s, state):
    """Adams-Bashforth of order 3 in flow time that starts with orders 1 and 2."""
    belief = model(z, t)
    past = [(t, belief.velocity), *(state or [])][:3]
    times = [one for one, _ in past]
    end = z
    for i, (node, value) in enumerate(past):
        others = times[:i] + times[i + 1 :]

        # the integral of a polynomial of degree 2 by Simpson's rule is exact
        def basis(u, node=node, others=others):
            return math.prod((u - other) / (node - other) for other in others)

        end = end + (s - t) / 6 * (basis(t) + 4 * basis((s + t) / 2) + basis(s)) * value
    return end, past


def test_a_low_order_start_is_flagged():
    assert "first steps are of order" in fault_of(ramp, order=3)
    assert fault_of(ramp, order=2) == "" or "first steps" not in fault_of(ramp, order=2)
    assert fault_of(Multistep(3)) == ""


@dataclasses.dataclass(frozen=True)
class Spoilt(Solver):
    """A solver's plan with something changed."""

    change: object
    base: Solver = dataclasses.field(default_factory=lambda: DDIM(grid=grids.auto()))
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)

    def build(self, b):
        raise AssertionError("built by its base")

    def plan(self, schedule, steps=20, t_start=1.0, t_stop=0.0):
        return self.change(self.base.plan(schedule, steps, t_start, t_stop), schedule)


def late(plan: Plan, schedule):
    """The first call stands later than the start."""
    t = 0.97 * plan.times[0]
    alpha, sigma = schedule(t)
    path = ((float(alpha), float(sigma)), *plan.path[1:])
    return dataclasses.replace(plan, times=(t, *plan.times[1:]), path=path)


def displaced(plan: Plan, schedule):
    """Calls where they should be, but the first step goes from where the start is not."""
    alpha, sigma = (float(c) for c in schedule(0.97 * plan.times[0]))
    to_alpha, to_sigma = plan.path[1]
    first = plan.lines[0]._replace(z={0: to_sigma / sigma}, x={0: to_alpha - to_sigma / sigma * alpha})
    return dataclasses.replace(plan, lines=(first, *plan.lines[1:]))


def test_a_shifted_start_is_flagged():
    assert fault_of(Spoilt(lambda plan, schedule: plan)) == ""
    assert "the first call is at" in fault_of(Spoilt(late))
    assert "steps do not join" in fault_of(Spoilt(displaced))


@pytest.mark.slow
def test_a_call_too_many_is_flagged():
    def wasteful(model, z, t, s, state):
        if state is None:
            model(z, t)
        return ddim(model, z, t, s, state)[0], True

    def twice_first(model, z, t, s, state):
        """Heun's step at first: nothing is wasted, and yet there are K + 1 calls."""
        if state is not None:
            return ddim(model, z, t, s, None)[0], True
        first = model(z, t).velocity
        return z + (s - t) / 2 * (first + model(z + (s - t) * first, s).velocity), True

    assert "not used: 1 of" in fault_of(wasteful)
    found = certify(twice_first, schedules=FLOW, quick=True)
    assert found.passed and found.findings[0].calls == "K + 1"
    assert "declared 3" in fault_of(twice_first, calls=1)
    assert fault_of(twice_first, calls=lambda steps: steps + 1) == ""


@pytest.mark.slow
def test_noise_of_the_wrong_size_is_flagged():
    """In a plan by its exact moments, in a function by many samples."""

    def louder(factor, plan, schedule):
        lines = tuple(line._replace(noise=factor * line.noise) for line in plan.lines)
        return dataclasses.replace(plan, lines=lines)

    ddpm = DDIM(eta=1.0, grid=grids.auto())
    assert fault_of(ddpm) == ""
    for factor in (0.9, 1.1):
        assert "mean and variance converge" in fault_of(Spoilt(functools.partial(louder, factor), ddpm))
        assert "variance is" in fault_of(ancestral(factor))


def test_a_stochastic_function_passes():
    found = certify(ancestral(), schedules=FLOW, quick=True)
    assert found.passed and found.stochastic, found.faults
    one = found.findings[0]
    assert one.order is None and one.bias.stderr[1] > 0 and one.marginal.distance < 1.5 * one.marginal.floor


def test_a_run_without_bound_is_flagged():
    """The explicit two-step method of order 3 has a root of -5: consistent, and it never converges (Dahlquist 1956)."""

    def dahlquist(model, z, t, s, state):
        slope = model(z, t).velocity
        if state is None:
            return z + (s - t) * slope, (z, slope)
        last, before = state
        return -4 * z + 5 * last + (s - t) * (4 * slope + 2 * before), (z, slope)

    assert "not bounded" in fault_of(dahlquist)


def test_what_does_not_repeat_is_flagged():
    count = iter(range(10**6))

    def restless(model, z, t, s, state):
        end, state = ddim(model, z, t, s, state)
        return end + 1e-9 * next(count), state

    assert "the same seed gives other samples" in fault_of(restless)


# -- one plan ------------------------------------------------------------------------------------------------------


@pytest.mark.first(1)
@pytest.mark.parametrize("curve", [Cosine(), VE()], ids=["cosine", "VE"])
def test_a_plan_is_certified_on_its_own_levels(curve):
    plan = Multistep(2).plan(curve, 12)
    found = certify(plan)
    assert found.passed, found.faults
    one = found.findings[0]
    assert one.schedule == "its own" and one.order is None and one.counted == ((12, 12),)
    assert one.whole[0] == 12 and one.whole[1] < 0.05


def test_a_spoilt_plan_is_flagged():
    plan = DDIM(grid=grids.auto()).plan(Cosine(), 12)
    line = plan.lines[3]
    lines = (*plan.lines[:3], line._replace(x={3: 2 * line.x[3] + 0.2}), *plan.lines[4:])
    assert "do not join" in " ".join(certify(dataclasses.replace(plan, lines=lines)).faults)


def test_what_cannot_be_certified_is_one_sentence():
    with pytest.raises(SfumatoError, match="Cannot certify an int"):
        certify(3)
