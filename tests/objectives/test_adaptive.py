"""Densities that follow the loss: laws, unbiased while they move, flat contributions, variance against the optimum."""

import math

import pytest
import torch
from scipy import integrate

from sfumato import nets, noise
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.model import Denoiser
from sfumato.objectives import denoising_loss, times, weights
from sfumato.objectives.adaptive import AdaptiveDensity, adaptive, variance_optimal
from sfumato.objectives.losses import Denoising
from sfumato.process import Gaussian
from sfumato.schedules import EDM, Cosine, Flow, LinearBeta, LogLinear
from sfumato.training import State, TrainConfig, fit

F64 = torch.float64
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [[[0.2, 0.1], [0.1, 0.3]], [[0.4, 0.0], [0.0, 0.05]]])
CURVES = [Flow(), Cosine(), LinearBeta(), EDM(), LogLinear(-7.03, 9.0)]
CASES = {
    "cosine, elbo": (Cosine(), weights.elbo()),
    "log-linear, elbo": (LogLinear(-8.0, 8.0), weights.elbo()),
    "log-linear, sigmoid": (LogLinear(-8.0, 8.0), weights.sigmoid()),
}


class Optimal:
    """The exact denoiser in the place of a network."""

    def __init__(self, law, curve):
        self.law, self.process = law, Gaussian(curve)

    def __call__(self, z, t):
        return self.law.denoiser(self.process)(z, t)


def drawn(density, curve, seed, index):
    return density.logsnr(noise.uniform(seed, index, (), noise.TRAIN_TIME, dtype=F64), curve)


def learn(density, curve, weight, law=MIXTURE, batches=60, size=300, seed=1):
    """Feed it batches of an exact denoiser's losses; returns the mean loss of each batch."""
    denoiser, means = Optimal(law, curve), []
    for k in range(batches):
        index = torch.arange(k * size, (k + 1) * size)
        lam = drawn(density, curve, seed, index)
        x = law.sample(size, seed=seed, first=k * size)
        losses = denoising_loss(denoiser, x, curve.time(lam), weight, density, seed, index)
        density.observe(lam, losses)
        means.append(float(losses.mean()))
    return torch.tensor(means, dtype=F64)


@pytest.mark.parametrize("moment", [1, 2])
@pytest.mark.parametrize("curve", CURVES, ids=lambda c: type(c).__name__)
def test_quantile_and_density_are_one_law_whatever_was_learned(curve, moment):
    """u is the mass above logsnr(u), exactly, before and after learning; p > 0 on all of the range."""
    density = AdaptiveDensity(moment, bins=37)
    lo, hi = times.limits(curve)
    for _ in range(2):
        u = torch.tensor([0.0, 1e-9, 0.1, 0.35, 0.5, 0.8, 0.99, 1.0], dtype=F64)
        lam = density.logsnr(u, curve)
        assert float(lam[0]) == pytest.approx(hi) and float(lam[-1]) == pytest.approx(lo)
        knots = (
            torch.cat((lam, density.edges[(density.edges > lo) & (density.edges < hi)])).sort(descending=True).values
        )
        middle = (knots[:-1] + knots[1:]) / 2
        mass = density.density(middle, curve) * (knots[:-1] - knots[1:])  # p is constant between the knots
        above = torch.cat((torch.zeros(1, dtype=F64), mass.cumsum(0)))
        at = torch.searchsorted(-knots, -lam)
        torch.testing.assert_close(above[at], u, rtol=0, atol=1e-12)
        every = density.density(torch.linspace(lo, hi, 999, dtype=F64), curve)
        assert float(every.min()) >= density.floor / (hi - lo) * (1 - 1e-12)
        learn(density, curve, weights.edm(0.5), batches=5)


def test_before_any_sample_it_is_uniform_in_logsnr():
    lam = torch.linspace(-6.9, 8.9, 50, dtype=F64)
    curve = LogLinear(-7.0, 9.0)
    torch.testing.assert_close(AdaptiveDensity().density(lam, curve), times.uniform_logsnr().density(lam, curve))


@pytest.mark.parametrize("make", [adaptive, variance_optimal])
def test_unbiased_while_it_moves(make):
    """Unit Gaussian data: E|eps - eps_hat|^2 = sigmoid(logsnr) a dimension, so that the loss is an integral."""
    curve, weight, law = LogLinear(-9.0, 6.0), weights.sigmoid(1.0), GaussianMixture([1.0], [[0.0, 0.0, 0.0]], 1.0)
    means = learn(make(half_life=500.0), curve, weight, law, batches=120, size=200, seed=8)
    wanted, _ = integrate.quad(lambda v: 1.5 / (1 + math.exp(v - 1)) / (1 + math.exp(-v)), -9, 6, epsabs=1e-12)
    error = float(means.std()) / len(means) ** 0.5
    assert float(means.mean()) == pytest.approx(wanted, abs=3.5 * error) and error < 0.02 * wanted


def test_it_takes_out_the_density_that_its_batch_was_drawn_under():
    """A loss that is l(logsnr) without chance comes back as l in every bin, however far p has moved."""
    curve, density = LogLinear(-10.0, 10.0), AdaptiveDensity(bins=30, half_life=200.0, floor=0.2)
    for k in range(40):
        lam = drawn(density, curve, 0, torch.arange(100 * k, 100 * k + 100))
        place = ((15 - lam) // 1).long()  # bins of width 1
        density.observe(lam, (place + 1.0) / density.density(lam, curve))
    count, first, second = density.sums
    seen = count > 0
    level = torch.arange(1, 31, dtype=F64)
    assert int(seen.sum()) == 20
    torch.testing.assert_close((first / count)[seen], level[seen])
    torch.testing.assert_close((second / count)[seen], level[seen] ** 2)


@pytest.mark.parametrize("case", CASES)
def test_variance_is_cut_to_near_the_optimum(case):
    """At least 2x below uniform t, and within 15 % of E_p (l/p)^2 at its least, (int (E l^2)^(1/2) dlogsnr)^2."""
    (curve, weight), n = CASES[case], 20_000
    denoiser, x = Optimal(MIXTURE, curve), MIXTURE.sample(n, seed=31)
    found = {}
    for name, density in {"uniform": times.uniform(), "mean": adaptive(), "optimal": variance_optimal()}.items():
        if name != "uniform":
            learn(density, curve, weight)
        found[name] = denoising_loss(denoiser, x, weight=weight, times=density, seed=32)
    assert float(found["uniform"].var() / found["mean"].var()) > 2
    assert float(found["uniform"].var() / found["optimal"].var()) > 2
    flat = times.uniform_logsnr()
    lam = flat.logsnr((torch.arange(n, dtype=F64) + 0.5) / n, curve)
    p = flat.density(lam, curve)
    squares = (denoising_loss(denoiser, x, curve.time(lam), weight, flat, seed=33) * p).square().reshape(80, -1)
    least = float((squares.mean(1).sqrt() / p.reshape(80, -1).mean(1)).mean()) ** 2
    assert float(found["optimal"].square().mean()) == pytest.approx(least, rel=0.15)


@pytest.mark.parametrize("case", CASES)
def test_contributions_are_flat(case):
    """Ten parts of the density of equal mass contribute equally to the loss where p follows its mean."""
    (curve, weight), n = CASES[case], 20_000
    density = adaptive(floor=0.005)
    learn(density, curve, weight, batches=80)
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    x = MIXTURE.sample(n, seed=41)

    def shares(law):
        losses = denoising_loss(Optimal(MIXTURE, curve), x, curve.time(law.logsnr(u, curve)), weight, law, seed=42)
        parts = losses.reshape(10, -1).mean(1)
        return parts / parts.mean()

    assert float((shares(density) - 1).abs().max()) < 0.15
    assert float((shares(times.uniform()) - 1).abs().max()) > 0.5


def test_bins_of_parts_add_up_to_those_of_the_batch():
    """What micro-batches and processes collect is summed, and then taken in once."""
    curve, lam = Cosine(), None
    whole, parts = AdaptiveDensity(2), AdaptiveDensity(2)
    for density in (whole, parts):
        learn(density, curve, weights.sigmoid(), batches=3)
        lam = drawn(density, curve, 5, torch.arange(90))
    losses = torch.linspace(0.1, 3, 90)
    whole.observe(lam, losses)
    split = zip(lam.split(30), losses.split(30), strict=True)
    parts.absorb(sum(parts.collect(*part) for part in split))
    torch.testing.assert_close(whole.sums, parts.sums, rtol=1e-13, atol=0)


def test_old_losses_are_forgotten_by_half_life():
    curve, density = LogLinear(-5.0, 5.0), AdaptiveDensity(bins=1, half_life=100.0)
    for level in (4.0, 1.0):
        lam = density.logsnr(torch.full((100,), 0.5, dtype=F64), curve)
        density.observe(lam, level / density.density(lam, curve))
    assert float(density.sums[1] / density.sums[0]) == pytest.approx((0.5 * 4 + 1) / 1.5)


@pytest.mark.parametrize("name", ["adaptive", "variance-optimal"])
def test_a_run_in_two_parts_is_the_run_in_one(name):
    """To the last bit, the density with it: weights, bins and validation."""
    data = noise.normal(3, range(60), (5,), noise.DATA)
    config = TrainConfig(steps=12, batch=7, precision="float32")

    def state():
        torch.manual_seed(0)
        denoiser = Denoiser(nets.MLP(5, width=16, depth=2), Gaussian(Flow()), "velocity")
        return State(denoiser, config, Denoising(times.NAMED[name](), weights.sigmoid(), 0))

    def go(state):
        return fit(state.denoiser, data, config, None, (data[:20], None), state)

    whole, first, second = state(), state(), state()
    end = [p.validation for p in go(whole)][-1]
    steps = go(first)
    for _ in range(5):
        next(steps)
    second.load({k: v.clone() for k, v in first.tensors().items()}, first.counters())
    again = [p.validation for p in go(second)][-1]
    assert again.to_dict() == end.to_dict() and "valid_ema" in end.to_dict()
    ours, theirs = whole.tensors(), second.tensors()
    assert "goal.sums" in ours and float(ours["goal.sums"][0].sum()) > 80
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_mistakes_are_told():
    with pytest.raises(SfumatoError, match="needs a weight"):
        Denoising(adaptive(), None, 0)
    with pytest.raises(SfumatoError, match="needs a weight"):
        Denoising(times.low_discrepancy(adaptive()), None, 0)
    with pytest.raises(SfumatoError, match="draw the noise levels itself"):
        AdaptiveDensity().observe(torch.zeros(3), torch.ones(3))
    with pytest.raises(SfumatoError, match="100 bins"):
        AdaptiveDensity().load(AdaptiveDensity(bins=10).tensors())
    for wrong in ({"moment": 3}, {"bins": 0}, {"floor": 0.0}, {"half_life": -1.0}, {"smooth": 0.0}):
        with pytest.raises(SfumatoError, match="adaptive density"):
            AdaptiveDensity(**wrong)
