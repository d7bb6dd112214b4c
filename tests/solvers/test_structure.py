"""What must hold of every table: calls as declared, falling times, coefficients that add up, clean ends, no NaN."""

import itertools
import json
import math

import pytest
import torch
from scipy import stats

from loops import every
from sfumato import noise
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.sampling import sample
from sfumato.schedules import VE, Cosine, Flow, FromBetas, LinearBeta, Shifted
from sfumato.solvers import (
    DDIM,
    DDPM,
    DEIS,
    LMS,
    NAMES,
    PNDM,
    RK4,
    DPMSolver,
    DPMSolverPP,
    Euler,
    Heun,
    Midpoint,
    Multistep,
    Plan,
    Singlestep,
    SymbolSolver,
    UniPC,
    default,
    grids,
)
from sfumato.solvers.build import Solver, ddim
from solver_cases import CASES, ROWS, SOLVERS, STRUCTURE, mixture

F64 = torch.float64
COUNTS = (1, 2, 3, 5, 7, 10, 13)  # 50 and 1000 have tests of their own


class Gridless(Solver):
    """A solver that leaves its grid open."""

    def build(self, b):
        for i in range(len(b.nodes) - 1):
            k = b.call(b.nodes[i])
            b.advance(ddim(b.path[k], b.node(i + 1), k))
        return b.plan("Gridless", 1)


def test_a_solver_without_a_grid_has_the_default_one():
    found, wanted = Gridless().plan(Cosine(), 5), DDIM(grid=grids.auto()).plan(Cosine(), 5)
    assert found.times == wanted.times and found.lines == wanted.lines


class Wiener:
    """The optimal denoiser of N(0, 1), written out, that counts its calls."""

    def __init__(self, schedule, shape=(3,)):
        self.process, self.shape, self.times = Gaussian(schedule), shape, []

    def __call__(self, z, t):
        self.times.append(float(t))
        alpha, sigma = self.process.schedule(t)
        return Estimate(z, t, self.process.schedule, x=z * float(alpha / (alpha**2 + sigma**2)))


def fresh(call, like):
    return noise.normal(0, torch.arange(len(like)), tuple(like.shape[1:]), noise.STEP, call, dtype=like.dtype)


def check_run(name, solver, schedule, steps):
    plan, model = solver.plan(schedule, steps), Wiener(schedule)
    z = noise.normal(1, torch.arange(4), (3,), dtype=F64)
    states = list(plan.run(model, model.process.prior(z), fresh))
    assert plan.steps == steps and len(model.times) == plan.calls == len(plan.lines) == len(states) - 1
    assert steps <= plan.calls <= CASES[name][1](steps)  # a step whose clock is infinite costs one call
    assert tuple(model.times) == plan.times and plan.times[0] == 1.0 and plan.stop == 0.0
    assert all(bool(s.z.isfinite().all()) for s in states), "NaN or infinite state"
    assert states[-1].belief is None and states[-1].t == 0
    if steps == 5:
        again = [s.z for s in plan.run(Wiener(schedule), model.process.prior(z), fresh)]
        assert all(torch.equal(a.z, b) for a, b in zip(states, again, strict=True)), "repeated calls differ"


def check_table(plan, schedule):
    """From z_j = alpha_j x + sigma_j eps and x_j = x the next state is alpha x + sigma eps; noise adds in variance."""
    signal, scale = zip(*plan.path, strict=True)
    for k, line in enumerate(plan.lines):
        alpha, sigma = plan.path[k + 1]
        assert all(j <= k for j in (*line.z, *line.x)), "a step uses what is not known yet"
        of_x = math.fsum([c * signal[j] for j, c in line.z.items()] + list(line.x.values()))
        of_eps = math.fsum(c * scale[j] for j, c in line.z.items())
        size = sum(abs(c) for c in (*line.z.values(), *line.x.values())) + 1
        assert abs(of_x - alpha) <= 1e-9 * size
        assert abs(of_eps**2 + line.noise**2 - sigma**2) <= 1e-9 * max(
            1.0, sigma**2, max(scale[j] for j in line.x) ** 2
        )
    assert plan.path[-1] == (1.0, 0.0), "a run ends on the clean signal"
    for t, point in zip(plan.times, plan.path, strict=False):
        assert point == tuple(float(c) for c in schedule(t)), "a step stands where the schedule is not"


@pytest.mark.first(3)
@pytest.mark.parametrize("curve", STRUCTURE)
@every(name=[*SOLVERS])
def test_runs_are_what_the_plan_says(name, curve):
    for steps in COUNTS:
        check_run(name, SOLVERS[name], STRUCTURE[curve], steps)


@every(name=[*SOLVERS], curve=["vp", "ve", "flow"])
def test_calls_are_exactly_those_promised(name, curve):
    for steps in COUNTS:
        plan = SOLVERS[name].plan(STRUCTURE[curve], steps, 0.9, 0.2)
        assert plan.calls == CASES[name][1](steps)


@pytest.mark.first(3)
@pytest.mark.parametrize("curve", STRUCTURE)
@every(name=[*SOLVERS])
def test_tables_add_up(name, curve):
    """Each step ends where the next starts. Euler in t is consistent only to first order: its order is its check."""
    for steps in (1, 2, 5, 13):
        plan = SOLVERS[name].plan(STRUCTURE[curve], steps)
        nodes = [*plan.times, plan.stop]
        # a schedule with sigma(0) > 0 is asked at t = 0 before the clean signal; stages may repeat a time
        repeated = sum(a == b for a, b in zip(nodes, nodes[1:], strict=False))
        assert all(b <= a for a, b in zip(nodes, nodes[1:], strict=False))
        assert repeated <= plan.calls - steps + (nodes[-2] == 0)
        if name != "euler" and exponential(name):
            check_table(plan, STRUCTURE[curve])


def exponential(name):
    """Whether the row's clock is integrated so that a constant (x, eps) is followed exactly."""
    return "F" not in name.split("_")


@every(name=[n for n in SOLVERS if n not in ("euler", "ddim_half", "ddpm")])
def test_a_constant_row_is_followed_exactly(name):
    """x_hat and eps_hat constant: every row but F is constant too, and any number of steps is exact."""
    if not exponential(name):
        return
    schedule, x, eps = Cosine(), 1.7, -0.6

    class Constant(Wiener):
        def __call__(self, z, t):
            return Estimate(z, t, schedule, x=torch.full_like(z, x))

    for steps in (1, 2, 5, 13):
        plan = SOLVERS[name].plan(schedule, steps, 0.9, 0.2)
        alpha, sigma = (float(c) for c in schedule(0.9))
        *_, last = plan.run(Constant(schedule), torch.full((1, 3), alpha * x + sigma * eps, dtype=F64), fresh)
        alpha, sigma = (float(c) for c in schedule(0.2))
        torch.testing.assert_close(last.z, torch.full((1, 3), alpha * x + sigma * eps, dtype=F64), rtol=1e-9, atol=1e-9)


@pytest.mark.first(3)
@pytest.mark.parametrize("curve", STRUCTURE)
def test_a_thousand_steps(curve):
    for name in ("ddpm", "multistep_2_flow"):
        check_run(name, SOLVERS[name], STRUCTURE[curve], 1000)


@every(name=[*SOLVERS])
def test_fifty_steps(name):
    for curve in ("vp", "flow", "edm"):
        check_run(name, SOLVERS[name], STRUCTURE[curve], 50)


@pytest.mark.slow
@pytest.mark.parametrize("curve", STRUCTURE)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_thousand_steps_of_every_solver(name, curve):
    check_run(name, SOLVERS[name], STRUCTURE[curve], 1000)


@every(
    curve=[*STRUCTURE],
    grid=[grids.Uniform(), grids.Rho(), grids.Rho(3.0), grids.LogSNR(), grids.FlowTime(), grids.FlowTime(0.17, 0.19)],
)
def test_grids(grid, curve):
    """steps + 1 times from t_start to t_stop, falling; only the clean signal may repeat t = 0."""
    schedule = STRUCTURE[curve]
    ends = ((1.0, 0.0), (0.8, 0.0), (1.0, 0.25), (0.7, 0.3))
    for steps, (start, stop) in itertools.product((1, 2, 3, 7, 50, 1000), ends):
        times = grid.times(schedule, steps, start, stop)
        assert len(times) == steps + 1 and times[0] == start and times[-1] == stop
        inner = times[:-1] if stop == 0 and steps > 1 and times[-2] == 0 else times
        assert all(b < a for a, b in zip(inner, inner[1:], strict=False))


def test_grids_are_equal_steps_in_their_clocks():
    schedule = VE(0.01, 50.0)
    lam = schedule.logsnr(torch.tensor(grids.LogSNR().times(schedule, 9, 0.9, 0.1), dtype=F64))
    assert float(lam.diff().std() / lam.diff().mean().abs()) < 1e-9
    root = schedule.sigma(torch.tensor(grids.Rho(7.0).times(schedule, 9, 0.9, 0.1), dtype=F64)) ** (1 / 7)
    assert float(root.diff().std() / root.diff().mean().abs()) < 1e-9
    sigma = schedule.sigma(torch.tensor(grids.FlowTime().times(schedule, 9, 0.9, 0.1), dtype=F64))
    tau = sigma / (1 + sigma)
    assert float(tau.diff().std() / tau.diff().mean().abs()) < 1e-6
    lam = schedule.logsnr(torch.tensor(grids.FlowTime(0.0, 1.0).times(schedule, 9, 0.9, 0.1), dtype=F64))
    part = torch.tensor(stats.norm(0.5, 2.5).cdf(lam.numpy())).diff()
    assert float(part.std() / part.mean()) < 1e-6
    sigma = schedule.sigma(torch.tensor(grids.FlowTime(noise=1.0).times(schedule, 9, 0.9, 0.1), dtype=F64))
    part = torch.log(1 / (1 + sigma)).diff()
    assert float(part.std() / part.mean()) < 1e-6


def integers(spacing, steps, train=1000, **options):
    curve = FromBetas.ddpm(train)
    times = grids.Timesteps(spacing, train, **options).times(curve, steps)
    assert times[-1] == 0 and all(b < a for a, b in zip(times, times[1:], strict=False))
    return [round(t * train) - 1 for t in times[:-1]]


def test_timesteps_are_the_integers_of_the_trained_world():
    """Ten steps of a thousand as 2305.08891 prints them (Table 2, counted from 0), and others by hand."""
    assert integers("leading", 10) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert integers("leading", 10, offset=1) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert integers("linspace", 10) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert integers("trailing", 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert integers("trailing", 3, train=10) == [9, 6, 2]  # 10, 6.67, 3.33 rounded, less one
    assert integers("leading", 3, train=10) == [6, 3, 0]
    assert integers("leading", 4, train=10, drop_last=True) == [8, 6, 4, 2]
    assert integers("linspace", 3, train=10, drop_last=True) == [9, 6, 3]
    for spacing in ("leading", "trailing", "linspace"):
        assert integers(spacing, 1000) == list(range(999, -1, -1))
    assert integers("leading", 1) == [0] and integers("trailing", 1) == [999]


@pytest.mark.parametrize("curve", ["ve", "edm", "sigmoid", "flow"])
def test_no_stage_lies_beyond_the_last_noise_level(curve):
    """Many steps leave t = 0 with sigma(0) > 0 for the clean signal: no stage can stand between."""
    for solver in (Midpoint(), RK4(), Singlestep(3, "flow", variable="clock"), Multistep(4, "eps")):
        for steps in (1, 2, 40, 200):
            plan = solver.plan(STRUCTURE[curve], steps)
            assert all(b < a for a, b in itertools.pairwise(plan.times)) or isinstance(solver, RK4)
            assert plan.times.count(0.0) <= 1
        check_run("rk4_flow", RK4(), STRUCTURE[curve], 40)


def test_timesteps_of_a_part_and_mistakes():
    curve = FromBetas.ddpm()
    assert grids.Timesteps("trailing").times(curve, 5, t_start=0.5) == [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    for wrong in (
        {"spacing": "even"},
        {"train": 0},
        {"offset": 1},
        {"spacing": "leading", "offset": -1},
        {"drop_last": True},
    ):
        with pytest.raises(SfumatoError, match="Timesteps"):
            grids.Timesteps(**wrong)
    with pytest.raises(SfumatoError, match="t_stop = 0"):
        grids.Timesteps().times(curve, 5, t_stop=0.1)
    with pytest.raises(SfumatoError, match="too many"):
        grids.Timesteps(train=10).times(curve, 11)
    with pytest.raises(SfumatoError, match="exceeds"):
        grids.Timesteps("leading", train=10, offset=4).times(curve, 3)
    plan = DDIM(grid=grids.Timesteps("leading")).plan(curve, 10)
    assert plan.times[0] == 0.901
    with pytest.raises(SfumatoError, match="start state"):
        sample(mixture().denoiser(Gaussian(curve)), 3, solver=plan)


def test_karras_nodes():
    """18 steps of the EDM grid on VE from 80 to 0.002 are Eq. 5's sigmas, and then 0 (2206.00364)."""
    schedule = VE(0.002, 80.0)
    plan = Heun(row="eps", grid=grids.Rho(7.0)).plan(schedule, 18)
    assert plan.calls == 35  # the paper's NFE for CIFAR-10
    sigmas = sorted({sigma for _, sigma in plan.path}, reverse=True)
    i = torch.arange(18, dtype=F64)
    wanted = [*((80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).tolist(), 0.0]
    assert sigmas == pytest.approx(wanted, rel=1e-9)


# -- what is refused -----------------------------------------------------------------------------------------------


def test_mistakes():
    with pytest.raises(SfumatoError, match="steps must be at least 1"):
        DDIM().plan(Cosine(), 0)
    for start, stop in ((0.5, 0.5), (0.2, 0.8), (1.5, 0.0), (1.0, -0.1), (math.nan, 0.0)):
        with pytest.raises(SfumatoError, match="t_stop"):
            DDIM().plan(Cosine(), 5, start, stop)
    for order in (0, 5):
        with pytest.raises(SfumatoError, match="order 1 to 4"):
            Multistep(order)
    for wrong in ({"corrector": 4}, {"corrector": 1.5}, {"start": "slow"}, {"end": 0}, {"phi2": "B2"}, {"phi2": "B3"}):
        with pytest.raises(SfumatoError, match=next(iter(wrong))):
            Multistep(2, **wrong)
    with pytest.raises(SfumatoError, match="one of clock, logsnr, t"):
        Multistep(2, variable="sigma").plan(Cosine(), 5)
    for make, words in (
        (lambda: Singlestep(4), "order 1 to 3"), (lambda: UniPC(4), "order 1 to 3"), (lambda: UniPC(2, "B3"), "B1"),
        (lambda: PNDM("rk"), "plms"),
    ):  # fmt: skip
        with pytest.raises(SfumatoError, match=words):
            make()
    for row in ("score", "velocity"):
        with pytest.raises(SfumatoError, match="one of flow|one of x"):
            Multistep(2, row).plan(Cosine(), 5)
        with pytest.raises(SfumatoError, match="one of flow|one of x"):
            Heun(row=row).plan(Cosine(), 5)
    with pytest.raises(SfumatoError, match="smaller eta"):
        DDIM(eta=30.0).plan(Cosine(), 50)
    with pytest.raises(SfumatoError, match="eta"):
        DDIM(eta=-1.0).plan(Cosine(), 5)
    for rho in (0.0, -2.0, math.nan):
        with pytest.raises(SfumatoError, match="rho"):
            grids.Rho(rho)
    for parts in ((-0.1, 0.0), (1.5, 0.0), (0.2, -0.1), (0.5, 0.6), (0.0, 0.0, -0.1), (0.4, 0.3, 0.4)):
        with pytest.raises(SfumatoError, match="share"):
            grids.FlowTime(*parts)


def test_a_plan_on_another_schedule_is_refused():
    plan = Multistep(2).plan(Cosine(), 6)
    for other in (LinearBeta(), Flow(), Shifted(Cosine(), 1.0001), Cosine(0.009)):
        with pytest.raises(SfumatoError, match="another schedule"):
            list(plan.run(Wiener(other), torch.zeros(1, 3, dtype=F64)))
    list(plan.run(Wiener(Shifted(Cosine(), 1.0)), torch.zeros(1, 3, dtype=F64)))  # the same curve


def test_a_stochastic_plan_needs_noise():
    with pytest.raises(SfumatoError, match="noise"):
        list(DDPM().plan(Cosine(), 6).run(Wiener(Cosine()), torch.zeros(1, 3, dtype=F64)))


# -- files ---------------------------------------------------------------------------------------------------------


@every(name=[*SOLVERS])
def test_save_and_load(name, tmp_path):
    plan = SOLVERS[name].plan(Cosine(), 6)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan and again.calls == plan.calls and again.stochastic == plan.stochastic
    assert json.loads((tmp_path / "plan.json").read_text())["name"] == plan.name
    z = torch.ones(2, 3, dtype=F64)
    for a, b in zip(plan.run(Wiener(Cosine()), z, fresh), again.run(Wiener(Cosine()), z, fresh), strict=True):
        assert torch.equal(a.z, b.z)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "x"}', "not json", '{"lines": [{"z": 3}]}', "\x00\xff"])
def test_a_broken_file_is_one_sentence(text, tmp_path):
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SfumatoError, match="plan") as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(SfumatoError, match="Cannot read"):
        Plan.load(tmp_path / "missing.json")


def test_a_plan_prints():
    text = str(Multistep(2).plan(Cosine(), 4))
    assert "4 steps, 4 calls, order 2, deterministic" in text and len(text.splitlines()) == 6
    assert str(Multistep(3, "x", variable="logsnr", corrector=True, start="low").plan(Cosine(), 4)).startswith(
        "Multistep(order=3, row=x, variable=logsnr, corrector=True, start=low): 4 steps, 4 calls, order 3"
    )
    names = [s.plan(Cosine(), 4).name for s in (DPMSolver(3), DPMSolverPP(2), DEIS(3), LMS(4), UniPC(2, "B1"), PNDM())]
    assert names == ["DPM-Solver (3S)", "DPM-Solver++ (2M)", "tAB2-DEIS", "LMS (order 4)", "UniPC-2 (B1)", "PLMS"]
    assert "stochastic" in str(DDPM().plan(Cosine(), 4)) and "xi" in str(DDPM().plan(Cosine(), 4))


def test_names_of_the_command_line_build():
    solvers = [make() for name, make in NAMES.items() if name not in ("ddpm-learned", "map")]
    for solver in (*solvers, default()):
        if isinstance(solver, SymbolSolver):  # test_reveal.py, test_leaping.py
            continue
        plan = solver.plan(Cosine(), 5)
        assert bool(sample(mixture().denoiser(Gaussian(Cosine())), 3, solver=plan).isfinite().all())


def test_low_precision_and_gradients():
    """float32 states stay float32; a gradient goes through the whole walk when it is asked for."""
    law = GaussianMixture([1.0], [[0.0, 0.0, 0.0]], 1.0)
    plan = Multistep(3).plan(Cosine(), 7)
    model = Wiener(Cosine())
    *_, last = plan.run(model, torch.ones(2, 3))
    assert last.z.dtype == torch.float32
    z = torch.ones(2, 3, dtype=F64, requires_grad=True)
    *_, last = plan.run(model, z)
    (gradient,) = torch.autograd.grad(last.z.sum(), z)
    exact = law.flow(torch.ones(2, 3, dtype=F64), 1.0, 0.0, model.process)  # the map is linear: slope = value at 1
    torch.testing.assert_close(gradient, exact, rtol=0.02, atol=0)
    for state in Euler().plan(Cosine(), 3).run(model, torch.ones(2, 3)):
        assert not state.z.requires_grad


def test_rows_are_all_tested():
    from sfumato.solvers.clocks import CLOCKS

    assert set(ROWS) == set(CLOCKS)
