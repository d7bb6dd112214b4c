"""The learned schedule: monotone by construction, the loss untouched, its variance brought near the least."""

import math

import pytest
import torch
from scipy import integrate

from sfumato import nets, noise, schedules
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.model import Denoiser
from sfumato.objectives import denoising_loss, times, weights
from sfumato.objectives.learned import Learned, Monotone, end_rates
from sfumato.objectives.losses import Denoising
from sfumato.process import Gaussian
from sfumato.schedules import Cosine, Flow, LogLinear
from sfumato.training import State, TrainConfig, fit

F64 = torch.float64
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [[[0.2, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.05]]])


def shaken(density, seed=0, size=1.0):
    """Its parameters moved by random numbers."""
    for i, parameter in enumerate(density.parameters()):
        with torch.no_grad():
            step = noise.normal(seed, [i], (parameter.numel(),), dtype=F64).reshape(parameter.shape)
            parameter.add_(size * step * parameter.abs().clamp_max(3.0))
    return density


def midpoints(n):
    return (torch.arange(n, dtype=F64) + 0.5) / n


@pytest.mark.parametrize("seed", range(4))
def test_it_rises_whatever_its_parameters(seed):
    net = Monotone(16)
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(5 * noise.normal(seed, [i], (parameter.numel(),), dtype=F64).reshape(parameter.shape))
    u = torch.linspace(0, 1, 1001, dtype=F64, requires_grad=True)
    g, rate = net(u)
    assert float(g[0].detach()) == 0 and float(g[-1].detach()) == 1
    assert bool((g[1:] > g[:-1]).all()) and bool((rate > 0).all())
    torch.testing.assert_close(torch.autograd.grad(g.sum(), u)[0], rate.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(net.inverse(g).detach(), u.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("curve", [Flow(), LogLinear(-6.0, 9.0)], ids=lambda c: type(c).__name__)
def test_quantile_and_density_are_one_law(curve):
    density = shaken(Learned())
    lo, hi = times.limits(curve)
    u = torch.linspace(0, 1, 2001, dtype=F64)
    lam = density.logsnr(u, curve)
    assert float(lam[0]) == pytest.approx(hi) and float(lam[-1]) == pytest.approx(lo)
    mass = -torch.trapezoid(density.density(lam, curve), lam)
    assert float(mass) == pytest.approx(1, abs=1e-3)
    rate = (lam[2:] - lam[:-2]) / (u[2:] - u[:-2])
    torch.testing.assert_close(-1 / rate, density.density(lam[1:-1], curve), rtol=0.02, atol=0)


def test_the_expected_loss_does_not_know_the_network():
    """Unit Gaussian data, elbo: 1/2 int sigmoid(logsnr) dlogsnr a dimension for any parameters, ends given."""
    curve = LogLinear(-7.0, 5.0)
    wanted = 0.5 * integrate.quad(lambda v: 1 / (1 + math.exp(-v)), -7, 5, epsabs=1e-13)[0]
    for seed in range(3):
        density = shaken(Learned(), seed)
        lam = density.logsnr(midpoints(5000), curve)
        assert float((0.5 * torch.sigmoid(lam) / density.density(lam, curve)).mean()) == pytest.approx(wanted, rel=1e-6)


def test_its_gradient_is_that_of_the_squared_loss():
    """By the losses alone, by int E l^2 / p, and by VDM's path logsnr(u): three ways, one gradient."""
    curve, n = LogLinear(-6.0, 8.0), 8000
    density, (lo, hi) = shaken(Learned(width=8), 3, 0.3), times.limits(curve)

    def loss(lam):
        return torch.sigmoid(lam) * torch.exp(-0.05 * lam**2)

    def gradient(value):
        density.net.zero_grad()
        value.backward()
        return torch.cat([p.grad.flatten() for p in density.parameters()])

    lam = density.logsnr(midpoints(n), curve)
    by_losses = gradient(density.surrogate(lam, loss(lam) / density.density(lam, curve)))
    grid = hi - (hi - lo) * midpoints(n)
    integral = (hi - lo) * (loss(grid).square() * (-density._log_density(grid, (lo, hi))).exp()).mean()
    by_integral = gradient(integral)
    g, rate = density.net(midpoints(n))
    by_path = gradient((loss(hi - (hi - lo) * g) * (hi - lo) * rate).square().mean())
    torch.testing.assert_close(by_losses, by_integral, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(by_path, by_integral, rtol=1e-4, atol=1e-6)
    assert float(by_integral.abs().max()) > 1e-3


class Optimal:
    def __init__(self, curve):
        self.process = Gaussian(curve)

    def __call__(self, z, t):
        return MIXTURE.denoiser(self.process)(z, t)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("curve", "weight"),
    [(LogLinear(-8.0, 8.0), weights.sigmoid()), (Cosine(), weights.elbo())],
    ids=["sigmoid", "elbo"],
)
def test_variance_falls_to_near_the_least(curve, weight):
    """E_p (l/p)^2 within 25 % of its least, (int (E l^2)^(1/2) dlogsnr)^2; uniform t lies at twice that or more."""
    n, size = 16_000, 300
    denoiser, density = Optimal(curve), Learned(width=24, lr=0.04)
    for k in range(120):
        index = torch.arange(k * size, (k + 1) * size)
        lam = density.logsnr(noise.uniform(1, index, (), noise.TRAIN_TIME, dtype=F64), curve)
        x = MIXTURE.sample(size, seed=2, first=k * size)
        density.observe(lam, denoising_loss(denoiser, x, curve.time(lam), weight, density, 1, index))
    x, flat = MIXTURE.sample(n, seed=31), times.uniform_logsnr()
    found = denoising_loss(denoiser, x, weight=weight, times=density, seed=32).square().mean()
    uniform = denoising_loss(denoiser, x, weight=weight, times=times.uniform(), seed=32).square().mean()
    lam = flat.logsnr(midpoints(n), curve)
    p = flat.density(lam, curve)
    squares = (denoising_loss(denoiser, x, curve.time(lam), weight, flat, seed=33) * p).square().reshape(80, -1)
    least = float((squares.mean(1).sqrt() / p.reshape(80, -1).mean(1)).mean()) ** 2
    assert 0.9 * least < float(found) < 1.25 * least
    assert float(uniform) > 2 * least


def test_frozen_it_is_a_schedule_for_a_file():
    """Uniform t of the frozen schedule draws logsnr from the density that was learned."""
    curve, density = Flow(), shaken(Learned(), 1, 0.5)
    frozen = density.frozen(curve, nodes=512)
    again = schedules.from_config(frozen.config())
    u = torch.linspace(0.01, 0.99, 99, dtype=F64)
    assert again == frozen and frozen.logsnr_range == pytest.approx(times.limits(curve))
    torch.testing.assert_close(frozen.logsnr(u), density.logsnr(u, curve), rtol=0, atol=0.02)
    middle = density.logsnr((torch.arange(512, dtype=F64) + 0.5) / 512, curve)
    torch.testing.assert_close(
        times.uniform().density(middle, frozen), density.density(middle, curve), rtol=0.05, atol=1e-6
    )


def test_a_run_in_two_parts_is_the_run_in_one():
    """To the last bit: the density's network and its optimiser go on with the weights."""
    data, config = noise.normal(3, range(60), (5,), noise.DATA), TrainConfig(steps=8, batch=7, precision="float32")

    def state():
        torch.manual_seed(0)
        denoiser = Denoiser(nets.MLP(5, width=16, depth=2), Gaussian(Flow()), "velocity")
        return State(denoiser, config, Denoising(Learned(width=8), weights.sigmoid(), 0))

    whole, first, second = state(), state(), state()
    list(fit(whole.denoiser, data, config, state=whole))
    steps = fit(first.denoiser, data, config, state=first)
    for _ in range(3):
        next(steps)
    second.load({k: v.clone() for k, v in first.tensors().items()}, first.counters())
    list(fit(second.denoiser, data, config, state=second))
    ours, theirs = whole.tensors(), second.tensors()
    moved = Learned(width=8).tensors()["net.heights"]
    assert not torch.equal(ours["goal.net.heights"], moved)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# -- ends that are learned -------------------------------------------------------------------------------------------


class Linear:
    """eps_hat = c(logsnr) z for data N(0, v), the best one times `factor`: everything is known in closed form."""

    def __init__(self, curve, variance, factor=1.0):
        self.process, self.variance, self.factor = Gaussian(curve), variance, factor

    def __call__(self, z, t):
        alpha, sigma = (c[:, None] for c in self.process.schedule(t))
        eps = self.factor * sigma / (alpha**2 * self.variance + sigma**2) * z
        return Estimate(z, t, self.process.schedule, eps=eps)

    def error(self, lam):
        """E (eps - eps_hat)^2: 1 - 2 f s^2 / V + f^2 s^2 / V, with s^2 / V = 1 / (1 + v snr)."""
        share = 1 / (1 + self.variance * math.exp(lam))
        return 1 - 2 * self.factor * share + self.factor**2 * share

    def bound(self, lo, hi):
        """L_T + 1/2 int error + L_0 a sample of one number, L_0 = 1/2 log(2 pi e exp(-hi))."""
        inner = integrate.quad(self.error, lo, hi, epsabs=1e-12)[0]
        return 0.5 * (self.variance * math.exp(lo) + inner + math.log(2 * math.pi * math.e) - hi)


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_the_rates_of_the_bound_at_its_ends(factor):
    """Against finite differences of the bound, for the best linear denoiser and for a wrong one."""
    model, (lo, hi), n, h = Linear(LogLinear(-9.0, 9.0), 1.7, factor), (-2.0, 3.0), 200_000, 1e-4
    x = math.sqrt(1.7) * noise.normal(5, range(n), (1,), noise.DATA, dtype=F64)
    low, high = end_rates(model, x, (lo, hi), 6, torch.arange(n))
    assert low == pytest.approx((model.bound(lo + h, hi) - model.bound(lo - h, hi)) / (2 * h), abs=0.01)
    assert high == pytest.approx((model.bound(lo, hi + h) - model.bound(lo, hi - h)) / (2 * h), abs=0.01)
    if factor == 1.0:
        assert low > 0 > high


def test_ends_go_where_the_bound_is_better():
    """An exact model has them leave on both sides; the bound falls, and levels and their density keep to them."""
    model, density = Linear(LogLinear(-9.0, 9.0), 1.0), Learned(width=8, lr=0.05, ends=(-1.0, 2.0))
    curve, before = model.process.schedule, model.bound(*density.span(model.process.schedule))
    for k in range(30):
        index = torch.arange(1000) + 1000 * k
        density.learn_ends(model, noise.normal(7, index, (1,), noise.DATA, dtype=F64), 8, index)
    lo, hi = density.span(curve)
    assert lo < -1.5 and hi > 2.3 and model.bound(lo, hi) < before - 0.05
    lam = density.logsnr(torch.tensor([0.0, 1.0], dtype=F64), curve)
    assert lam.tolist() == pytest.approx([hi, lo])
    outside = density.density(torch.tensor([lo - 0.1, lo, hi, hi + 0.1], dtype=F64), curve)
    assert (outside > 0).tolist() == [False, True, True, False]
    other = Learned(width=8, ends=(-1.0, 2.0))
    other.load({k: v.clone() for k, v in density.tensors().items()})
    assert other.span(curve) == (lo, hi)
    assert density.frozen(curve).logsnr_range == pytest.approx((lo, hi))


def test_mistakes_are_told():
    with pytest.raises(SfumatoError, match="increasing logsnr"):
        Learned(ends=(3.0, 1.0))
    with pytest.raises(SfumatoError, match="fixed ends"):
        Learned().learn_ends(Linear(Flow(), 1.0), torch.zeros(2, 1), 0, torch.arange(2))
    with pytest.raises(SfumatoError, match="draw the noise levels itself"):
        Learned().observe(torch.zeros(3), torch.ones(3))
    with pytest.raises(SfumatoError, match="another width"):
        Learned(width=4).load(Learned(width=5).tensors())
    with pytest.raises(SfumatoError, match="width"):
        Learned(width=0)
    with pytest.raises(SfumatoError, match="above 0"):
        Learned(lr=0.0)
    with pytest.raises(SfumatoError, match="needs a weight"):
        Denoising(Learned(), None, 0)
    with pytest.raises(SfumatoError, match="decreasing"):
        schedules.Tabulated((1.0, 2.0))
