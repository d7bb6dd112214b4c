"""Sampling an exact mixture gives the mixture: DDPM, DDIM and the eta family, by distribution and by exact variance."""

import dataclasses
import math

import pytest
import torch
from scipy import stats

from gaussian_moments import follow, gaussian
from sfumato import noise
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.sampling import sample
from sfumato.schedules import VE, Cosine, Flow, FromBetas, LinearBeta
from sfumato.solvers import (
    DDIM,
    DDPM,
    AnnealedLangevin,
    Churn,
    EulerMaruyama,
    Multistep,
    OptimalDDPM,
    Plan,
    PredictorCorrector,
    SASolver,
    SDEDPMSolver,
    default,
    grids,
)

F64 = torch.float64
CURVES = {"vp": LinearBeta(), "ve": VE(), "flow": Flow(), "table": FromBetas.ddpm(), "cosine": Cosine()}


STOCHASTIC = {
    "beta": DDPM(grids.auto(), "beta"),
    "optimal": OptimalDDPM(grids.auto()),
    "euler_maruyama": EulerMaruyama(grid=grids.auto()),
    "churn": Churn(),
    "sde_2": SDEDPMSolver(2),
    "sde_3": SDEDPMSolver(3),
    "sa_22": SASolver(2, 2),
    "sa_33_half": SASolver(3, 3, 0.5),
    "sde_1_eps": SDEDPMSolver(1, row="eps"),
    "sde_2_eps": SDEDPMSolver(2, row="eps"),
    "sa_22_eps": SASolver(2, 2, row="eps"),
    "pc": PredictorCorrector(),
    "pc_ode": PredictorCorrector(0.16, eta=0.0),
    "annealed": AnnealedLangevin(),
}


def line():
    return GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.3])


def p_value(plan, curve, n=3000, seed=4, z=None):
    """Kolmogorov and Smirnov's test of n samples, from z or the prior, against the mixture's distribution function."""
    law = line()
    z = sample(law.denoiser(Gaussian(curve)), n, solver=plan, seed=seed, batch=n, z=z).flatten().numpy()

    def cdf(x):
        parts = zip(law.weights.tolist(), law.means[:, 0].tolist(), law.covs[:, 0, 0].sqrt().tolist(), strict=True)
        return sum(w * stats.norm(m, s).cdf(x) for w, m, s in parts)

    return stats.kstest(z, cdf).pvalue


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_eta_family_reproduces_the_mixture(eta, curve):
    """DDIM (0), DDPM (1) and between (A4, C4, C13)."""
    plan = DDIM(eta=eta, grid=grids.auto()).plan(CURVES[curve], 150)
    assert p_value(plan, CURVES[curve]) > 1e-3


@pytest.mark.first(16)
@pytest.mark.parametrize("curve", ["vp", "ve", "flow"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_every_stochastic_solver_reproduces_the_mixture(name, curve):
    """200 steps (A4, B4, B5, C4, C11): Kolmogorov and Smirnov cannot tell 1,500 samples from the law."""
    assert p_value(STOCHASTIC[name].plan(CURVES[curve], 200), CURVES[curve], n=1500) > 1e-3


def test_ddpm_on_its_own_thousand_steps():
    assert p_value(DDPM().plan(FromBetas.ddpm(), 1000), FromBetas.ddpm(), n=2000) > 1e-3


@pytest.mark.parametrize("curve", ["vp", "flow"])
def test_the_default_solver_reproduces_the_mixture(curve):
    assert p_value(default().plan(CURVES[curve], 40), CURVES[curve]) > 1e-3


@pytest.mark.parametrize("curve", ["vp", "ve", "flow"])
@pytest.mark.parametrize("solver", [default(exact=True), DDPM(grids.auto()), SASolver(2, 2)], ids=repr)
def test_noised_data_goes_back_to_the_data(solver, curve):
    """Image to image: data with noise up to a level in the middle, sampled from there on, has the law of the data."""
    schedule, process, n = CURVES[curve], Gaussian(CURVES[curve]), 2000
    t = float(schedule.time(0.5))
    x, eps = line().sample(n, seed=8), noise.normal(8, torch.arange(n), (1,), dtype=F64)
    alpha, sigma = schedule(t)
    plan = solver.plan(schedule, 100, t_start=t)
    assert p_value(plan, schedule, n, z=alpha * x + sigma * eps) > 1e-3
    assert p_value(plan, schedule, n, z=process.prior(eps)) < 1e-6  # from pure noise that level is wrong


def spoilt(plan: Plan, factor: float) -> Plan:
    """The same with wrong noise: alpha_t in place of alpha_s makes such an error."""
    lines = tuple(one._replace(noise=one.noise * factor) for one in plan.lines)
    return dataclasses.replace(plan, lines=lines)


def test_a_wrong_noise_is_flagged():
    plan = DDIM(eta=1.0, grid=grids.auto()).plan(LinearBeta(), 150)
    assert p_value(spoilt(plan, 0.8), LinearBeta()) < 1e-4
    assert p_value(spoilt(plan, 1.2), LinearBeta()) < 1e-4


def test_sliced_distance_in_the_plane():
    """Sliced Wasserstein distance to fresh samples is that between two sets of fresh samples; a wrong scale is not."""
    covs = [[[0.3, 0.25], [0.25, 0.4]], [[0.02, 0.0], [0.0, 1.5]]]
    law, n = GaussianMixture([0.4, 0.6], [[-1.5, 0.5], [1.0, 0.0]], covs), 4000
    angle = torch.linspace(0, math.pi, 33, dtype=F64)[:-1]
    axes = torch.stack((angle.cos(), angle.sin()))

    def distance(a, b):
        return float(((a @ axes).sort(0).values - (b @ axes).sort(0).values).square().mean().sqrt())

    fresh = law.sample(n, seed=1)
    floor = max(distance(fresh, law.sample(n, seed=s)) for s in (2, 3, 4, 5))
    model = law.denoiser(Gaussian(Cosine()))
    solvers = [(DDPM(grids.auto()), 150), (DDIM(grid=grids.auto()), 150), (Multistep(2), 40)]
    for solver, steps in (*solvers, *((STOCHASTIC[name], 100) for name in STOCHASTIC)):
        drawn = sample(model, n, steps, solver, seed=6, batch=n).double()
        assert distance(fresh, drawn) < 1.5 * floor
        assert distance(fresh, 1.15 * drawn) > 1.5 * floor


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("curve", ["flow", "cosine"])
def test_moments_of_the_eta_family_converge_at_order_one(eta, curve):
    """N(0.7, 0.3): mean and variance at the end tend to the data's like 1/steps, without chance (C4: weak order 1)."""
    gaps = []
    for n in (100, 200, 400):
        mean, variance = follow(DDIM(eta=eta, grid=grids.FlowTime()).plan(CURVES[curve], n), CURVES[curve])[-1]
        gaps.append(abs(mean - 0.7) + abs(variance - 0.3))
    assert gaps[-1] < 0.01
    assert math.log2(gaps[1] / gaps[2]) == pytest.approx(1.0, abs=0.3)


def test_moments_by_algebra_are_those_of_drawn_samples():
    process, plan, n = Gaussian(Cosine()), DDPM().plan(Cosine(), 12), 20_000
    z = process.prior(noise.normal(0, torch.arange(n), (1,), noise.PRIOR, dtype=F64))
    drawn = sample(gaussian().denoiser(process), n, solver=plan, z=z, batch=n)
    mean, variance = follow(plan, Cosine())[-1]
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.015)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.04)
