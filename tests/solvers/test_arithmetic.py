"""The fused arithmetic of a plan is the sum that its lines write out, whatever the table, dtype, layout or gradient."""

import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loops import every
from sfumato.belief import Estimate
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow
from sfumato.solvers import Heun, Multistep, Plan
from sfumato.solvers.arithmetic import compiled
from sfumato.solvers.lines import Linear as Line
from solver_cases import SOLVERS, STRUCTURE

F64 = torch.float64


class Wavy:
    """A model that is no linear map: x = sin(2 z) + t."""

    def __init__(self, schedule):
        self.process = Gaussian(schedule)

    def __call__(self, z, t):
        return Estimate(z, t, self.process.schedule, x=torch.sin(2 * z) + t)


def written_out(plan, model, z, noise):
    """Every state of the plan by its lines, each a sum over all past states and estimates."""
    states, signals = [z], []
    for k, line in enumerate(plan.lines):
        signals.append(model(states[k], plan.times[k]).x)
        terms = [c * states[j] for j, c in line.z.items()] + [c * signals[j] for j, c in line.x.items()]
        states.append(sum(terms) + line.noise * noise(k, z))
    return states


def bell(k, like):
    return torch.cos(torch.arange(like.numel(), dtype=like.dtype) * (k + 1)).reshape(like.shape)


def random_table(seed, calls=9):
    """Lines that follow no method: full and sparse, of one proportion and of several, without an x or a z."""
    rng = random.Random(seed)
    proportion = [rng.choice([0.0, -1.0, 0.5, 30.0, 1e-3]) for _ in range(calls)]
    lines = []
    for k in range(calls):
        z, x = {k: rng.uniform(-0.5, 0.5)}, {k: rng.uniform(-0.5, 0.5)}
        for j in range(k):
            kind = rng.randrange(5)
            c = rng.uniform(-0.2, 0.2)
            if kind == 0:
                z[j], x[j] = c * proportion[j] / 30, c / 30
            elif kind == 1:
                x[j] = c
            elif kind == 2 and j % 3 == 0:
                z[j] = c
        if k % 4 == 3:
            del z[k]
        elif k % 4 == 2:
            del x[k]
        lines.append(Line(z, x, 0.1 if k % 2 else 0.0))
    times = tuple(1 - k / (calls + 1) for k in range(calls))
    path = [tuple(float(c) for c in Cosine()(t)) for t in (*times, 0.0)]
    return Plan("random", calls, times, 0.0, tuple(path), tuple(lines))


@every(name=[*SOLVERS], curve=["vp", "ve", "flow"])
def test_a_run_is_what_the_lines_say(name, curve):
    schedule, model = STRUCTURE[curve], Wavy(STRUCTURE[curve])
    plan = SOLVERS[name].plan(schedule, 7)
    z = torch.linspace(-2, 2, 12, dtype=F64).reshape(2, 2, 3)
    wanted = written_out(plan, model, z, bell)
    for state, expected in zip(plan.run(model, z, bell), wanted, strict=True):
        torch.testing.assert_close(state.z, expected, rtol=1e-9, atol=1e-9)


@every(seed=range(12))
def test_any_table_runs(seed):
    plan, model = random_table(seed), Wavy(Cosine())
    z = torch.linspace(-2, 2, 5, dtype=F64).reshape(1, 5)
    wanted = written_out(plan, model, z, bell)
    for state, expected in zip(plan.run(model, z, bell), wanted, strict=True):
        torch.testing.assert_close(state.z, expected, rtol=1e-11, atol=1e-11)


@every(order=[1, 2, 3, 4], row=["flow", "F", "x", "eps"])
def test_a_multistep_method_keeps_one_tensor_a_call(row, order):
    """Beside z and x a line sees at most `order` memories: past values of one row, and the newest."""
    program = compiled(Multistep(order, row, start="low").plan(VE(), 12).lines)
    assert program.weights.shape[1] <= order
    assert all(len(move.keep) <= 1 for move in program.moves)


def test_gradients_are_those_of_the_written_lines():
    for plan in (random_table(3), Multistep(3).plan(Cosine(), 6), Heun().plan(Cosine(), 4)):
        model = Wavy(Cosine())
        z = torch.linspace(-1, 1, 4, dtype=F64).reshape(1, 4).requires_grad_()
        *_, last = plan.run(model, z, bell)
        (got,) = torch.autograd.grad(last.z.square().sum(), z)
        (wanted,) = torch.autograd.grad(written_out(plan, model, z, bell)[-1].square().sum(), z)
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


class Late(Wavy):
    """Asks for a gradient with respect to `weight` from a call on."""

    def __init__(self, schedule, first):
        super().__init__(schedule)
        self.weight, self.first, self.calls = torch.ones((), dtype=F64, requires_grad=True), first, 0

    def __call__(self, z, t):
        self.calls += 1
        return Estimate(z, t, self.process.schedule, x=(self.weight if self.calls > self.first else 1.0) * torch.sin(z))


def test_a_gradient_may_begin_on_the_way():
    """What came before the first call with a gradient is a constant, and stays what it was."""
    plan = Multistep(3).plan(Cosine(), 8)
    z = torch.linspace(-1, 1, 4, dtype=F64).reshape(1, 4)

    def slope(weight):
        model = Late(Cosine(), 4)
        model.weight.data.fill_(weight)
        *_, last = plan.run(model, z)
        return last.z.square().sum(), model

    value, model = slope(1.0)
    (got,) = torch.autograd.grad(value, model.weight)
    with torch.no_grad():
        step = 1e-5
        wanted = (slope(1 + step)[0] - slope(1 - step)[0]) / (2 * step)
    assert float(got) == pytest.approx(float(wanted), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_loses_only_that_of_the_state(dtype):
    """The state keeps its dtype; each step rounds once, on the way out."""
    plan, model = Multistep(3).plan(Flow(), 8), Wavy(Flow())
    z = torch.linspace(-2, 2, 64, dtype=dtype).reshape(4, 16)
    for state, exact in zip(plan.run(model, z), plan.run(model, z.to(F64)), strict=True):
        assert state.z.dtype == dtype
        gap = (state.z.to(F64) - exact.z).abs().max()
        assert float(gap) < 40 * torch.finfo(dtype).eps


def test_states_that_were_handed_out_stay_and_nothing_given_is_written_to():
    plan, model = Multistep(3).plan(Cosine(), 9), Wavy(Cosine())
    z = torch.linspace(-2, 2, 6, dtype=F64).reshape(1, 6)
    before = z.clone()
    seen = []
    for state in plan.run(model, z):
        seen.append((state, state.z.clone(), None if state.belief is None else state.belief.x.clone()))
    assert torch.equal(z, before)
    for state, then, x in seen:
        assert torch.equal(state.z, then)
        assert x is None or torch.equal(state.belief.x, x)


def test_layouts_of_memory():
    """A state and estimates in channels_last give the same values."""
    plan, z = Multistep(3).plan(Cosine(), 6), torch.linspace(-1, 1, 48, dtype=F64).reshape(2, 3, 2, 4)
    plain = [state.z for state in plan.run(Wavy(Cosine()), z)]
    last = [state.z for state in plan.run(Wavy(Cosine()), z.contiguous(memory_format=torch.channels_last))]
    for a, b in zip(plain, last, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Counting(TorchDispatchMode):
    """Counts the operations of torch."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_a_walk_costs_a_few_operations():
    """Above the model's call no more than 6 a call, at order 3 with a corrector as at order 1."""

    class Ready:
        def __init__(self, z):
            self.process = Gaussian(Cosine())
            self.belief = Estimate(z, 0.5, Cosine(), x=z)

        def __call__(self, z, t):
            return self.belief

    z = torch.randn(1, 3, 8, 8)
    model = Ready(z)
    found = []
    for solver in (Multistep(1), Multistep(2), Multistep(3, corrector=3, start="low")):
        plan = solver.plan(Cosine(), 50)
        with torch.no_grad(), Counting() as counting:
            list(plan.run(model, z))
        found.append((plan.name, counting.count / plan.calls))
    assert all(1 < count <= 6 for _, count in found), found
