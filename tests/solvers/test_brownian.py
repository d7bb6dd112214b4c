"""Noise as a path of time: the law of a Wiener process, one path for any steps, samples that tend to one picture."""

import itertools
import math

import pytest
import torch

from gaussian_moments import follow, gaussian
from loops import every
from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.process import Gaussian
from sfumato.sampling import sample
from sfumato.schedules import VE, Cosine, Flow, LinearBeta
from sfumato.solvers import (
    DDIM,
    DDPM,
    AnnealedLangevin,
    Brownian,
    Churn,
    EulerMaruyama,
    Multistep,
    OptimalDDPM,
    PredictorCorrector,
    SASolver,
    SDEDPMSolver,
    grids,
)
from sfumato.solvers.brownian import along, level_clock, spans
from solver_cases import STRUCTURE, mixture, once

F64 = torch.float64
SOLVERS = {
    "ddpm": DDPM(grids.auto()),
    "beta": DDPM(grids.auto(), "beta"),
    "optimal": OptimalDDPM(grids.auto()),
    "half": DDIM(0.5, grids.auto()),
    "euler_maruyama": EulerMaruyama(grid=grids.auto()),
    "sde_2": SDEDPMSolver(2),
    "sa": SASolver(3, 3),
    "churn": Churn(3.0),
}
SOLVERS = {name: once(solver) for name, solver in SOLVERS.items()}


def change(a, b):
    """W(b) - W(a) over the tree's normal numbers."""
    start, end = noise.WienerProcess.weights(a), noise.WienerProcess.weights(b)
    return {node: end.get(node, 0.0) - start.get(node, 0.0) for node in start.keys() | end.keys()}


def product(p, q):
    return math.fsum(p[node] * q[node] for node in p.keys() & q.keys())


# -- the process -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times",
    [
        [0.0, 1.0],
        [0.0, 0.3, 0.5, 0.7, 1.0],
        [0.1234567, 0.12346, 0.2, 0.200002, 0.9, 0.99999, 1.0],
        [0.0, 1e-6, 3e-6, 0.25, 0.25 + 2.0**-20, 0.75],
        torch.linspace(0, 1, 301, dtype=F64).tolist(),
    ],
)
def test_increments_are_independent_and_have_their_variance(times):
    """Exactly, as forms over independent normal numbers: E dW_i dW_j = (i == j) dt_i."""
    steps = [change(a, b) for a, b in itertools.pairwise(times)]
    for (i, p), (j, q) in itertools.product(enumerate(steps), repeat=2):
        wanted = times[i + 1] - times[i] if i == j else 0.0
        assert product(p, q) == pytest.approx(wanted, abs=1e-15, rel=1e-9)


def test_the_covariance_is_the_smaller_time():
    for a, b in itertools.product((0.0, 1e-5, 0.1, 1 / 3, 0.5, 0.77, 1.0), repeat=2):
        wanted = min(a, b)
        assert product(noise.WienerProcess.weights(a), noise.WienerProcess.weights(b)) == pytest.approx(
            wanted, abs=1e-15
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_increments_add_up_along_any_times(dtype):
    like = torch.zeros(5, 3, dtype=dtype)
    whole = noise.WienerProcess(7, torch.arange(5)).between(0.1, 0.9, like)
    path = noise.WienerProcess(7, torch.arange(5))
    for times in ([0.1, 0.5, 0.9], [0.1, 0.11, 0.3001, 0.77, 0.9]):
        parts = sum(path.between(a, b, like) for a, b in itertools.pairwise(times))
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert whole.dtype == dtype


def test_rows_are_functions_of_seed_and_index():
    like = torch.zeros(4, 2, dtype=F64)
    whole = noise.WienerProcess(3, torch.arange(4)).between(0.2, 0.21, like)
    again = noise.WienerProcess(3, [2]).between(0.2, 0.21, like[:1])
    assert torch.equal(whole[2:3], again)
    assert not torch.equal(noise.WienerProcess(4, torch.arange(4)).between(0.2, 0.21, like), whole)
    assert not torch.equal(noise.normal(3, torch.arange(4), (2,), noise.STEP, 0, dtype=F64), whole)


def test_drawn_increments_are_normal():
    """Their mean, variance and correlation over 20,000 paths, within four standard errors."""
    n = 20_000
    path, like = noise.WienerProcess(1, torch.arange(n)), torch.zeros(n, 1, dtype=F64)
    first, second = path.between(0.2, 0.3, like) / 0.1**0.5, path.between(0.3, 0.34, like) / 0.04**0.5
    for draw in (first, second):
        assert abs(float(draw.mean())) < 4 / n**0.5 and abs(float(draw.var()) - 1) < 4 * (2 / n) ** 0.5
        assert abs(float((draw**4).mean()) - 3) < 4 * (96 / n) ** 0.5
    assert abs(float((first * second).mean())) < 4 / n**0.5


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_the_clock_knows_logsnr_alone():
    assert level_clock((0.0, 1.0)) == 0 and level_clock((1.0, 0.0)) == 1
    for logsnr in (-30.0, -2.0, 0.0, 9.0):
        ratio = math.exp(-logsnr / 2)
        wanted = 1 / (1 + math.exp(-logsnr / 8))
        assert level_clock((1.0, ratio)) == pytest.approx(wanted) == level_clock((0.3, 0.3 * ratio))


@every(curve=[*STRUCTURE], name=[*SOLVERS])
def test_spans_are_disjoint_and_rise(name, curve):
    for steps in (20, 200) if name == "churn" else (2, 20, 200):
        plan = SOLVERS[name].plan(STRUCTURE[curve], steps)
        noisy = [line.draws for line in plan.lines]
        found = spans(plan.name, plan.path, noisy)
        assert list(found) == [k for k, draws in enumerate(noisy) if draws]
        assert all(a < b for a, b in found.values())
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(found.values()))


# -- samples -----------------------------------------------------------------------------------------------------------


def distances(solver, schedule, counts, brownian):
    """How far the samples of one count of steps are from those of the next, in the mean."""
    model = mixture().denoiser(Gaussian(schedule))
    drawn = [sample(model, 200, n, Brownian(solver) if brownian else solver, seed=5) for n in counts]
    return [float((a - b).norm(dim=1).mean()) for a, b in itertools.pairwise(drawn)]


@pytest.mark.first(3)
@pytest.mark.parametrize("name", SOLVERS)
def test_with_more_steps_a_seed_tends_to_one_picture(name):
    """Strong convergence: the distance of n from 4 n steps falls at least like n^-1/2; with fresh noise it stays."""
    counts = (12, 48, 192)
    far, near = distances(SOLVERS[name], LinearBeta(), counts, brownian=True)
    assert near < 0.55 * far and near < 0.15
    assert distances(SOLVERS[name], LinearBeta(), counts[1:], brownian=False)[0] > 0.3


@pytest.mark.slow
def test_every_schedule_has_the_same_picture():
    """From the same noise level on, VP, VE and the flow path lead a seed to the same place."""
    law, steps = mixture(), 200
    ends = []
    for schedule in (LinearBeta(), VE(1e-3, 100.0), Flow()):
        t = float(schedule.time(-6.0))
        alpha, sigma = (float(c) for c in schedule(t))
        z = law.sample(100, alpha=1.0, sigma=math.exp(3.0)) * alpha
        assert sigma / alpha == pytest.approx(math.exp(3.0), rel=1e-6)
        model = law.denoiser(Gaussian(schedule))
        ends.append(sample(model, steps=steps, solver=Brownian(DDPM(grids.LogSNR())), z=z, t_start=t))
    assert float((ends[0] - ends[2]).norm(dim=1).mean()) < 0.05
    assert float((ends[0] - ends[1]).norm(dim=1).mean()) < 0.05


@pytest.mark.parametrize("name", ["ddpm", "sa"])
def test_a_sample_does_not_depend_on_its_batch(name):
    model = mixture().denoiser(Gaussian(Flow()))
    solver = Brownian(SOLVERS[name])
    whole = sample(model, 9, 10, solver, seed=3)
    torch.testing.assert_close(sample(model, 9, 10, solver, seed=3, batch=2), whole)
    torch.testing.assert_close(sample(model, 1, 10, solver, seed=3, index=[7]), whole[7:8])


def test_the_law_is_kept():
    """Mean and variance of 20,000 samples of one Gaussian are those that independent draws have."""
    plan = SDEDPMSolver(2).plan(Cosine(), 30)
    mean, variance = follow(plan, Cosine())[-1]
    drawn = sample(gaussian().denoiser(Gaussian(Cosine())), 20_000, solver=plan.along_paths(), seed=1, batch=20_000)
    assert float(drawn.mean()) == pytest.approx(mean, abs=4 * (variance / 20_000) ** 0.5)
    assert float(drawn.var()) == pytest.approx(variance, rel=4 * (2 / 20_000) ** 0.5)


def test_deterministic_solvers_do_not_care():
    model = mixture().denoiser(Gaussian(Flow()))
    assert torch.equal(sample(model, 3, 8, Brownian(Multistep(2))), sample(model, 3, 8, Multistep(2)))


def test_what_has_no_path_is_refused():
    for solver in (PredictorCorrector(), AnnealedLangevin()):
        with pytest.raises(SfumatoError, match="cannot follow a Brownian path"):
            along(solver.plan(Cosine(), 5), 0, torch.arange(2))
    with pytest.raises(SfumatoError, match="cannot follow a Brownian path"):  # so much churn that a step goes up
        along(Churn(40.0, s_tmax=80.0, grid=grids.Rho()).plan(VE(0.002, 80.0), 18), 0, torch.arange(2))
    with pytest.raises(SfumatoError, match="cannot follow a Brownian path"):
        along(DDPM(grids.LogSNR()).plan(Cosine(), 5, 0.5, 0.5 - 1e-9), 0, torch.arange(2))
