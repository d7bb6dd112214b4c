"""Langevin dynamics: invariance, the published algorithms, what annealing and correcting are good for."""

import math

import pytest
import torch

from gaussian_moments import follow, gaussian, marginal
from sfumato import noise
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.sampling import sample
from sfumato.schedules import VE, Cosine, Flow, LinearBeta
from sfumato.solvers import DDIM, AnnealedLangevin, PredictorCorrector, grids
from sfumato.solvers.langevin import langevin
from solver_cases import mixture

F64 = torch.float64


def fresh(call, like):
    return noise.normal(0, torch.arange(len(like)), tuple(like.shape[1:]), noise.STEP, call, dtype=like.dtype)


def test_the_corrector_leaves_the_law_invariant_as_its_step_tends_to_0():
    """One update of a mixture's p_t by quadrature: the change falls like delta^2, faster than the step (B5)."""
    law = GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.3])
    alpha, sigma = (float(c) for c in Cosine()(0.4))
    z = torch.linspace(-5, 5, 1601, dtype=F64)
    at = law.moments(z[:, None], alpha=alpha, sigma=sigma)
    density, dz = at.log_prob.exp(), float(z[1] - z[0])
    moved = []
    for delta in (0.08, 0.04, 0.02):
        form, std = langevin((alpha, sigma), 0, delta)
        mean = form["z", 0] * z + form["x", 0] * at.x[:, 0]
        kernel = torch.exp(-(((z[:, None] - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))
        moved.append(float((kernel @ density * dz - density).abs().sum()) * dz / 2)
    assert moved[0] < 0.05
    assert moved[0] / moved[1] == pytest.approx(4, rel=0.15) and moved[1] / moved[2] == pytest.approx(4, rel=0.15)
    still = langevin((alpha, sigma), 0, 0.04)
    wrong = still[0]["z", 0] * z + still[0]["x", 0] * at.x[:, 0] * 0.9  # a score that is off does not
    kernel = torch.exp(-(((z[:, None] - wrong) / still[1]) ** 2) / 2) / (still[1] * math.sqrt(2 * math.pi))
    assert float((kernel @ density * dz - density).abs().sum()) * dz / 2 > 2 * moved[1]


def test_the_bias_of_many_corrections_is_of_order_snr_squared():
    """400 updates at one level of a Gaussian: the variance is off by a quarter when snr is halved."""
    schedule, errors = Cosine(), []
    for snr in (0.3, 0.15, 0.075):
        plan = PredictorCorrector(snr, corrections=400).plan(schedule, 1, 0.6, 0.5)
        errors.append(follow(plan, schedule, marginal(schedule, 0.6))[-1][1] - marginal(schedule, 0.5)[1])
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1) and errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_the_step_is_the_published_one_with_the_expected_norms():
    """e = 2 (r |xi| / |score|)^2 (2011.13456, Alg. 4) for one point of data in 4096 dimensions."""
    schedule, snr, dim = VE(), 0.16, 4096
    plan = PredictorCorrector(snr).plan(schedule, 5)
    xi, other = (noise.normal(seed, [0], (dim,), dtype=F64) for seed in (0, 1))
    assert plan.calls == 9
    for k in range(1, 9, 2):  # the calls in turn predict and correct
        assert plan.times[k] == plan.times[k + 1]
        sigma, line = plan.path[k][1], plan.lines[k]
        step = 2 * (snr * float(xi.norm()) / float((other / sigma).norm())) ** 2
        assert line.noise**2 / 2 == pytest.approx(step, rel=0.1)
        assert (1 - line.z[k]) * sigma**2 == pytest.approx(step, rel=0.1)


def test_annealed_langevin_is_algorithm_1():
    """1907.05600, Algorithm 1, written out on sigma with the same draws, and then the mean of the clean signal."""
    schedule, levels, updates, ratio = VE(0.01, 10.0), 6, 4, 0.2
    law = mixture()
    model, z = law.denoiser(Gaussian(schedule)), 10.0 * noise.normal(3, torch.arange(5), (2,), dtype=F64)
    sigmas = [float(schedule(t)[1]) for t in grids.LogSNR().times(schedule, levels)[:-1]]
    epsilon, x, call = ratio * sigmas[-1] ** 2, z, 0
    for sigma in sigmas:
        a = epsilon * sigma**2 / sigmas[-1] ** 2
        for _ in range(updates):
            x = x + a / 2 * law.score(x, alpha=1.0, sigma=sigma) + math.sqrt(a) * fresh(call, x)
            call += 1
    plan = AnnealedLangevin(updates, ratio).plan(schedule, levels)
    *_, before, last = plan.run(model, z, fresh)
    torch.testing.assert_close(before.z, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(last.z, law.moments(x, alpha=1.0, sigma=sigmas[-1]).x)


def test_annealing_finds_the_weights_of_the_modes_and_one_level_does_not():
    """B4: modes eight standard deviations apart with weights 0.2 and 0.8; one small level keeps those of the start."""
    law, n = GaussianMixture([0.2, 0.8], [[-1.0], [1.0]], 0.06), 1500
    schedule = VE(0.02, 20.0)
    model = law.denoiser(Gaussian(schedule))
    solver, tolerance = AnnealedLangevin(10, 0.2), 4 * math.sqrt(0.16 / n)
    annealed = sample(model, n, 60, solver, batch=n)
    assert abs(float((annealed < 0).double().mean()) - 0.2) < tolerance + 0.01
    z = 3.0 * noise.normal(5, torch.arange(n), (1,), dtype=F64)
    level = float(schedule.time(-2 * math.log(0.05)))
    alone = sample(model, steps=1, solver=AnnealedLangevin(600, 0.2), z=z, t_start=level, batch=n)
    left = float((alone < 0).double().mean())
    assert abs(left - 0.5) < 2 * tolerance and abs(left - 0.2) > 0.2
    assert float((alone.abs() - 1).abs().mean()) < 0.3  # it does stand on the modes


def divergence(found, goal):
    """KL(N(found) | N(goal))."""
    ratio = found[1] / goal[1]
    return 0.5 * (ratio - 1 - math.log(ratio) + (found[0] - goal[0]) ** 2 / goal[1])


@pytest.mark.parametrize("curve", [VE(0.01, 50.0), LinearBeta()], ids=["ve", "vp"])
def test_correcting_lowers_the_divergence_at_the_same_number_of_calls(curve):
    """B5, by exact moments of the samples: a corrected solve of half the steps beats the predictor alone."""
    for steps in (10, 20, 40):
        corrected = PredictorCorrector(0.35, eta=0.0).plan(curve, steps)
        alone = DDIM(grid=grids.auto()).plan(curve, 2 * steps - 1)
        assert corrected.calls == alone.calls == 2 * steps - 1
        ours, theirs = (divergence(follow(plan, curve)[-1], (0.7, 0.3)) for plan in (corrected, alone))
        assert ours < 0.8 * theirs


def test_a_level_without_signal_takes_one_call():
    """At the start of a flow the score is that of the noise itself: nothing to relax to, and no call is wasted."""
    plan = AnnealedLangevin(10).plan(Flow(), 6)
    assert plan.calls == 5 * 10 + 2 and plan.order == 0
    assert all(line.x for line in plan.lines)


def test_an_earlier_stop_is_a_level_too():
    schedule = VE(0.01, 20.0)
    plan = AnnealedLangevin(20, 0.3).plan(schedule, 40, 1.0, 0.3)
    assert plan.calls == 41 * 20 and plan.times[-1] == 0.3 == plan.stop
    mean, variance = follow(plan, schedule)[-1]
    goal = marginal(schedule, 0.3)
    assert mean == pytest.approx(goal[0], abs=0.02) and variance == pytest.approx(goal[1], rel=0.1)
    model = gaussian().denoiser(Gaussian(schedule))
    assert sample(model, 2, solver=plan).shape == (2, 1)
