"""The denoising loss: one loss in every target, schedule and time density, its floor, and its seeds."""

import dataclasses

import pytest
import torch
from scipy import integrate

from loops import every
from sfumato import target
from sfumato.belief import Estimate
from sfumato.exact import GaussianMixture
from sfumato.objectives import denoising_loss, times, weights
from sfumato.process import Gaussian
from sfumato.schedules import EDM, VE, Cosine, Flow, LinearBeta, LogLinear, SubVP

F64 = torch.float64
WEIGHTS = {name: make() for name, make in weights.NAMED.items()} | {"any": lambda lam: 2 + torch.sin(lam)}
DENSITIES = {
    "uniform": times.uniform(),
    "uniform_logsnr": times.uniform_logsnr(),
    "logit_normal": times.logit_normal(0.3, 1.2),
    "edm": times.edm(),
    "mode": times.mode(),
    "cosmap": times.cosmap(),
    "any": times.from_density(lambda lam: 1 / (4 + lam**2)),
    "low_discrepancy": times.low_discrepancy(times.cosmap()),
}
SCHEDULES = [LinearBeta(), Flow(), VE(0.005, 300.0), EDM(0.001, 300.0), Cosine(), SubVP(), LogLinear(-14.0, 14.0)]


def mixture():
    return GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [[[0.2, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.05]]])


class Known:
    """A denoiser whose belief is a given function of (z, t), told in the terms of a target."""

    def __init__(self, process, name, signal, sigma_data=1.0):
        self.process, self.signal = dataclasses.replace(process, target=name, sigma_data=sigma_data), signal
        self.target, self.sigma_data = name, sigma_data

    def __call__(self, z, t):
        return Estimate(z, t, self.process.schedule, x=self.signal(z, t), sigma_data=self.sigma_data)


def optimum(process, name):
    law = mixture()
    return Known(process, name, lambda z, t: law.moments(z, process=process, t=t).x)


@every(weight=[*WEIGHTS], curve=[LinearBeta(), Flow(), EDM()])
def test_every_target_gives_the_same_loss_and_gradient(weight, curve):
    """With a weight the target is only a spelling: loss and gradient with respect to x_hat agree."""
    process, law = Gaussian(curve), mixture()
    x, t = law.sample(6, seed=1), torch.linspace(0.1, 0.9, 6, dtype=F64)
    losses, gradients = {}, {}
    for name in target.NAMES:
        guess = (x + 0.3).requires_grad_()
        denoiser = Known(process, name, lambda z, t, guess=guess: guess, sigma_data=0.5)
        loss = denoising_loss(denoiser, x, t, WEIGHTS[weight], seed=3)
        loss.sum().backward()
        losses[name], gradients[name] = loss.detach(), guess.grad
    for name in target.NAMES[1:]:
        torch.testing.assert_close(losses[name], losses["x"], rtol=1e-8, atol=0)
        torch.testing.assert_close(gradients[name], gradients["x"], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", target.NAMES)
def test_without_a_weight_it_is_the_targets_squared_error(name):
    process = Gaussian(LinearBeta())
    x = mixture().sample(5, seed=2)
    t = torch.linspace(0.2, 0.9, 5, dtype=F64)
    eps = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    denoiser = Known(process, name, lambda z, t: 0.1 * z)
    z = process.corrupt(x, t, eps)
    a, b = target.row(name, process.schedule, t)
    wanted = 0.5 * (denoiser(z, t).target(denoiser.target) - a[:, None] * x - b[:, None] * eps).square().sum(1)
    torch.testing.assert_close(denoising_loss(denoiser, x, t, eps=eps), wanted, rtol=1e-9, atol=0)


@every(density=[*DENSITIES], curve=SCHEDULES)
def test_expectation_is_the_integral_whatever_the_density(density, curve):
    """x_hat = 0 has |eps - eps_hat|^2 = snr |x|^2, so that E loss = 1/2 int w exp(logsnr) |x|^2 dlogsnr."""
    weight, law = weights.edm(0.5, 0.1, 0.45), DENSITIES[density]  # decays on both sides of logsnr -0.2
    n = 40_000
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    denoiser = Known(Gaussian(curve), "v", lambda z, t: torch.zeros_like(z))
    t = curve.time(law.logsnr(u, curve))
    x = torch.full((n, 1), 1.3, dtype=F64)
    mean = float(denoising_loss(denoiser, x, t, weight, law, eps=torch.zeros_like(x)).mean())

    def integrand(lam):
        lam = torch.tensor(lam, dtype=F64)
        return float(0.5 * weight(lam) * lam.exp() * 1.69)

    lo, hi = (max(-15.0, min(15.0, end)) for end in curve.logsnr_range)
    wanted, _ = integrate.quad(integrand, lo, hi, epsabs=1e-12, epsrel=1e-12, limit=200)
    assert mean == pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize("weight", ["edm", "sd3-logit-normal", "x-simple"])
def test_loss_and_gradient_are_unbiased_under_any_density(weight):
    """The mean loss of a denoiser x_hat = theta E[x|z], and its gradient, agree within 4 standard errors (K4)."""
    process, law, n = Gaussian(Flow()), mixture(), 6_000
    x, found = law.sample(n, seed=8), []
    for density in ("uniform", "uniform_logsnr", "edm", "mode", "any"):
        theta = torch.full((n, 1), 0.9, dtype=F64, requires_grad=True)
        denoiser = Known(process, "v", lambda z, t, theta=theta: theta * law.moments(z, process=process, t=t).x)
        loss = denoising_loss(denoiser, x, weight=WEIGHTS[weight], times=DENSITIES[density], seed=21)
        loss.sum().backward()
        for each in (loss.detach(), theta.grad[:, 0]):
            found.append((float(each.mean()), float(each.std()) / n**0.5))
    for kind in (found[0::2], found[1::2]):
        for mean, error in kind[1:]:
            assert abs(mean - kind[0][0]) < 4 * (error**2 + kind[0][1] ** 2) ** 0.5
            assert error < 0.2 * abs(mean)


def test_loss_does_not_know_the_schedule():
    """The same x, eps and logsnr give the same loss, sample by sample, under seven schedules and any target (A6)."""
    law, n = mixture(), 200
    x = law.sample(n, seed=4)
    lam = torch.linspace(-7, 7, n, dtype=F64)
    losses = []
    for curve in SCHEDULES:
        for name in ("v", "x"):
            denoiser = optimum(Gaussian(curve), name)
            loss = denoising_loss(denoiser, x, curve.time(lam), weights.elbo(), seed=7)
            losses.append(loss * times.UniformTime().density(lam, curve))  # the density it was divided by
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["x", "eps", "v", "velocity", "F"])
def test_floor_is_the_posterior_covariance(name):
    """The optimum's loss is 1/2 c E tr Cov(x|z), c = |dy|^2/|dx|^2 (A4); another denoiser lies above it."""
    process, law, n, t = Gaussian(LinearBeta()), mixture(), 20_000, 0.35
    x = law.sample(n, seed=5)
    index = torch.arange(n)
    loss = denoising_loss(optimum(process, name), x, t, seed=11, index=index)
    alpha, sigma = process.schedule(t)
    scale = (sigma / alpha) ** 2 * target.error_scale(target.row(name, process.schedule, t), alpha, sigma)
    floor, error = law.mmse(n, seed=6, process=process, t=t)
    spread = float(loss.std()) / n**0.5 + 0.5 * error / float(scale)
    assert float(loss.mean()) == pytest.approx(0.5 * floor / float(scale), abs=4 * spread)
    worse = Known(process, name, lambda z, t: law.moments(z, process=process, t=t).x + 0.1)
    more = denoising_loss(worse, x, t, seed=11, index=index).mean() - loss.mean()
    # |x_hat + d - x|^2 = |x_hat - x|^2 + |d|^2 in the mean: 1/2 |d|^2 c, |d|^2 = 2 * 0.01
    assert float(more) == pytest.approx(0.01 / float(scale), rel=0.1)


def test_a_samples_loss_does_not_depend_on_its_batch():
    denoiser = optimum(Gaussian(Flow()), "velocity")
    x = mixture().sample(40, seed=0)
    whole = denoising_loss(denoiser, x, weight=weights.v(), times=times.logit_normal(), seed=9)
    for index in ([7], [39, 0, 12], list(range(10, 20))):
        part = denoising_loss(denoiser, x[index], weight=weights.v(), times=times.logit_normal(), seed=9, index=index)
        torch.testing.assert_close(part, whole[index], rtol=1e-12, atol=0)
    other = denoising_loss(denoiser, x, weight=weights.v(), times=times.logit_normal(), seed=10)
    assert not bool((other == whole).any())


def test_condition_reaches_the_model():
    class Labelled(Known):
        def __call__(self, z, t, label):
            self.seen = label
            return super().__call__(z, t)

    denoiser = Labelled(Gaussian(Flow()), "v", lambda z, t: z)
    label = torch.tensor([1, -1])
    denoising_loss(denoiser, torch.zeros(2, 3), label=label)
    assert torch.equal(denoiser.seen, label)


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4), (2, 5, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_shape_one_loss_for_each_sample(shape, dtype):
    denoiser = Known(Gaussian(Cosine()), "v", lambda z, t: 0.5 * z)
    loss = denoising_loss(denoiser, torch.ones(4, *shape, dtype=dtype), weight=weights.sigmoid())
    assert loss.shape == (4,) and loss.dtype == dtype and bool(loss.isfinite().all())
