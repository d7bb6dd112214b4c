"""The discrete-time bound: each term against quadrature, the limit of many levels, the losses that train by it."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from likelihood_models import Plain, spec_of
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.model import Denoiser
from sfumato.nets import MLP
from sfumato.objectives import denoising_loss, times, weights
from sfumato.objectives.chain import data_nats, step_nats
from sfumato.objectives.decoder import Cells, cell_nats
from sfumato.objectives.history import LossHistory
from sfumato.objectives.hybrid import hybrid_loss, level_nats, vlb_loss
from sfumato.objectives.vlb import vlb
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow, LinearBeta, SubVP

F64 = torch.float64
CURVES = [LinearBeta(), SubVP(), VE(0.01, 50.0), Flow(), Cosine()]


def gaussian():
    return GaussianMixture([1.0], [[0.4]], 0.5)


def mixture():
    return GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.1])


def number(value):
    return torch.tensor(value, dtype=F64)


# -- one term ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", CURVES, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.7), (0.3, 0.29), (1.0, 0.5)])
def test_a_step_is_the_divergence_of_two_normal_laws(curve, variance, t, s):
    """2006.11239, Eq. 5, by quadrature of q log(q / p)."""
    process, x, eps, guess, v = Gaussian(curve), 0.7, -0.4, 0.1, 0.3
    z = process.corrupt(number([[x]]), t, number([[eps]]))
    belief = Estimate(z, t, curve, x=number([[guess]]), variance_share=number([[v]]))
    found = float(step_nats(process, belief, number([[x]]), number([[eps]]), number(s), variance))
    law = process.posterior(s, t)
    tilde, mean, other = float(law.std) ** 2, float(law.z * z + law.x * x), float(law.z * z + law.x * guess)
    (a_t, s_t), (a_s, s_s) = ([float(c) for c in curve(u)] for u in (t, s))
    beta = (s_t**2 - (a_t / a_s * s_s) ** 2) * (a_s**2 + s_s**2) / (a_t**2 + s_t**2)
    sigma = {"posterior": tilde, "beta": beta, "learned": math.exp(v * math.log(beta) + (1 - v) * math.log(tilde))}
    q, p = stats.norm(mean, tilde**0.5), stats.norm(other, sigma[variance] ** 0.5)
    wanted, _ = integrate.quad(
        lambda u: q.pdf(u) * (q.logpdf(u) - p.logpdf(u)), mean - 12 * tilde**0.5, mean + 12 * tilde**0.5, epsabs=1e-12
    )
    assert found == pytest.approx(wanted, rel=1e-7, abs=1e-9)


def cells(low=0, high=255, mean=110.0, std=64.0):
    return Cells(*(number([v]) for v in (0.5 / std, (low - mean) / std, (high - mean) / std)))


@pytest.mark.parametrize("log_std", [-6.0, -3.0, 0.0, 2.0])
@pytest.mark.parametrize("mean", [-1.7, 0.013, 2.26, 5.0])
def test_the_decoder_is_a_law_on_all_values(mean, log_std):
    """2006.11239, Eq. 13: the probabilities of 0..255 sum to 1, whatever the mean and the width."""
    x = ((torch.arange(256, dtype=F64) - 110) / 64)[:, None]
    nats = cell_nats(x, torch.full_like(x, mean), torch.full_like(x, log_std), cells())
    assert float(nats.neg().exp().sum()) == pytest.approx(1, abs=1e-12)
    edges = (np.arange(257) - 110.5) / 64
    edges[0], edges[-1] = -np.inf, np.inf
    wanted = np.diff(stats.norm.cdf(edges, mean, math.exp(log_std)))
    seen = wanted > 1e-10
    np.testing.assert_allclose(nats.neg().exp().numpy()[seen], wanted[seen], rtol=1e-4)


def test_the_decoder_is_finite_in_single_precision():
    """Cells finer than floats, and means far from all of them: neither loss nor gradient is infinite."""
    fine = Cells(*(torch.full((1,), v) for v in (1e-9, -math.inf, math.inf)))
    mean = torch.linspace(-50, 50, 101)[:, None].requires_grad_()
    nats = cell_nats(torch.ones(101, 1), mean, torch.full((101, 1), -3.0), fine)
    nats.sum().backward()
    assert bool(nats.isfinite().all() and mean.grad.isfinite().all())


def test_the_decoder_is_finite_with_its_gradient_far_from_the_value():
    x = ((torch.tensor([0.0, 100.0, 255.0], dtype=F64) - 110) / 64)[:, None]
    mean, log_std = (torch.full((3, 1), v, dtype=F64, requires_grad=True) for v in (3.0, -5.0))
    nats = cell_nats(x, mean, log_std, cells())
    nats.sum().backward()
    assert bool(nats.isfinite().all() and mean.grad.isfinite().all() and log_std.grad.isfinite().all())
    # far off, -log P is the quadratic of the nearest edge, up to the logarithm of Mills' ratio
    nats = nats.detach()
    assert float(nats[0]) == pytest.approx(0.5 * ((3 - (0.5 - 110) / 64) * math.exp(5)) ** 2, rel=1e-4)


# -- the sum -------------------------------------------------------------------------------------------------------


def expected(law, process, levels, x, variance):
    """E over the noise of every term for x (B, 1), by Gauss and Hermite: (B, T), L_0 first."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(80)
    eps, mass = number(nodes), number(mass / mass.sum())
    many, noise = x.repeat_interleave(len(eps), 0), eps.repeat(len(x))[:, None]
    model, found = law.denoiser(process), []
    for k, t in enumerate(levels):
        belief = model(process.corrupt(many, t, noise), float(t))
        if k == 0:
            nats = data_nats(process, belief, many, noise, levels[1], variance, None)
        else:
            nats = step_nats(process, belief, many, noise, levels[k - 1], variance)
        found.append(nats.reshape(len(x), -1) @ mass)
    return torch.stack(found, 1)


def even_logsnr(curve, count, end=9.0):
    """Levels evenly spaced in logsnr between fixed ends, and t = 1."""
    inner = curve.time(torch.linspace(end, -end, count - 1, dtype=F64))
    return torch.cat((inner, torch.ones(1, dtype=F64)))


def even_time(curve, count):
    return torch.arange(1, count + 1, dtype=F64) / count


@pytest.mark.parametrize("curve", [Cosine(), Flow()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize(("variance", "grid"), [("posterior", even_logsnr), ("beta", even_logsnr), ("beta", even_time)])
def test_the_bound_of_a_gaussian_tends_to_its_log_density(curve, variance, grid):
    """A5: the gap falls like 1 / T, and of every single x nothing is left in the limit."""
    law, process, x = gaussian(), Gaussian(curve), number([[0.4], [1.3], [-0.2]])
    gaps = []
    for count in (100, 200, 400):
        levels = grid(curve, count)
        gaps.append(expected(law, process, levels, x, variance).sum(1) + law.log_prob(x))
    mean = [float(gap.mean()) for gap in gaps]
    assert 0 < mean[2] < mean[1] < mean[0] < 0.5
    assert 1.85 < mean[0] / mean[1] < 2.15 and 1.9 < mean[1] / mean[2] < 2.1
    extrapolated = 2 * gaps[2] - gaps[1]
    torch.testing.assert_close(extrapolated, torch.zeros(3, dtype=F64), rtol=0, atol=6e-3)


def integral(law, function, points=4001, reach=8.0):
    """E f(x) over a law of one number, by the trapezoidal rule."""
    x = torch.linspace(-reach, reach, points, dtype=F64)[:, None]
    return float((law.log_prob(x).exp() * function(x)).sum() * 2 * reach / (points - 1))


@pytest.mark.parametrize("count", [10, 80])
def test_the_gap_of_a_mixture_is_the_computed_one(count):
    """With the exact denoiser E L_k = 1/2 (snr_s - snr_t) mmse(t); what the sum has over the entropy is the gap."""
    law, process = mixture(), Gaussian(Flow())
    levels = even_logsnr(process.schedule, count)
    x = torch.linspace(-5, 5, 601, dtype=F64)[:, None]
    found = law.log_prob(x).exp() @ expected(law, process, levels, x, "posterior").sum(1) * (10 / 600)
    snr, mmse = process.schedule.logsnr(levels).exp(), []
    for t in levels:
        a, s = (float(v) for v in process.schedule(t))
        z = torch.linspace(-9, 9, 6001, dtype=F64)[:, None]
        p = law.log_prob(z, alpha=a, sigma=s).exp()
        mmse.append(float((p * law.total_variance(z, alpha=a, sigma=s)).sum() * 18 / 6000))
    (a, s), mse = process.schedule(levels[0]), number(mmse)
    width = float(s**2 / (a**2 + s**2))
    wanted = 0.5 * float(((snr[:-1] - snr[1:]) * mse[1:]).sum())
    wanted += 0.5 * math.log(2 * math.pi * width) + mmse[0] / (2 * width)
    assert float(found) == pytest.approx(wanted, abs=2e-6)
    entropy = integral(law, lambda v: -law.log_prob(v))
    assert {10: 5.0, 80: 0.2}[count] < wanted - entropy < {10: 12.0, 80: 0.6}[count]


def test_vlb_is_the_mean_of_its_draws():
    law, process = mixture(), Gaussian(LinearBeta())
    model, x = law.denoiser(process), number([[0.5], [-1.2]])
    n = 3000
    found = vlb(model, x.repeat_interleave(n, 0), steps=6, variance="beta")
    levels = found.times
    wanted = expected(law, process, levels, x, "beta")
    terms = torch.cat((found.data[:, None], found.steps), 1).reshape(2, n, -1)
    error = terms.std(1) / math.sqrt(n)
    assert bool(((terms.mean(1) - wanted).abs() < 4.5 * error + 1e-9).all())
    alpha, sigma = process.schedule(1.0)
    torch.testing.assert_close(found.prior.reshape(2, n)[:, 0], 0.5 * (alpha / sigma * x[:, 0]) ** 2)
    assert found.steps.shape == (2 * n, 5) and float(found.total.mean()) > 0


def test_draws_do_not_depend_on_the_batch():
    model, x = mixture().denoiser(Gaussian(Cosine())), mixture().sample(7)
    whole, parts = vlb(model, x, steps=4), vlb(model, x, steps=4, batch=3)
    torch.testing.assert_close(whole.total, parts.total, rtol=1e-12, atol=0)
    some = vlb(model, x[2:5], steps=4, index=[2, 3, 4])
    torch.testing.assert_close(some.steps, whole.steps[2:5], rtol=1e-12, atol=0)


def points(values, weights):
    """The exact model of whole numbers: a point for each, with the data spec that a trained model carries."""
    x = torch.tensor(values).repeat_interleave(torch.tensor(weights))[:, None].to(torch.uint8)
    spec = spec_of(x)
    mean, std = spec.normaliser.mean[0], spec.normaliser.std[0]
    law = GaussianMixture(weights, (torch.tensor(values, dtype=F64)[:, None] - mean) / std, 0.0)
    return Plain(law.denoiser(Gaussian(Flow())), spec), x


def test_the_bound_of_whole_numbers_tends_to_their_probability():
    """-log P(x) with nothing left over, in bits: the exact model of four values knows what the cells hold."""
    values, weights = [0, 100, 101, 255], [10, 40, 30, 20]
    model, _ = points(values, weights)
    exact = -torch.log(torch.tensor(weights, dtype=F64) / 100)
    n, gaps = 1500, []
    x = torch.tensor(values, dtype=torch.uint8)[:, None].repeat_interleave(n, 0)
    for count in (40, 160):
        levels = even_logsnr(model.process.schedule, count, 13.0)
        found = vlb(model, x, times=levels)
        error = found.total.reshape(4, n).std(1) / math.sqrt(n)
        gaps.append(found.total.reshape(4, n).mean(1) - exact)
        assert bool((gaps[-1] > -4.5 * error - 1e-9).all())
    torch.testing.assert_close(found.bits_per_dim, found.total / math.log(2))
    mean = [float((gap * exact.neg().exp()).sum()) for gap in gaps]
    assert mean[1] < 0.15 and 3 < mean[0] / mean[1] < 5.5
    real = vlb(model, x[:5], steps=10, decoder="density")
    with pytest.raises(SfumatoError, match="integer data"):
        _ = real.bits_per_dim


def test_units_are_the_users():
    """log p(1000 x) = log p(x) - D log 1000."""
    law = mixture()
    x = law.sample(400, seed=1)
    totals = []
    for scale in (1.0, 1000.0):
        spec = spec_of(scale * x)
        mean, std = spec.normaliser.mean[0] / scale, spec.normaliser.std[0] / scale
        inner = GaussianMixture(law.weights, (law.means - mean) / std, law.covs / std**2)
        totals.append(vlb(Plain(inner.denoiser(Gaussian(Flow())), spec), scale * x, steps=5).total)
    torch.testing.assert_close(totals[1] - totals[0], torch.full((400,), math.log(1000), dtype=F64), atol=1e-4, rtol=0)


def test_mistakes_are_named():
    law = mixture()
    model, x = law.denoiser(Gaussian(Flow())), law.sample(3)
    for kwargs, words in (
        ({"steps": 0}, "at least 1"),
        ({"times": [0.5, 0.4, 1.0]}, "increase"),
        ({"times": [0.0, 1.0]}, "increase"),
        ({"times": [0.5]}, "increase"),
        ({"variance": "lerned"}, "did you mean 'learned'"),
        ({"variance": "learned"}, "no learned variance"),
        ({"decoder": "discretised"}, "discrete"),
        ({"decoder": "x"}, "decoder"),
    ):
        with pytest.raises(SfumatoError, match=words):
            vlb(model, x, **{"steps": 3, **kwargs})


# -- losses --------------------------------------------------------------------------------------------------------


def learner(seed=0, dim=2):
    torch.manual_seed(seed)
    net = MLP(dim, width=16, depth=1, outputs=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Denoiser(net, Gaussian(Cosine()), variance="learned").double()


def gradients(loss, denoiser):
    denoiser.zero_grad()
    loss.sum().backward()
    weight = denoiser.net.output.weight.grad
    return weight[:2].clone(), weight[2:].clone()


def test_the_hybrid_loss_trains_the_mean_by_the_simple_loss_alone():
    """2102.09672, Sec. 3.1: the mean of L_vlb is stopped, the variance learns by it."""
    denoiser, x = learner(), torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    t = torch.arange(1, 40, 2, dtype=F64) / 50  # levels of the grid, where drawn time and level are one
    for weight in (None, weights.sigmoid(-1.0)):
        mean, spread = gradients(hybrid_loss(denoiser, x, t, weight, steps=50, share=0.2), denoiser)
        simple, nothing = gradients(denoising_loss(denoiser, x, t, weight), denoiser)
        _, bound = gradients(vlb_loss(denoiser, x, t, steps=50, variance="learned"), denoiser)
        torch.testing.assert_close(mean, simple, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(spread, 0.1 * bound, rtol=1e-10, atol=1e-12)
        assert float(nothing.abs().max()) == 0 < float(spread.abs().min())
    free, _ = gradients(hybrid_loss(denoiser, x, t, None, steps=50, share=0.2, stop_mean=False), denoiser)
    assert float((free - gradients(denoising_loss(denoiser, x, t), denoiser)[0]).abs().max()) > 1e-3


def filled(levels, seed=3):
    """A loss history with values of its own for every level."""
    history, g = LossHistory(levels, length=2), torch.Generator().manual_seed(seed)
    history.values = torch.rand(levels, 2, generator=g, dtype=F64) + 0.1
    history.counts += 2
    return history


@pytest.mark.parametrize("count", [4, 20])
def test_one_drawn_level_is_the_bound_in_expectation(count):
    """E T L_k / p(t) is the bound less L_T, whatever p."""
    law, curve, n = mixture(), LinearBeta(), 40_000
    process = Gaussian(curve)
    model = law.denoiser(process)
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    x, eps = torch.full((n, 1), 0.5, dtype=F64), torch.full((n, 1), 0.3, dtype=F64)
    found = {}
    for name, density in (("uniform", LossHistory(count)), ("history", filled(count))):
        t = curve.time(density.logsnr(u, curve))
        found[name] = float(vlb_loss(model, x, t, density, eps=eps, steps=count).mean())
    assert found["history"] == pytest.approx(found["uniform"], rel=4e-3)
    total = 0.0
    for k in range(1, count + 1):
        t, one, same = number(k / count), x[:1], eps[:1]
        belief = model(process.corrupt(one, t, same), float(t))
        if k == 1:
            total += float(data_nats(process, belief, one, same, 2 * t, "posterior", None))
        else:
            total += float(step_nats(process, belief, one, same, number((k - 1) / count), "posterior"))
    assert found["uniform"] == pytest.approx(total, rel=1e-3)


def test_a_batch_mixes_levels_of_both_kinds():
    """The decoder at the first level, a step for the others, each in its place."""
    denoiser, x = learner(), torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    eps, t = torch.flip(x, (0,)), torch.tensor([0.5, 0.1, 0.1, 0.9, 1.0, 0.2], dtype=F64)
    belief = denoiser(denoiser.process.corrupt(x, t, eps), t)
    together = level_nats(denoiser.process, belief, x, eps, 10, "learned", None)
    for i in range(6):
        one = denoiser(denoiser.process.corrupt(x[i : i + 1], t[i : i + 1], eps[i : i + 1]), t[i : i + 1])
        alone = level_nats(denoiser.process, one, x[i : i + 1], eps[i : i + 1], 10, "learned", None)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_importance_sampling_follows_the_root_mean_square_of_the_last_ten():
    """2102.09672, Eq. 18."""
    history, curve = LossHistory(3, floor=0.001), Flow()
    u = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    for step in range(12):
        lam = history.logsnr(u, curve)
        assert history.full == (step >= 10)
        if step < 10:
            torch.testing.assert_close(curve.time(lam), u, rtol=1e-9, atol=1e-12)
        nats = torch.tensor([4.0, 2.0, 1.0], dtype=F64) * (1 + step)
        level = (curve.time(lam) * 3).ceil().long() - 1
        history.observe(lam, nats[level] / (3 * history.mass[level]))  # L / p(t)
    size = torch.stack([history.values[k].square().mean().sqrt() for k in range(3)])
    torch.testing.assert_close(history.mass, 0.999 * size / size.sum() + 0.001 / 3)
    assert float(history.values[0, 0]) in (44.0, 48.0)  # the newest of the first level, as it was, not over p
    other = LossHistory(3)
    other.load(history.tensors())
    torch.testing.assert_close(other.mass, history.mass)
    with pytest.raises(SfumatoError, match="checkpoint"):
        LossHistory(4).load(history.tensors())
    with pytest.raises(SfumatoError, match="draw"):
        LossHistory(4).observe(u, u)


def test_the_history_lowers_the_variance_of_the_bound():
    law, curve, count = mixture(), Cosine(), 50
    model, density = law.denoiser(Gaussian(curve)), LossHistory(50)
    even, n = LossHistory(50), 2000
    for round_ in range(3):
        index = torch.arange(n) + n * round_
        x = law.sample(n, seed=5, first=n * round_)
        lam = density.logsnr(density.levels(0, index, 3), curve)
        density.observe(lam, vlb_loss(model, x, curve.time(lam), density, index=index, steps=count))
    assert density.full
    spread = {}
    for name, law_of_t in (("even", even), ("history", density)):
        x, index = law.sample(8000, seed=6), torch.arange(8000)
        lam = law_of_t.logsnr(law_of_t.levels(1, index, 3), curve)
        losses = vlb_loss(model, x, curve.time(lam), law_of_t, index=index, steps=count)
        spread[name] = float(losses.var())
    assert spread["history"] < spread["even"] / 2


def test_levels_of_the_training_densities_are_unbiased_too():
    """Uniform t and uniform logsnr see the same bound, but for the part of the first level above logsnr 15."""
    law, curve, n, count = mixture(), SubVP(), 40_000, 5
    model, u = law.denoiser(Gaussian(curve)), (torch.arange(n, dtype=F64) + 0.5) / n
    x, eps = torch.full((n, 1), 0.5, dtype=F64), torch.full((n, 1), 0.3, dtype=F64)
    found = []
    for density in (times.uniform(), times.uniform_logsnr()):
        t = curve.time(density.logsnr(u, curve))
        found.append(float(vlb_loss(model, x, t, density, eps=eps, steps=count).mean()))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_the_hybrid_loss_needs_a_learned_variance():
    plain = Denoiser(MLP(2, width=8, depth=1), Gaussian(Cosine()))
    with pytest.raises(SfumatoError, match="learned"):
        hybrid_loss(plain, torch.zeros(2, 2))
