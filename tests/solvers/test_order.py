"""The order of every solver, measured on an exact mixture against its exact probability flow."""

import dataclasses
import functools
import math

import pytest
import torch

from loops import every
from sfumato.process import Gaussian
from sfumato.schedules import VE, Flow, LinearBeta
from sfumato.solvers import DDIM, Euler, Heun, Multistep, axis, grids, multistep
from sfumato.solvers.singlestep import Stage
from solver_cases import SOLVERS, Once, mixture

F64 = torch.float64
CURVES = {"vp": LinearBeta(), "ve": VE(), "flow": Flow()}
DETERMINISTIC = [name for name in SOLVERS if name not in ("ddim_half", "ddpm")]


@functools.cache
def exact(curve, start, stop):
    """The exact denoiser, the times of the two levels, and states at the first with where the exact flow takes them."""
    law, process = mixture(), Gaussian(curve)
    t, s = (float(curve.time(lam)) for lam in (start, stop))
    z = law.sample(24, seed=0, process=process, t=t)
    return law.denoiser(process), t, s, z, law.flow(z, t, s, process)


def errors(solver, curve, steps, start=-5.0, stop=4.0):
    """Root mean square distance to the exact flow from logsnr start to logsnr stop, for each number of steps."""
    denoiser, t, s, z, truth = exact(curve, start, stop)
    out = []
    for n in steps:
        *_, last = solver.plan(curve, n, t, s).run(denoiser, z)
        out.append(float((last.z - truth).square().mean().sqrt()))
    return out


def slope(solver, curve, steps=(48, 96), start=-5.0):
    coarse, fine = errors(solver, curve, steps, start)
    return math.log2(coarse / fine) / math.log2(steps[1] / steps[0])


@pytest.mark.first(1)
@pytest.mark.parametrize("curve", CURVES)
@every(name=DETERMINISTIC)
def test_order_is_as_declared(name, curve):
    """From logsnr 0, where the field is at its liveliest: a poor start is not small beside the rest."""
    solver = dataclasses.replace(SOLVERS[name], grid=Once(grids.LogSNR()))
    declared = solver.plan(CURVES[curve], 4).order
    assert slope(solver, CURVES[curve], (32, 64), start=0.0) == pytest.approx(declared, abs=0.3)


@pytest.mark.parametrize("grid", [grids.auto(), grids.Rho(), grids.FlowTime()], ids=repr)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_holds_on_every_grid(grid, order):
    assert slope(Multistep(order, grid=grid), LinearBeta()) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(
    "name", ["multistep_2_flow", "multistep_4_eps_logsnr", "corrected_3_flow", "rk4_flow", "deis_3"]
)
@pytest.mark.parametrize("start", [Flow(), LinearBeta()], ids=lambda c: type(c).__name__)
def test_whole_runs_converge_from_the_prior_to_the_clean_signal(start, name):
    """From t = 1 to t = 0: what is left at the ends falls as well."""
    law, process = mixture(), Gaussian(start)
    z = law.sample(24, seed=0, process=process, t=1.0)
    truth = law.flow(z, 1.0, 0.0, process)
    gaps = []
    for n in (10, 20, 40, 80):
        *_, last = SOLVERS[name].plan(start, n).run(law.denoiser(process), z)
        gaps.append(float((last.z - truth).square().mean().sqrt()))
    assert gaps[-1] < 1e-3 and all(b < a / 2.5 for a, b in zip(gaps, gaps[1:], strict=False)), gaps


def test_a_wrong_coefficient_is_flagged(monkeypatch):
    """A consistent two-step method with the wrong weights (a sigma_t where sigma_s belongs) has order 1, not 2."""
    true = axis.lagrange_integrals

    def wrong(nodes, start, stop):
        weights = true(nodes, start, stop)
        if len(weights) == 2:
            weights = [weights[0] - weights[1], 2 * weights[1]]  # the sum, and so consistency, is kept
        return weights

    monkeypatch.setattr(axis, "lagrange_integrals", wrong)
    assert slope(Multistep(2, grid=grids.LogSNR()), LinearBeta()) == pytest.approx(1.0, abs=0.3)


def test_a_wrong_corrector_is_flagged(monkeypatch):
    """Order 3 by a corrector on a predictor of order 2; one whose newest weight is off by a tenth has order 1."""
    solver = Multistep(2, corrector=True, grid=grids.LogSNR())
    assert slope(solver, LinearBeta()) == pytest.approx(3.0, abs=0.3)
    true = axis.lagrange_integrals

    def wrong(nodes, start, stop):
        weights = true(nodes, start, stop)
        if stop in nodes:  # the corrector's polynomial goes through the new node
            weights = [1.1 * weights[0], weights[1] - 0.1 * weights[0], *weights[2:]]
        return weights

    monkeypatch.setattr(axis, "lagrange_integrals", wrong)
    assert slope(solver, LinearBeta()) == pytest.approx(1.0, abs=0.3)


def test_a_low_order_start_is_flagged(monkeypatch):
    """A third-order method that starts with Euler steps measures as order 2: the starts are of order 2 and 3."""
    euler = (Stage(1, (0,)),)
    monkeypatch.setattr(multistep, "STAGES", {2: euler, 3: euler})
    steps = (192, 384)
    assert slope(Multistep(4), LinearBeta(), steps) == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_lagrange_integrals_are_exact_for_polynomials(count):
    nodes, start, stop = [0.3, 0.7, 1.1, 1.6][:count], 0.3, -0.2
    weights = axis.lagrange_integrals(nodes, start, stop)
    for power in range(count):
        exact = (stop ** (power + 1) - start ** (power + 1)) / (power + 1)
        assert sum(w * c**power for w, c in zip(weights, nodes, strict=True)) == pytest.approx(exact, abs=1e-13)


# -- exact where the mathematics says so ---------------------------------------------------------------------------


@every(curve=[*CURVES], solver=[Multistep(1, "F"), Multistep(3, "F"), Heun(row="F")])
def test_the_row_F_is_exact_on_matched_gaussian_data(curve, solver):
    """Data N(0, 1): F* = 0, so that one step is the exact map z_s = z_t S_s/S_t (C5, C11)."""
    from sfumato.exact import GaussianMixture

    law, process = GaussianMixture([1.0], [[0.0, 0.0]], 1.0), Gaussian(CURVES[curve])
    t, s = (float(CURVES[curve].time(lam)) for lam in (-6.0, 5.0))
    z = law.sample(5, seed=0, process=process, t=t)
    for n in (1, 3):
        *_, last = solver.plan(CURVES[curve], n, t, s).run(law.denoiser(process), z)
        torch.testing.assert_close(last.z, law.flow(z, t, s, process), rtol=1e-9, atol=1e-9)


@every(curve=[*CURVES], solver=[DDIM(), Euler(), Heun(), Multistep(2), Multistep(3)])
def test_the_gaussian_map(curve, solver):
    """z_s = alpha_s m + (z_t - alpha_t m) sd_s/sd_t, written out here (C5); each solver tends to it."""
    from sfumato.exact import GaussianMixture

    m, v, process = 1.5, 0.3, Gaussian(CURVES[curve])
    law = GaussianMixture([1.0], [[m]], v)
    t, s = (float(CURVES[curve].time(lam)) for lam in (-5.0, 4.0))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.schedule(t), process.schedule(s)
    z = alpha_t * m + torch.linspace(-2, 2, 9, dtype=F64)[:, None] * torch.sqrt(alpha_t**2 * v + sigma_t**2)
    sd_t, sd_s = torch.sqrt(alpha_t**2 * v + sigma_t**2), torch.sqrt(alpha_s**2 * v + sigma_s**2)
    wanted = alpha_s * m + (z - alpha_t * m) * sd_s / sd_t
    gaps = []
    for n in (100, 200):
        plan = dataclasses.replace(solver, grid=grids.LogSNR()).plan(process.schedule, n, t, s)
        *_, last = plan.run(law.denoiser(process), z)
        gaps.append(float((last.z - wanted).abs().max()))
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(plan.order, abs=0.4)


def coefficients(plan):
    """Lines as dense arrays over (z, x, noise)."""
    n = plan.calls
    out = torch.zeros(n, 2 * n + 1, dtype=F64)
    for k, line in enumerate(plan.lines):
        for j, c in line.z.items():
            out[k, j] = c
        for j, c in line.x.items():
            out[k, n + j] = c
        out[k, -1] = line.noise
    return out


@every(curve=[*CURVES], grid=[grids.Uniform(), grids.LogSNR()], row=["flow", "x", "eps"])
def test_order_one_is_ddim_in_three_rows(curve, grid, row):
    one, two = (s.plan(CURVES[curve], 7, 0.9, 0.1) for s in (Multistep(1, row, grid), DDIM(grid=grid)))
    torch.testing.assert_close(coefficients(one), coefficients(two), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("curve", CURVES)
def test_ddim_is_euler_in_sigma_over_alpha(curve):
    """z_s/alpha_s = z_t/alpha_t + (sigma_s/alpha_s - sigma_t/alpha_t) eps_hat (C13, eta = 0)."""
    plan = DDIM().plan(CURVES[curve], 9, 0.95, 0.05)
    for k, line in enumerate(plan.lines):
        (at, st), (as_, ss) = plan.path[k], plan.path[k + 1]
        h = ss / as_ - st / at
        # eps_hat = (z - alpha_t x)/sigma_t
        assert line.z[k] == pytest.approx(as_ * (1 / at + h / st), rel=1e-11, abs=1e-13)
        assert line.x[k] == pytest.approx(-as_ * h * at / st, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("curve", CURVES)
def test_eta_one_is_the_ancestral_posterior(curve):
    """Every line of DDPM is q(z_s|z_t, x_hat) (C13 with eta = 1, A7)."""
    process = Gaussian(CURVES[curve])
    plan = SOLVERS["ddpm"].plan(CURVES[curve], 9)
    nodes = [*plan.times, plan.stop]
    for k, line in enumerate(plan.lines[:-1]):
        step = process.posterior(nodes[k + 1], nodes[k])
        if nodes[k + 1] == 0:
            continue
        assert line.z.get(k, 0.0) == pytest.approx(float(step.z), rel=1e-12)  # 0 from pure noise
        assert line.x[k] == pytest.approx(float(step.x), rel=1e-12)
        assert line.noise == pytest.approx(float(step.std), rel=1e-12)
    assert plan.lines[-1].noise == 0  # the last step lands on the belief


def test_euler_on_the_linear_path_is_ddim():
    """alpha = 1 - t, sigma = t: Euler in t, DDIM, InDI and alpha-deblending are one step (D1, D5, D6)."""
    one, two = (s.plan(Flow(), 8) for s in (Euler(), DDIM()))
    torch.testing.assert_close(coefficients(one), coefficients(two), rtol=1e-12, atol=1e-12)
