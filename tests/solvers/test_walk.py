"""A walk that is advanced from outside: rows at calls and of plans of their own, chosen, doubled and left out."""

import dataclasses
import itertools

import pytest
import torch

from sfumato import noise
from sfumato.belief import Beliefs, Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian, Product
from sfumato.schedules import Cosine, Flow
from sfumato.solvers import (
    DDIM,
    DDPM,
    Ancestral,
    Bridge,
    Corrector,
    Heun,
    Linear,
    Multistep,
    OptimalDDPM,
    Plan,
    SDEDPMSolver,
    UniPC,
    default,
    together,
)
from sfumato.solvers.brownian import along

F64 = torch.float64
CURVE = Cosine()
SOLVERS = {
    "ddim": DDIM(), "ddpm": DDPM(), "heun": Heun(), "multistep": Multistep(3), "unipc": UniPC(2),
    "default": default(exact=True), "sde": SDEDPMSolver(2), "optimal": OptimalDDPM(),
}  # fmt: skip


def law():
    return GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])


@pytest.fixture
def model():
    return law().denoiser(Gaussian(CURVE))


def starts(count, seed=0):
    return noise.normal(seed, range(count), (2,), dtype=F64)


def draws(count, seed=3):
    return noise.Noise(seed, torch.arange(count), noise.STEP)


def end(plan, model, z, source, **cond):
    *_, last = plan.run(model, z, source, **cond)
    return last.z


def test_advancing_is_running(model):
    z, label = starts(5), torch.tensor([0, 1, 0, -1, 1])
    for name, solver in SOLVERS.items():
        plan = solver.plan(CURVE, 6)
        walk = plan.start(model, z, draws(5), label=label)
        shown = list(plan.run(model, z, draws(5), label=label))
        for k, state in enumerate(shown[:-1]):
            assert torch.equal(walk.z, state.z) and walk.t.tolist() == [state.t] * 5 == [plan.times[k]] * 5, name
            assert walk.call.tolist() == [k] * 5 and not walk.done and not bool(walk.ended.any()), name
            assert torch.equal(walk.advance().x, state.belief.x), name
        assert walk.done and bool(walk.ended.all()) and walk.t.tolist() == [0.0] * 5, name
        assert torch.equal(walk.z, shown[-1].z) and walk.advance() is None, name


def test_rows_may_be_advanced_in_any_order(model):
    """Some run ahead, some wait, and each ends where it ends alone; at the end all stand together again."""
    z, label = starts(6), torch.tensor([0, 1, 0, -1, 1, 0])
    for name, solver in SOLVERS.items():
        plan = solver.plan(CURVE, 5)
        whole = end(plan, model, z, draws(6), label=label)
        walk = plan.start(model, z, draws(6), label=label)
        order = itertools.cycle(([3, 1], [0, 1, 2, 3, 4, 5], [5], [4, 0, 3], None, [2, 5, 1]))
        while not walk.done:
            rows = next(order)
            before, z, t = walk.call, walk.z, walk.t
            belief = walk.advance(rows)
            who = [i for i in range(6) if i in (rows or range(6)) and before[i] < plan.calls]
            if who:
                torch.testing.assert_close(belief.x, model(z[who], t[who], label=label[who]).x, rtol=0, atol=1e-12)
            moved = (walk.call - before).tolist()
            assert moved == [int(i in (rows or range(6)) and before[i] < plan.calls) for i in range(6)], name
        torch.testing.assert_close(walk.z, whole, rtol=0, atol=1e-9, msg=name)


def test_rows_may_be_chosen_doubled_and_left_out(model):
    """History, conditions and noise go along: the rows of a walk of many calls back end where they ended before."""
    z, label = starts(6), torch.tensor([0, 1, 0, -1, 1, 0])
    for name, solver in SOLVERS.items():
        plan = solver.plan(CURVE, 6)
        whole = end(plan, model, z, draws(6), label=label)
        for ragged in (False, True):
            walk = plan.start(model, z, draws(6), label=label)
            for _ in range(3):
                walk.advance()
            if ragged:
                walk.advance([5, 2])
            walk.select([5, 2, 2, 0, 1])
            walk.advance([0, 1, 2] if ragged else None)
            walk.drop([1, 4])
            while not walk.done:
                walk.advance()
            torch.testing.assert_close(walk.z, whole[[5, 2, 0]], rtol=0, atol=1e-9, msg=name)


def test_twins_part_where_they_draw_as_other_samples(model):
    plan = DDPM().plan(CURVE, 8)
    walk = plan.start(model, starts(3), draws(3))
    for _ in range(4):
        walk.advance()
    walk.select([1, 1, 1])
    alike = plan.start(model, walk.z, walk.noise)
    walk.select([0, 1, 2], samples=[1, 70, 71])
    while not walk.done:
        walk.advance()
    assert float((walk.z[0] - walk.z[1]).abs().max()) > 1e-3 and float((walk.z[1] - walk.z[2]).abs().max()) > 1e-3
    torch.testing.assert_close(walk.z[0], end(plan, model, starts(3), draws(3))[1], rtol=0, atol=1e-9)
    alike.advance()
    assert torch.equal(alike.z[0], alike.z[1])


class Counted:
    """A model whose calls are counted."""

    def __init__(self, inner):
        self.inner, self.process, self.calls = inner, inner.process, 0

    def __call__(self, z, t, **cond):
        self.calls += 1
        return self.inner(z, t, **cond)


def test_walks_of_different_plans_share_their_calls(model):
    """Three solvers, numbers of steps, seeds and sizes in one batch; each row gets its own samples."""
    counted = Counted(model)
    cases = [(Multistep(3), 5, 2, 0), (SDEDPMSolver(2), 9, 3, 7), (Heun(), 4, 4, 1), (DDPM(), 1, 1, 2)]
    walks, wanted = [], []
    for solver, steps, count, seed in cases:
        plan, label = solver.plan(CURVE, steps), torch.arange(count) % 2
        wanted.append(end(plan, model, starts(count, seed), draws(count, seed), label=label))
        walks.append(plan.start(counted, starts(count, seed), draws(count, seed), label=label))
    while not all(walk.done for walk in walks):
        together(walks)
    assert counted.calls == max(walk.plan.calls for walk in walks)
    for walk, whole in zip(walks, wanted, strict=True):
        torch.testing.assert_close(walk.z, whole, rtol=0, atol=1e-5)
    together(walks)  # nothing is left to do
    plan = DDPM().plan(CURVE, 3)
    told, free = (
        plan.start(model, starts(2), draws(2), label=torch.tensor([1, 0])),
        plan.start(model, starts(2), draws(2)),
    )
    while not told.done:
        together([free, told])
    torch.testing.assert_close(
        told.z, end(plan, model, starts(2), draws(2), label=torch.tensor([1, 0])), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(free.z, end(plan, model, starts(2), draws(2)), rtol=0, atol=1e-9)
    with pytest.raises(SfumatoError, match="one model"):
        together([DDIM().plan(CURVE, 3).start(one, starts(2)) for one in (model, counted)])


def test_noise_along_a_path_goes_with_its_row(model):
    plan = DDPM().plan(CURVE, 6)
    whole = end(plan, model, starts(4), along(plan, 5, torch.arange(4)))
    walk = plan.start(model, starts(4), along(plan, 5, torch.arange(4)))
    walk.advance()
    walk.advance([2])
    walk.select([2, 0])
    while not walk.done:
        walk.advance()
    torch.testing.assert_close(walk.z, whole[[2, 0]], rtol=0, atol=1e-9)


def test_a_function_draws_for_rows_that_stay_together(model):
    plan = DDPM().plan(CURVE, 4)
    walk = plan.start(model, starts(3), lambda call, like: torch.zeros_like(like))
    walk.advance()
    for part in (lambda: walk.advance([0]), lambda: walk.select([0])):
        with pytest.raises(SfumatoError, match="these rows are split up"):
            part()
    with pytest.raises(SfumatoError, match="contain duplicates"):
        walk.advance([1, 1])
    with pytest.raises(SfumatoError, match="is stochastic"):
        plan.start(model, starts(3))


def test_gradients_flow_through_rows_that_part():
    """d/d theta of E[x | z] = theta + z in rows that are advanced apart, doubled and dropped: that of the plain run."""

    class Shifted:
        process = Gaussian(CURVE)

        def __init__(self):
            self.theta = torch.zeros(2, dtype=F64, requires_grad=True)

        def __call__(self, z, t):
            return Estimate(z, t, CURVE, x=0.3 * z + self.theta)

    model, plan = Shifted(), Multistep(3).plan(CURVE, 6)
    run = end(plan, model, starts(3), None)
    (wanted,) = torch.autograd.grad(run[2].sum(), model.theta)
    walk = plan.start(model, starts(3))
    for rows in (None, [0, 2], [2], None):
        walk.advance(rows)
    walk.select([2, 1, 2])
    walk.drop([1])
    while not walk.done:
        walk.advance()
    torch.testing.assert_close(walk.z.detach(), run.detach()[[2, 2]], rtol=0, atol=1e-9)
    for row in (0, 1):
        (found,) = torch.autograd.grad(walk.z[row].sum(), model.theta, retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


class Pair:
    """Two exact laws side by side: a state is a dict, and its belief one for each part."""

    def __init__(self, curves=(CURVE, CURVE)):
        laws = law(), GaussianMixture([1.0], [[0.3, -0.2, 0.1]], 0.4)
        self.parts = {name: one.denoiser(Gaussian(c)) for name, one, c in zip("ab", laws, curves, strict=True)}
        self.process = Product({name: part.process for name, part in self.parts.items()}, {"a": (2,), "b": (3,)})

    def __call__(self, z, t):
        return Beliefs({name: part(z[name], t) for name, part in self.parts.items()})


def test_a_state_may_be_a_dict():
    """Each part walks as it does alone, with noise of its own; rows part, are chosen, and walks share calls."""
    pair = Pair()
    z = {"a": starts(4), "b": noise.normal(5, range(4), (3,), dtype=F64)}
    for name in ("multistep", "heun", "ddpm", "sde"):
        plan = SOLVERS[name].plan(pair.process, 5)
        whole = end(plan, pair, z, draws(4))
        for part, model in pair.parts.items():
            alone = end(plan, model, z[part], draws(4).fold(part))
            torch.testing.assert_close(whole[part], alone, rtol=0, atol=1e-9, msg=name)
        walk, other = plan.start(pair, z, draws(4)), DDIM().plan(pair.process, 3).start(pair, z)
        walk.advance([0, 2])
        together([walk, other])
        walk.select([2, 0, 2])
        while not walk.done:
            together([walk, other])
        for part in pair.parts:
            torch.testing.assert_close(walk.z[part], whole[part][[2, 0, 2]], rtol=0, atol=1e-9, msg=name)
    apart = Pair((CURVE, Flow()))
    with pytest.raises(SfumatoError, match=r"cannot sample the states of Product: use solvers.Ancestral\(\)"):
        DDIM().plan(apart.process, 3)
    with pytest.raises(SfumatoError, match="cannot sample the states of Product"):
        DDIM().plan(CURVE, 3).start(apart, z)
    plan = Ancestral().plan(apart.process, 4)
    whole = end(plan, apart, z, draws(4))
    walk = plan.start(apart, z, draws(4))
    walk.advance([3])
    walk.select([3, 1])
    while not walk.done:
        walk.advance()
    for part in apart.parts:
        torch.testing.assert_close(walk.z[part], whole[part][[3, 1]], rtol=0, atol=1e-9)


# -- lines -------------------------------------------------------------------------------------------------------------


def vectorised(plan, size=2):
    """The same plan with a number for each element of the basis."""

    def widened(c):
        return torch.full((size,), float(c), dtype=F64)

    lines = tuple(
        Linear({j: widened(c) for j, c in line.z.items()}, {j: widened(c) for j, c in line.x.items()}, line.noise)
        for line in plan.lines
    )
    return Plan(plan.name, plan.steps, plan.times, plan.stop, plan.path, lines, plan.order)


def test_a_coefficient_may_be_a_vector(model, tmp_path):
    """Equal entries are the number; an entry of its own moves its element alone; files and rows that part keep it."""
    z = starts(4)
    for name in ("multistep", "heun", "ddim"):
        plan = SOLVERS[name].plan(CURVE, 5)
        wide = vectorised(plan)
        whole = end(wide, model, z, None)
        torch.testing.assert_close(whole, end(plan, model, z, None), rtol=0, atol=1e-10, msg=name)
        wide.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == wide != plan
        walk = wide.start(model, z)
        for rows in ([1, 3], [3], None):
            walk.advance(rows)
        walk.select([3, 0])
        while not walk.done:
            walk.advance()
        torch.testing.assert_close(walk.z, whole[[3, 0]], rtol=0, atol=1e-9, msg=name)
    last = wide.lines[-1]
    half = Linear(last.z, {k: c * torch.tensor([1.0, 0.5]) for k, c in last.x.items()})
    other = Plan(wide.name, wide.steps, wide.times, 0.0, wide.path, (*wide.lines[:-1], half))
    torch.testing.assert_close(end(other, model, z, None), whole * torch.tensor([1.0, 0.5]), rtol=0, atol=1e-9)
    assert "[" in str(other)


class Tempered(Corrector):
    """A step of DDIM that calls the model twice and counts, in a carried tensor, how often its rows came by."""

    draws = True

    def __call__(self, model, z, t, s, state, noise):
        mean = (model(z, t).x + model(z, t).x) / 2
        (a, b), (c, d) = (map(float, CURVE(one)) for one in (t, s))
        z = (c * mean + d * (z - a * mean) / b) if s else mean
        state = torch.zeros(len(z), 1, dtype=F64) if state is None else state
        return z + 1e-3 * noise.normal((2,), dtype=F64), state + 1


def test_a_corrector_calls_the_model_by_itself_and_carries(model):
    counted, base = Counted(model), DDIM().plan(CURVE, 4)
    lines = (Tempered(), base.lines[1], Tempered(), Tempered())
    plan = Plan("Tempered", 4, base.times, 0.0, base.path, lines)
    whole = end(plan, counted, starts(4), draws(4))
    assert counted.calls == 7 and plan.stochastic
    assert float((whole - end(base, model, starts(4), None)).abs().max()) < 0.02
    walk = plan.start(model, starts(4), draws(4))
    for rows in ([0, 2], [2], [1, 2], None):
        walk.advance(rows)
    walk.select([2, 2, 1, 0])
    while not walk.done:
        walk.advance()
    torch.testing.assert_close(walk.z, whole[[2, 2, 1, 0]], rtol=0, atol=1e-9)
    assert walk._carried.tolist() == [[3.0]] * 4
    with pytest.raises(SfumatoError, match="no coefficient table"):
        plan.to_dict()


@dataclasses.dataclass
class Counting(Corrector):
    """Begins to carry at its rows' first line, which it has to be told is the first."""

    firsts: list

    def __call__(self, model, z, t, s, state, noise):
        self.firsts.append(len(z) * (state is None))
        state = torch.full((len(z), 1), 7.0, dtype=F64) if state is None else state
        return z + 0.1 * state, state + model(z, t).x[:, :1] * s


def test_rows_come_to_their_first_corrector_with_nothing_carried(model):
    base, z = DDIM().plan(CURVE, 3), starts(4)

    def made():
        lines = [base.lines[0], Counting([]), Counting([])]
        return Plan("Counting", 3, base.times, 0.0, base.path, tuple(lines)), lines

    whole = end(made()[0], model, z, draws(4))
    for order in ([[0, 2], [0, 2], None, None], [[3], [3], [3], [1], [1], [0, 2]], [None, [1, 3], [0], [1], None]):
        plan, (_, first, second) = made()
        walk, other = plan.start(model, z, draws(4)), plan.start(model, z, draws(4))
        for rows in order:
            walk.advance(rows)
        walk.select([3, 2, 1, 0])
        while not walk.done:
            together([walk, other])
        torch.testing.assert_close(walk.z, whole[[3, 2, 1, 0]], rtol=0, atol=1e-12, msg=str(order))
        assert not sum(second.firsts) and sum(first.firsts) >= 4, order


def test_rows_are_numbers_or_masks(model):
    plan, mask = DDPM().plan(CURVE, 4), torch.tensor([False, True, False, True])
    walk = plan.start(model, starts(4), draws(4))
    walk.advance(mask)
    assert walk.call.tolist() == [0, 1, 0, 1]
    walk.advance(~mask)
    walk.drop([False, False, True, False])
    walk.select([True, False, True])
    walk.select([-1, 0, 0], samples=[3, 0, 9])
    while not walk.done:
        walk.advance()
    torch.testing.assert_close(walk.z[:2], end(plan, model, starts(4), draws(4))[[3, 0]], rtol=0, atol=1e-9)
    for act, said in (
        (lambda: walk.advance([0.0, 1.0]), r"integers or a bool mask \(3,\); got float32"),
        (lambda: walk.select(torch.ones(2, dtype=torch.bool)), r"bool mask \(3,\); got bool \(2,\)"),
        (lambda: walk.select([3]), r"numbers from 0 to 2; got \[3\]"),
        (lambda: walk.drop([-4]), r"numbers from 0 to 2; got \[-4\]"),
        (lambda: walk.select([[0]]), "must be one axis"),
        (lambda: walk.select([0, 1], samples=[5]), "needs one sample number: 2 rows, 1"),
        (lambda: together([walk, walk]), "contain duplicates"),
    ):
        with pytest.raises(SfumatoError, match=said) as caught:
            act()
        assert "\n" not in str(caught.value)
    walk.advance([]), walk.drop([])
    assert len(walk) == 3


def test_plans_of_bridges_go_into_files():
    plan = Plan("Bridges", 2, (1.0, 0.5), 0.0, (), (Bridge(1.0), Bridge(0.0, draws=False)))
    assert Plan.from_dict(plan.to_dict()) == plan and plan.stochastic and "Bridge" in str(plan)
