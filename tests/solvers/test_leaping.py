"""Steps of symbols by rates: the laws of the samplers by transition matrices, on a table, and what leaves p_t alone."""

import itertools

import pytest
import torch

import sfumato as sf
from sfumato import schedules
from sfumato.exact import Table
from sfumato.process import Hybrid, Ladder, Masked, Symbols, Uniform
from sfumato.solvers import Leaping, ThetaTrapezoid
from sfumato.solvers.leaping import ForwardBackward, Leap, Stage, forward_rates, reverse_rates
from symbol_cases import F64, TABLE, joined, sampled

FLOW = schedules.Flow()
MASKED, UNIFORM = Masked(FLOW, 3), Uniform(FLOW, 3)
CALLS = (1, 4, 16, 32)


@pytest.mark.parametrize(
    ("process", "eta", "restart", "wanted"),
    [
        (MASKED, 1.0, 0.0, (0.2537, 0.0677, 0.0174, 0.0088)),
        (UNIFORM, 1.0, 0.0, (0.2537, 0.1085, 0.0312, 0.0162)),
        (UNIFORM, 0.0, 0.0, (0.2537, 0.1054, 0.0295, 0.0152)),
        (MASKED, 1.0, 0.1, (0.2537, None, 0.0194, None)),
        (MASKED, 1.0, 1.0, (0.2537, None, 0.0374, None)),
        (UNIFORM, 1.0, 1.0, (0.2537, None, 0.0590, None)),
    ],
)
def test_the_error_of_bridges(process: Symbols, eta: float, restart: float, wanted: tuple) -> None:
    for calls, error in zip(CALLS, wanted, strict=True):
        if error is not None:
            found = sampled(process, calls, lambda belief, s: process.bridge(belief, s, eta, restart))
            assert found == pytest.approx(error, abs=6e-5), calls


@pytest.mark.parametrize(
    ("process", "euler", "wanted"),
    [
        (MASKED, True, (0.2537, 0.0677, 0.0174, 0.0088)),  # the bridge
        (UNIFORM, True, (0.3597, 0.1271, 0.0326, 0.0165)),
        (MASKED, False, (0.7693, 0.3480, 0.1059, 0.0548)),  # masks are left, where the last step is by rates too
        (UNIFORM, False, (0.3597, 0.1539, 0.0402, 0.0201)),
    ],
)
def test_the_error_of_rates(process: Symbols, euler: bool, wanted: tuple[float, ...]) -> None:
    found = [sampled(process, calls, Leap(euler).law) for calls in CALLS]
    assert found == pytest.approx(wanted, abs=6e-5)


def test_euler_of_masks_kept_linearly_is_the_bridge() -> None:
    belief = TABLE.denoiser(MASKED)(TABLE.noisy(MASKED), 0.7)
    torch.testing.assert_close(Leap(True).law(belief, 0.3), MASKED.bridge(belief, 0.3), rtol=0, atol=1e-12)
    curved = Masked(schedules.Cosine(), 3)
    belief = belief.under(curved, belief.z, 0.7)
    assert float((Leap(True).law(belief, 0.3) - curved.bridge(belief, 0.3)).abs().max()) > 0.02


@pytest.mark.parametrize(("process", "wanted"), [(MASKED, 0.0130), (UNIFORM, 0.0270)])
def test_a_corrector_helps_by_the_step_and_not_by_the_call(process: Symbols, wanted: float) -> None:
    def bridge(belief, s):
        return process.bridge(belief, s)

    found = sampled(process, 16, bridge, between=lambda belief, h: ForwardBackward(0.3 * h).law(belief))
    assert found == pytest.approx(wanted, abs=6e-5)
    assert sampled(process, 32, bridge) < found < sampled(process, 16, bridge)


@pytest.mark.parametrize("process", [MASKED, UNIFORM, Hybrid(FLOW, 3), Ladder(FLOW, 3)], ids=lambda p: type(p).__name__)
def test_forward_and_backward_rates_together_leave_the_law_of_z(process: Symbols) -> None:
    """p_t G = 0 for the generator G of R_forward + R of all symbols."""
    t, size = torch.tensor(0.4, dtype=F64), process.size
    states, law = TABLE.noisy(process), TABLE.noised(process, 0.4)
    rate = reverse_rates(TABLE.denoiser(process)(states, t)).nan_to_num(0.0)
    rate = rate + forward_rates(process, states, t, F64)
    flow = law[:, None, None] * rate
    change = -flow.sum((1, 2))
    for i, y in itertools.product(range(3), range(size)):
        reached = states.clone()
        reached[:, i] = y
        change.index_add_(0, TABLE.place(reached, size), flow[:, i, y])
    assert float(flow.abs().max()) > 0.01 and float(change.abs().max()) < 1e-14


def test_the_analytic_step_of_score_entropy_is_the_bridge() -> None:
    """p(z_s | z_t) ~ (exp(-h Q) r)(z_s) exp(h Q)(z_s -> z_t), r the ratios at t (2310.16834, Eq. 19)."""
    for process in (UNIFORM, Ladder(FLOW, 3), MASKED):
        states, s, t = TABLE.noisy(process), 0.3, 0.7
        belief = TABLE.denoiser(process)(states, t)
        jump = process.matrix(s, t)  # exp(h Q), rows z_s
        wanted = belief.ratio @ torch.linalg.inv(jump) * jump.mT[states]
        torch.testing.assert_close(
            process.bridge(belief, s).nan_to_num(0.0), wanted.nan_to_num(0.0), rtol=0, atol=1e-11
        )


def trapezoid(process: Symbols, table: Table, steps: int, theta: float) -> float:
    """The error of two-stage steps from the law at t = 0.8 to that at 0.2."""
    states, model, law = table.noisy(process), table.denoiser(process), table.noised(process, 0.8)
    first, second = Stage(None), Stage(1 / (2 * theta * (1 - theta)) - 1)
    for k in range(steps):
        t, s = 0.8 - 0.6 * k / steps, 0.8 - 0.6 * (k + 1) / steps
        middle = t - theta * (t - s)
        sites, rate = first.law(model(states, t), middle, None)
        there, n = model(states, middle), len(states)
        pairs = there.rows(torch.arange(n).repeat(n))
        then, _ = second.law(pairs, s, rate.repeat_interleave(n, 0))
        law = torch.einsum("a,ab,abc->c", law, joined(sites), joined(then).reshape(n, n, n))
    return float((law - table.noised(process, 0.2)).abs().sum()) / 2


@pytest.mark.parametrize("theta", [0.5, 0.3])
def test_the_trapezoid_is_of_second_order_where_nothing_is_clipped(theta: float) -> None:
    mild = Table(1 + 0.1 * TABLE.probs.reshape(3, 3, 3) / TABLE.probs.max())
    few, many = (trapezoid(UNIFORM, mild, steps, theta) for steps in (8, 16))
    assert few / many == pytest.approx(4, rel=0.1)


SOLVERS = [Leaping(), Leaping(predictor="euler", corrector=0.5), Leaping(predictor="bridge"), ThetaTrapezoid()]


@pytest.mark.parametrize("solver", [*SOLVERS, "tau-leaping", "forward-backward", "theta-trapezoid"])
def test_samples_are_symbols_near_the_law(solver) -> None:
    for process in (MASKED, UNIFORM, Hybrid(schedules.Cosine(), 3)):
        x = sf.sample(TABLE.denoiser(process), 2000, steps=16, solver=solver, seed=1, batch=2000)
        share = torch.bincount(TABLE.place(x), minlength=27) / 2000
        assert float((share - TABLE.probs).abs().sum()) / 2 < 0.1
    model = TABLE.denoiser(MASKED)
    assert torch.equal(*(sf.sample(model, 9, steps=5, solver=solver, batch=batch) for batch in (2, 9)))


def test_calls_are_those_of_the_steps() -> None:
    for solver, calls in zip([*SOLVERS, Leaping(corrector=0.3)], (5, 9, 5, 9, 9), strict=True):
        plan = solver.plan(UNIFORM, 5)
        sf.sample(TABLE.denoiser(UNIFORM), 3, solver=plan)
        assert plan.calls == plan.spent == calls and plan.steps == 5
    assert ThetaTrapezoid(theta=0.25).plan(UNIFORM, 2, t_stop=0.2).times == pytest.approx((1.0, 0.9, 0.6, 0.5))


def test_rows_apart_are_rows_together() -> None:
    """Rows that stand at different calls jump by the rates of their own times."""
    model, start = TABLE.denoiser(UNIFORM), UNIFORM.prior(torch.randn(6, 3, dtype=F64))
    for solver in (Leaping(corrector=0.3), ThetaTrapezoid()):
        plan, noise = solver.plan(UNIFORM, 4), sf.Noise(3, torch.arange(6), sf.noise.STEP)
        *_, last = plan.run(model, start, noise)
        walk = plan.start(model, start, noise)
        walk.advance([0, 1, 2])
        while not walk.done:
            walk.advance()
        assert torch.equal(walk.z, last.z)


def test_mistakes_are_said() -> None:
    for attempt, words in [
        (lambda: Leaping(predictor="eule"), "did you mean 'euler'"),
        (lambda: Leaping(corrector=-1), "at least 0"),
        (lambda: ThetaTrapezoid(theta=1.0), "theta in"),
        (lambda: Leaping().plan(FLOW, 3), "Rates are those of symbols"),
        (lambda: ThetaTrapezoid().plan(FLOW, 3), "Rates are those of symbols"),
    ]:
        with pytest.raises(sf.SfumatoError, match=words):
            attempt()
