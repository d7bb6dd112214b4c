"""Stochastic solvers: finite tables, exact laws where they are exact, weak order, published formulas."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from gaussian_moments import follow, gaps, marginal
from loops import every
from sfumato import noise
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow, FromBetas, LinearBeta
from sfumato.solvers import (
    DDIM,
    DDPM,
    NAMES,
    AnnealedLangevin,
    Churn,
    EulerMaruyama,
    Heun,
    OptimalDDPM,
    Plan,
    PredictorCorrector,
    SASolver,
    SDEDPMSolver,
    grids,
)
from sfumato.solvers.reverse_sde import decay_moments
from solver_cases import STRUCTURE, mixture, once

F64 = torch.float64
FLOW_TIME = grids.FlowTime()
SOLVERS = {
    "beta": DDPM(variance="beta"),
    "euler_maruyama": EulerMaruyama(),
    "euler_maruyama_2": EulerMaruyama(2.0),
    "churn": Churn(),
    "churn_1": Churn(order=1, row="flow", s_noise=1.01, s_tmin=0.1, s_tmax=10.0),
    "churn_eps": Churn(80.0, row="eps", grid=grids.Rho()),
    **{f"sde_{order}": SDEDPMSolver(order) for order in (1, 2, 3)},
    **{f"sa_{p}{c}": SASolver(p, c) for p, c in ((1, 2), (2, 2), (2, 3), (3, 3), (4, 0), (4, 1), (4, 4))},
    "sa_ode": SASolver(3, 3, tau=0.0),
    "sa_much": SASolver(2, 2, tau=1.7, phi2="B1"),
    "sa_part": SASolver(2, 2, interval=(-3.0, 3.0)),
    **{f"eps_sde_{order}": SDEDPMSolver(order, row="eps") for order in (1, 2, 3)},
    **{f"eps_sa_{p}{c}": SASolver(p, c, row="eps") for p, c in ((1, 2), (2, 2), (3, 3), (4, 0), (4, 4))},
    "eps_sa_much": SASolver(2, 2, tau=1.7, phi2="B1", row="eps"),
    "eps_ode": SASolver(3, 3, tau=0.0, row="eps"),
    "pc": PredictorCorrector(),
    "pc_ode": PredictorCorrector(0.16, corrections=2, eta=0.0),
    "annealed": AnnealedLangevin(),
}
SOLVERS = {name: once(solver) for name, solver in SOLVERS.items()}
CALLS = {
    "churn": lambda n: 2 * n - 1,
    "churn_1": lambda n: n,
    "churn_eps": lambda n: 2 * n - 1,
    "pc": lambda n: 2 * n - 1,
    "pc_ode": lambda n: 3 * n - 2,
    "annealed": lambda n: 10 * n + 1,
}


def fresh(call, like):
    return noise.normal(0, torch.arange(len(like)), tuple(like.shape[1:]), noise.STEP, call, dtype=like.dtype)


def run(plan, schedule, n=4):
    model = GaussianMixture([1.0], [[0.0, 0.0]], 1.0).denoiser(Gaussian(schedule))
    z = model.process.prior(noise.normal(1, torch.arange(n), (2,), dtype=F64))
    return list(plan.run(model, z, fresh))


# -- structure ---------------------------------------------------------------------------------------------------------


@pytest.mark.first(3)
@pytest.mark.parametrize("curve", STRUCTURE)
@every(name=[*SOLVERS])
def test_tables_are_finite_and_as_declared(name, curve):
    for steps in (1, 2, 3, 5, 7, 10, 13):
        plan = SOLVERS[name].plan(STRUCTURE[curve], steps)
        states = run(plan, STRUCTURE[curve])
        assert all(bool(state.z.isfinite().all()) for state in states)
        assert plan.steps == steps and len(states) == plan.calls + 1 <= CALLS.get(name, lambda n: n)(steps) + 1
        assert plan.times[0] == 1.0 and plan.stop == 0.0 and plan.path[-1] == (1.0, 0.0)
        assert (
            plan.stochastic == (not name.endswith("_ode") or name == "pc_ode")
            or steps < 3
            or steps == 3
            and name in ("sa_part", "churn_1")
        )
        for k, line in enumerate(plan.lines):
            assert line.noise >= 0 and all(0 <= j <= k for j in (*line.z, *line.x))
    assert SOLVERS[name].plan(Cosine(), 10, 0.9, 0.1).path[-1] == tuple(float(c) for c in Cosine()(0.1))


LONG = ("euler_maruyama", "sa_33")


@pytest.mark.first(9)
@pytest.mark.parametrize("curve", STRUCTURE)
@pytest.mark.parametrize("steps", [50, 1000])
def test_many_steps_are_finite(curve, steps):
    for name in ("beta", "churn", "sde_2", "sa_22", "pc", "annealed", "eps_sde_2", "eps_sa_22")[
        : 8 if steps == 50 else 0
    ] + LONG:
        assert bool(run(SOLVERS[name].plan(STRUCTURE[curve], steps), STRUCTURE[curve])[-1].z.isfinite().all())


EXACT_FOR_A_POINT = [n for n in SOLVERS if n[:2] in ("sd", "sa") or n in ("churn", "churn_eps", "eps_ode")]


@every(name=EXACT_FOR_A_POINT)
def test_one_point_of_data_has_its_law_at_every_call(name):
    """x_hat is constant and every bridge exact: z ~ N(alpha x, sigma^2) wherever the model is called."""
    for schedule in (Cosine(), Flow(), VE()):
        plan = SOLVERS[name].plan(schedule, 7, 0.9, 0.1)
        states = follow(plan, schedule, marginal(schedule, 0.9, 0.7, 0.0), 0.7, 0.0)
        for (alpha, sigma), (mean, variance) in zip(plan.path, states, strict=True):
            assert mean == pytest.approx(alpha * 0.7, abs=1e-9 * max(1, sigma))
            assert variance == pytest.approx(sigma**2, rel=1e-9)


@pytest.mark.parametrize("name", ["churn", "sa_33", "annealed", "beta"])
def test_save_and_load(name, tmp_path):
    plan = SOLVERS[name].plan(Cosine(), 6)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


# -- weak order --------------------------------------------------------------------------------------------------------

ORDERS = {
    "ddpm": (DDPM(FLOW_TIME), 1),
    "beta": (DDPM(FLOW_TIME, "beta"), 1),
    "eta": (DDIM(1.1, FLOW_TIME), 1),
    "euler_maruyama": (EulerMaruyama(), 1),
    "euler_maruyama_half": (EulerMaruyama(0.5), 1),
    "churn": (Churn(5.0), 2),
    "churn_1": (Churn(5.0, order=1), 1),
    "sde_1": (SDEDPMSolver(1, grid=FLOW_TIME), 1),
    "sde_2": (SDEDPMSolver(2, grid=FLOW_TIME), 2),
    "sde_3": (SDEDPMSolver(3, grid=FLOW_TIME), 2),
    "sa_20": (SASolver(2, 0, grid=FLOW_TIME), 2),
    "sa_22": (SASolver(2, 2, grid=FLOW_TIME), 2),
    "sa_12": (SASolver(1, 2, grid=FLOW_TIME), 2),
    "sa_33": (SASolver(3, 3, grid=FLOW_TIME), 2),
    "sa_22_much": (SASolver(2, 2, 1.5, grid=FLOW_TIME), 2),
    "sa_22_B1": (SASolver(2, 2, phi2="B1", grid=FLOW_TIME), 2),
    "sa_30_ode": (SASolver(3, 0, 0.0, grid=FLOW_TIME), 2),
    "sa_33_ode": (SASolver(3, 3, 0.0, grid=FLOW_TIME), 3),
    "eps_sde_1": (SDEDPMSolver(1, grid=FLOW_TIME, row="eps"), 1),
    "eps_sde_2": (SDEDPMSolver(2, grid=FLOW_TIME, row="eps"), 2),
    "eps_sde_3": (SDEDPMSolver(3, grid=FLOW_TIME, row="eps"), 2),
    "eps_sde_2_half": (SDEDPMSolver(2, 0.5, FLOW_TIME, "eps"), 2),
    "eps_sa_20": (SASolver(2, 0, row="eps", grid=FLOW_TIME), 2),
    "eps_sa_22": (SASolver(2, 2, row="eps", grid=FLOW_TIME), 2),
    "eps_sa_12": (SASolver(1, 2, row="eps", grid=FLOW_TIME), 2),
    "eps_sa_33": (SASolver(3, 3, row="eps", grid=FLOW_TIME), 2),
    "eps_sa_22_much": (SASolver(2, 2, 1.5, row="eps", grid=FLOW_TIME), 2),
    "eps_sa_33_ode": (SASolver(3, 3, 0.0, row="eps", grid=FLOW_TIME), 3),
}
ORDERS = {name: (once(solver), order) for name, (solver, order) in ORDERS.items()}


@pytest.mark.first(1)
@pytest.mark.parametrize("curve", ["cosine", "vp", "flow"])
@every(name=[*ORDERS])
def test_weak_order_by_exact_moments(name, curve):
    """Mean and variance on N(0.7, 0.3) from t = 0.9 to 0.1, without chance: at least the declared order (C4)."""
    solver, order = ORDERS[name]
    schedule = STRUCTURE[curve]
    assert solver.plan(schedule, 40, 0.9, 0.1).order == order
    later = (name, curve) in (("eps_sa_20", "vp"), ("eps_sa_22", "vp"))  # two terms of their errors cancel at 40 steps
    errors = gaps(solver, schedule, (160, 320, 640) if later else (40, 80, 160))
    slope = math.log2(errors[0] / errors[2]) / 2
    assert slope > order - 0.15
    assert errors[2] < 0.02


def test_lower_noise_does_not_hide_a_fault():
    """The moments see a noise that is 3 % too large, and a mean that is off."""
    schedule = Cosine()
    plan = SDEDPMSolver(2, grid=FLOW_TIME).plan(schedule, 160, 0.9, 0.1)
    lines = [line._replace(noise=1.03 * line.noise) for line in plan.lines]
    spoilt = Plan(plan.name, plan.steps, plan.times, plan.stop, plan.path, tuple(lines))
    goal = marginal(schedule, 0.1)
    good, bad = (follow(p, schedule, marginal(schedule, 0.9))[-1] for p in (plan, spoilt))
    assert abs(good[1] - goal[1]) < 1e-3 < 1e-2 < abs(bad[1] - goal[1])


# -- DDPM's variances --------------------------------------------------------------------------------------------------


def test_beta_is_the_published_variance():
    """2006.11239, Sec. 3.2: beta_t on the paper's own nodes, and beta tilde; both are the law's for their data."""
    table, nodes = FromBetas.ddpm(), grids.Timesteps()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    bars = torch.cumprod(1 - betas, 0)
    upper, lower = DDPM(nodes, "beta").plan(table, 1000), DDPM(nodes).plan(table, 1000)
    for i in (1, 10, 500, 999):  # the paper's t = i + 1, the call 999 - i
        assert upper.lines[999 - i].noise ** 2 == pytest.approx(float(betas[i]), rel=1e-6)
        tilde = betas[i] * (1 - bars[i - 1]) / (1 - bars[i])
        assert lower.lines[999 - i].noise ** 2 == pytest.approx(float(tilde), rel=1e-6)
    assert upper.lines[-1].noise == 0 == lower.lines[-1].noise


@every(curve=[*STRUCTURE])
def test_beta_is_exact_for_standard_normal_data(curve):
    """Under every schedule, in any number of steps, up to the last step, which draws nothing (2006.11239, Sec. 3.2)."""
    schedule = STRUCTURE[curve]
    for steps in (2, 5):
        plan = DDPM(grids.LogSNR(), "beta").plan(schedule, steps, 0.9, 0.2)
        mean, variance = follow(plan, schedule, marginal(schedule, 0.9, 0.0, 1.0), 0.0, 1.0)[-1]
        assert mean == pytest.approx(0, abs=1e-12)
        assert variance == pytest.approx(marginal(schedule, 0.2, 0.0, 1.0)[1], rel=1e-9)


@every(curve=[*STRUCTURE], steps=[1, 2, 5, 200])
def test_the_optimal_variance_is_exact_on_gaussians(curve, steps):
    """From the law of z_1 to N(0.7, 0.3), mean and variance to rounding (2201.06503, Theorem 1)."""
    schedule = STRUCTURE[curve]
    walk = OptimalDDPM().plan(schedule, steps)
    assert (walk.steps, walk.calls, walk.stop, walk.times[0]) == (steps, steps, 0.0, 1.0)
    mean, variance = follow(walk, schedule, marginal(schedule, 1.0))[-1]
    assert mean == pytest.approx(0.7, abs=1e-7) and variance == pytest.approx(0.3, abs=1e-7)
    if steps == 5:
        assert abs(follow(DDPM().plan(schedule, 5), schedule, marginal(schedule, 1.0))[-1][1] - 0.3) > 0.01


def test_the_optimal_variance_needs_a_model_that_knows_it():
    class Plain:
        def __init__(self):
            self.inner = mixture().denoiser(Gaussian(Cosine()))
            self.process = self.inner.process

        def __call__(self, z, t):
            return Estimate(z, t, self.process.schedule, x=self.inner(z, t).x)

    walk = OptimalDDPM().plan(Cosine(), 3)
    with pytest.raises(SfumatoError, match="provides Var"):
        list(walk.run(Plain(), torch.zeros(1, 2, dtype=F64), fresh))
    with pytest.raises(SfumatoError, match="noise"):
        list(walk.run(Plain(), torch.zeros(1, 2, dtype=F64)))
    with pytest.raises(SfumatoError, match="another schedule"):
        list(walk.run(mixture().denoiser(Gaussian(Flow())), torch.zeros(1, 2, dtype=F64), fresh))


# -- published formulas ------------------------------------------------------------------------------------------------


@every(curve=[*STRUCTURE])
def test_first_orders_are_ddim_and_ddpm(curve):
    schedule = STRUCTURE[curve]
    for ours, known in (
        (SDEDPMSolver(1, grid=FLOW_TIME), DDPM(FLOW_TIME)),
        (SASolver(1, 0, tau=0.0, grid=FLOW_TIME), DDIM(grid=FLOW_TIME)),
        (SASolver(1, 0, tau=0.0, row="eps", grid=FLOW_TIME), DDIM(grid=FLOW_TIME)),
    ):
        for a, b in zip(ours.plan(schedule, 7).lines, known.plan(schedule, 7).lines, strict=True):
            keys = a.z.keys() | b.z.keys()
            assert all(a.z.get(k, 0.0) == pytest.approx(b.z.get(k, 0.0), rel=1e-7, abs=1e-12) for k in keys)
            assert a.x == pytest.approx(b.x, rel=1e-7, abs=1e-12) and a.noise == pytest.approx(b.noise, abs=1e-12)


def half_logsnr(schedule, t):
    alpha, sigma = (float(c) for c in schedule(t))
    return math.log(alpha / sigma)


def test_second_order_is_the_published_formula():
    """SDE-DPM-Solver++(2M): z_s = sigma_s/sigma_t e^-h z + alpha_s (1 - e^-2h) [(1 + 1/2r) x_t - 1/2r x_u] + noise."""
    schedule = Cosine()
    plan = SDEDPMSolver(2, grid=FLOW_TIME).plan(schedule, 6, 0.9, 0.1)
    nodes = [*plan.times, plan.stop]
    for k in range(1, 6):
        (_, sigma_t), (alpha_s, sigma_s) = ([float(c) for c in schedule(t)] for t in nodes[k : k + 2])
        lam = [half_logsnr(schedule, t) for t in nodes[k - 1 : k + 2]]
        h, r = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
        gain, line = alpha_s * (1 - math.exp(-2 * h)), plan.lines[k]
        assert line.z == pytest.approx({k: sigma_s / sigma_t * math.exp(-h)})
        assert line.x == pytest.approx({k: gain * (1 + 1 / (2 * r)), k - 1: -gain / (2 * r)})
        assert line.noise == pytest.approx(sigma_s * math.sqrt(1 - math.exp(-2 * h)))


def test_second_order_in_eps_is_the_published_formula():
    """SDE-DPM-Solver(2M): a_s/a_t z - 2 sigma_s (e^h - 1) [(1 + 1/2r) eps_t - 1/2r eps_u] + sigma_s sqrt(e^2h-1) w."""
    schedule = Cosine()
    model = mixture().denoiser(Gaussian(schedule))
    plan = SDEDPMSolver(2, grid=FLOW_TIME, row="eps").plan(schedule, 6, 0.9, 0.1)
    z = mixture().sample(4, process=model.process, t=0.9)
    nodes, noises = [*plan.times, plan.stop], []
    for k, state in enumerate(plan.run(model, z, fresh)):
        torch.testing.assert_close(state.z, z, rtol=1e-9, atol=1e-9)
        if k == 6:
            break
        noises.append(model(z, nodes[k]).eps)
        (alpha_t, _), (alpha_s, sigma_s) = ([float(c) for c in schedule(t)] for t in nodes[k : k + 2])
        lam = [half_logsnr(schedule, t) for t in nodes[max(k - 1, 0) : k + 2]]
        h = lam[-1] - lam[-2]
        part = h / (lam[1] - lam[0]) / 2 if k else 0.0  # 1 / 2r; the first step is of order 1
        drift = 2 * sigma_s * math.expm1(h) * ((1 + part) * noises[-1] - part * noises[max(k - 1, 0)])
        z = alpha_s / alpha_t * z - drift + sigma_s * math.sqrt(math.expm1(2 * h)) * fresh(k, z)


@pytest.mark.parametrize("row", ["x", "eps"])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_a_step_is_the_integral_of_the_equation(row, tau):
    """One step from logsnr -1 to 2 beside 20,000 of Euler's, where the row's value is one number, mean and variance."""
    schedule, n, value = LinearBeta(), 20_000, 0.8
    t, s = (float(schedule.time(v)) for v in (-1.0, 2.0))
    plan = SASolver(1, 0, tau, row=row, grid=grids.LogSNR()).plan(schedule, 1, t, s)
    nodes = torch.linspace(t, s, n + 1, dtype=F64)
    lengths, middle = -nodes.diff(), (nodes[1:] + nodes[:-1]) / 2
    f, g2, (alpha, sigma) = schedule.drift(middle), schedule.diffusion(middle), schedule(middle)
    pull = (1 + tau**2) / 2 * g2 / sigma  # dz = [f z + pull eps] dt + tau g dw, eps = (z - alpha x) / sigma
    rate = f + (pull / sigma if row == "x" else 0.0)
    push = -pull * alpha / sigma * value if row == "x" else pull * value
    factors, shifts, spreads = torch.exp(-rate * lengths), -push * lengths, tau**2 * g2 * lengths
    mean, variance = 1.3, 0.0
    for factor, shift, spread in zip(factors.tolist(), shifts.tolist(), spreads.tolist(), strict=True):
        mean = factor * mean + shift
        variance = factor**2 * variance + spread

    class Constant:
        process = Gaussian(schedule)

        def __call__(self, z, t):
            return Estimate(z, t, schedule, torch.full_like(z, value), named=row)

    *_, last = plan.run(Constant(), torch.full((1, 1), 1.3, dtype=F64), lambda call, like: torch.zeros_like(like))
    assert float(last.z) == pytest.approx(mean, rel=2e-4)
    assert plan.lines[0].noise ** 2 == pytest.approx(variance, rel=2e-4, abs=1e-12)


@pytest.mark.parametrize("row", ["x", "eps"])
def test_the_corrector_uses_the_noise_that_was_drawn(row):
    """SA-Solver, Algorithm 1, as a loop of its own that keeps the corrected state and its noise; three estimates."""
    schedule, tau, steps = Flow(), 0.8, 8
    plan = SASolver(3, 3, tau, row=row, grid=FLOW_TIME).plan(schedule, steps, 0.9, 0.1)
    nodes = [*plan.times, plan.stop]
    law = mixture()
    model = law.denoiser(Gaussian(schedule))
    z0 = law.sample(3, process=model.process, t=0.9)

    def weights(known, k):
        """alpha_s int H e^{-H (1 - u)} l_i du, or (1 + tau^2) sigma_s int -h e^{h (1 - u)} l_i du, by quadrature."""
        lam = [half_logsnr(schedule, t) for t in nodes]
        h = lam[k + 1] - lam[k]
        u = (torch.arange(20000, dtype=F64) + 0.5) / 20000
        rate = (1 + tau**2) * h if row == "x" else -h
        density = rate * torch.exp(-rate * (1 - u)) / len(u)
        places = [(lam[j] - lam[k]) / h for j in known]
        basis = [math.prod((u - b) / (a - b) for b in places if b != a) for a in places]
        alpha, sigma = schedule(nodes[k + 1])
        scale = alpha if row == "x" else (1 + tau**2) * sigma
        return [float(scale * (density * one).sum()) for one in basis]

    corrected, held, seen, signals = z0, z0, z0, []
    for k, state in enumerate(plan.run(model, z0, fresh)):
        torch.testing.assert_close(state.z, seen, rtol=1e-7, atol=1e-7)
        if k == steps:
            break
        signals.append(getattr(model(seen, nodes[k]), row))
        if k > 0:
            known = list(range(k, max(-1, k - 3), -1))
            corrected = held + sum(w * signals[j] for w, j in zip(weights(known, k - 1), known, strict=True))
        h = half_logsnr(schedule, nodes[k + 1]) - half_logsnr(schedule, nodes[k])
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ([float(c) for c in schedule(t)] for t in nodes[k : k + 2])
        if row == "x":
            draw = sigma_s * math.sqrt(1 - math.exp(-2 * tau**2 * h)) * fresh(k, seen)
            held = sigma_s / sigma_t * math.exp(-(tau**2) * h) * corrected + draw
        else:
            draw = tau * sigma_s * math.sqrt(math.exp(2 * h) - 1) * fresh(k, seen)
            held = alpha_s / alpha_t * corrected + draw
        known = list(range(k, max(-1, k - 3), -1))
        seen = held + sum(w * signals[j] for w, j in zip(weights(known, k), known, strict=True))


def test_decay_moments_by_quadrature():
    u = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    for decay in (1e-3, 0.3, 0.999, 1.001, 4.0, 30.0, -1e-3, -0.3, -0.999, -1.001, -4.0):
        for p, found in enumerate(decay_moments(decay, 4)):
            wanted = float((decay * torch.exp(-decay * (1 - u)) * u**p).mean())
            assert found == pytest.approx(wanted, rel=1e-6)
    assert decay_moments(1e-9, 4) == pytest.approx([1e-9, 1e-9 / 2, 1e-9 / 3, 1e-9 / 4], rel=1e-8)
    for decay in (-1e-7, -1e-3, -0.1, -0.5, -1.0):  # against rationals: nothing cancels
        h, terms = Fraction(-decay), 40
        for p, found in enumerate(decay_moments(decay, 4)):
            powers = [h**j / math.factorial(j) for j in range(terms)]
            beta = [Fraction(math.factorial(j) * math.factorial(p), math.factorial(j + p + 1)) for j in range(terms)]
            assert found == pytest.approx(float(-h * sum(a * b for a, b in zip(powers, beta, strict=True))), rel=1e-15)


def test_churn_is_algorithm_2():
    """2206.00364, Algorithm 2, written out on sigma: the same states from the same draws after the first step."""
    schedule, steps = VE(0.002, 80.0), 12
    solver = Churn(20.0, 0.05, 50.0, 1.003, row="eps", grid=grids.Rho(7.0))
    law = mixture()
    model, z = law.denoiser(Gaussian(schedule)), 80.0 * noise.normal(3, torch.arange(5), (2,), dtype=F64)
    sigmas = [float(schedule(t)[1]) for t in grids.Rho(7.0).times(schedule, steps)[:-1]] + [0.0]

    def slope(x, sigma):
        return (x - law.moments(x, alpha=1.0, sigma=sigma).x) / sigma

    x, call = z, -1
    for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
        churned = i > 0 and 0.05 <= sigma <= 50.0
        higher = sigma * (1 + (min(20.0 / steps, math.sqrt(2) - 1) if churned else 0.0))
        x = x + 1.003 * math.sqrt(higher**2 - sigma**2) * fresh(call, x) if churned else x
        d = slope(x, higher)
        euler = x + (after - higher) * d
        x = euler if after == 0 else x + (after - higher) * (d + slope(euler, after)) / 2
        call += 2
    *_, last = solver.plan(schedule, steps).run(model, z, fresh)
    torch.testing.assert_close(last.z, x, rtol=1e-9, atol=1e-9)


def test_churn_of_nothing_is_heun():
    for schedule in (Flow(), LinearBeta(), VE()):
        ours, known = (
            Churn(0.0, row="eps", grid=grids.Rho()).plan(schedule, 9),
            Heun("eps", grids.Rho()).plan(schedule, 9),
        )
        assert ours.times == known.times and not ours.stochastic
        for a, b in zip(ours.lines, known.lines, strict=True):
            assert a.z == pytest.approx(b.z) and a.x == pytest.approx(b.x)


def test_euler_maruyama_is_the_discretised_equation():
    schedule, t, s, eta = LinearBeta(), 0.6, 0.5, 0.7
    plan = EulerMaruyama(eta).plan(schedule, 1, t, s)
    law = mixture()
    z = law.sample(4, process=Gaussian(schedule), t=t)
    f, g2 = float(schedule.drift(t)), float(schedule.diffusion(t))
    score = law.score(z, process=Gaussian(schedule), t=t)
    wanted = z + (s - t) * (f * z - (1 + eta**2) / 2 * g2 * score) + eta * math.sqrt(g2 * (t - s)) * fresh(0, z)
    *_, last = plan.run(law.denoiser(Gaussian(schedule)), z, fresh)
    torch.testing.assert_close(last.z, wanted)


def test_eta_goes_as_far_as_the_bridge_holds():
    for eta in (1.0, 1.3, 2.0):
        plan = DDIM(eta, FLOW_TIME).plan(Cosine(), 100, 0.9, 0.1)
        assert max(line.noise for line in plan.lines) > 0
    with pytest.raises(SfumatoError, match="smaller eta"):
        DDIM(1.1, FLOW_TIME).plan(Flow(), 10)  # the first step from pure noise is all noise with eta = 1
    assert SASolver(1, 0, 3.0).plan(Flow(), 10).stochastic  # exponential in tau: no bound


def test_the_noise_stays_in_its_interval():
    schedule = Cosine()
    plan = SASolver(2, 2, interval=(-2.0, 2.0), grid=FLOW_TIME).plan(schedule, 40)
    for t, line in zip(plan.times, plan.lines, strict=True):
        assert (line.noise > 0) == (abs(float(schedule.logsnr(t))) <= 2)
    churned = Churn(s_tmin=0.1, s_tmax=5.0).plan(VE(), 40)
    levels = [sigma for (_, sigma), line in zip(churned.path[1:], churned.lines, strict=True) if line.noise]
    assert 0.1 <= min(levels) and max(levels) <= 5.0 * math.sqrt(2)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDPM(variance="small"),
        lambda: EulerMaruyama(-1.0),
        lambda: SASolver(0, 2),
        lambda: SASolver(2, 5),
        lambda: SASolver(tau=math.nan),
        lambda: SASolver(phi2="B3"),
        lambda: SASolver(row="v"),
        lambda: SDEDPMSolver(4),
        lambda: Churn(-1.0),
        lambda: Churn(s_noise=0.0),
        lambda: Churn(s_tmin=2.0, s_tmax=1.0),
        lambda: Churn(order=3),
        lambda: PredictorCorrector(0.0),
        lambda: PredictorCorrector(1.0),
        lambda: PredictorCorrector(corrections=-1),
        lambda: PredictorCorrector(eta=math.inf),
        lambda: AnnealedLangevin(0),
        lambda: AnnealedLangevin(step=4.0),
    ],
)
def test_mistakes(make):
    with pytest.raises(SfumatoError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_names_are_those_of_the_stochastic_solvers():
    for name in ("churn", "ddpm-beta", "euler-maruyama", "sa-solver", "sde-dpm++2m", "predictor-corrector"):
        assert NAMES[name]().plan(Cosine(), 5).stochastic
