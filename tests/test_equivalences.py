"""The views agree: one denoiser as score, noise, flow and Markov chain; one model under every convention."""

import pytest
import torch

from curves import CURVES
from sfumato.compose import Rescheduled
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.sampling import sample, trajectory
from sfumato.schedules import Flow, LinearBeta
from sfumato.solvers import DDIM, Heun, Multistep, grids

F64 = torch.float64
every = pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES.keys())


def law():
    covs = [[[0.2, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.15]]]
    return GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], covs)


@every
def test_velocity_is_the_drift_of_the_probability_flow(curve):
    """alpha' x + sigma' eps = f z - g^2/2 score: the flow's field and the SDE's ODE are one (C5, D1)."""
    process = Gaussian(curve)
    t = torch.linspace(0.1, 0.95, 9, dtype=F64)
    z = law().sample(9, seed=0, process=process, t=t)
    belief = law().denoiser(process)(z, t)
    score = law().score(z, process=process, t=t)
    ode = curve.drift(t)[:, None] * z - 0.5 * curve.diffusion(t)[:, None] * score
    size = float(ode.abs().max())
    torch.testing.assert_close(belief.velocity, ode, rtol=1e-7, atol=1e-9 * size)


@every
def test_tweedie(curve):
    """x = (z + sigma^2 score)/alpha, eps = -sigma score, v = alpha eps - sigma x (A8)."""
    process = Gaussian(curve)
    t = torch.linspace(0.1, 0.9, 9, dtype=F64)
    alpha, sigma = (c[:, None] for c in curve(t))
    z = law().sample(9, seed=1, process=process, t=t)
    belief, score = law().denoiser(process)(z, t), law().score(z, process=process, t=t)
    torch.testing.assert_close(belief.score, score, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(belief.eps, -sigma * score, rtol=1e-10, atol=1e-10)
    scale = 1 + float((sigma**2 / alpha).max())  # what the cancellation of z against sigma^2 score costs
    torch.testing.assert_close(belief.x, (z + sigma**2 * score) / alpha, rtol=1e-10, atol=1e-12 * scale**2)
    torch.testing.assert_close(belief.v, alpha * belief.eps - sigma * belief.x, rtol=1e-12, atol=1e-12 * scale)


@every
def test_the_flow_velocity_is_that_of_matching(curve):
    """`velocity` is the conditional mean of alpha' x + sigma' eps: paired samples, slice by slice of z (D1)."""
    process, t, n = Gaussian(curve), 0.6, 40_000
    data = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.2])
    x = data.sample(n, seed=2)
    eps = torch.randn(n, 1, dtype=F64, generator=torch.Generator().manual_seed(3))
    z = process.corrupt(x, t, eps)
    da, ds = curve.rates(t)
    residual = (da * x + ds * eps - data.denoiser(process)(z, t).velocity).flatten()
    order = z.flatten().argsort()
    for part in residual[order].chunk(8):  # in every slice of z the mean error is 0
        assert abs(float(part.mean())) < 4.5 * float(part.std()) / len(part) ** 0.5


def test_one_path_in_every_row_and_schedule():
    """Fine walks by four rows under three schedules end on the exact map of one probability flow."""
    process = Gaussian(LinearBeta())
    truth, z = law(), torch.randn(8, 2, dtype=F64, generator=torch.Generator().manual_seed(4))
    lam = (-5.0, 5.0)
    for name in ("linear_beta", "ve", "flow", "cosine", "edm"):
        curve = CURVES[name]
        t, s = (float(curve.time(v)) for v in lam)
        model = Rescheduled(truth.denoiser(process), curve)
        alpha, sigma = (float(c) for c in curve(t))
        begin = z * (alpha**2 + sigma**2) ** 0.5
        exact = truth.flow(begin, t, s, Gaussian(curve))
        for solver in (Multistep(4, "flow", grids.LogSNR()), Multistep(4, "F", grids.LogSNR())):
            *_, last = trajectory(model, 8, 120, solver, z=begin, t_start=t, t_stop=s)
            torch.testing.assert_close(last.z, exact, rtol=0, atol=1e-5)
        *_, last = trajectory(model, 8, 300, Heun(grid=grids.LogSNR()), z=begin, t_start=t, t_stop=s)
        torch.testing.assert_close(last.z, exact, rtol=0, atol=1e-4)


def test_one_step_to_the_clean_signal_is_the_belief():
    """Any solver with one step returns E[x|z], the best guess in the mean square (D5)."""
    model = law().denoiser(Gaussian(Flow()))
    z = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(5))
    one = sample(model, steps=1, z=z, solver=DDIM())
    torch.testing.assert_close(one, model(z, 1.0).x, rtol=0, atol=1e-12)
    torch.testing.assert_close(sample(model, steps=1, z=z, solver=Multistep(2)), one, rtol=0, atol=1e-12)
