"""Time densities: SD3's three in closed form, any density, levels spread over a batch, all finite on every schedule."""

import math

import pytest
import torch
from scipy import integrate

from curves import CURVES
from sfumato import noise
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.objectives import denoising_loss, times, weights
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow, LogLinear, Shifted

F64 = torch.float64
U = torch.linspace(0.001, 0.999, 41, dtype=F64)


@pytest.mark.parametrize("s", [-1.0, -0.4, 0.0, 0.8, 1.29, 1.75])
def test_mode_sampling_is_the_published_map(s):
    """t = f(u; s), Eq. 20 of 2403.03206, in flow time, and its density 1 / |f'(u)| by automatic differentiation."""
    u = U.clone().requires_grad_()
    t = 1 - u - s * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
    (rate,) = torch.autograd.grad(t.sum(), u)
    t, law = t.detach(), times.Mode(s)
    lam = Flow().logsnr(t)
    torch.testing.assert_close(law.quantile(1 - U), lam, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(law.survival(lam), 1 - U, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(law.pdf(lam), t * (1 - t) / 2 / rate.abs(), rtol=1e-7, atol=1e-12)


def test_cosmap_is_the_published_map():
    """t = 1 - 1/(tan(pi u/2) + 1), whose density in t is 2/(pi - 2 pi t + 2 pi t^2): Eq. 21 of 2403.03206."""
    law = times.CosMap()
    t = 1 - 1 / (torch.tan(math.pi / 2 * U) + 1)
    lam = Flow().logsnr(t)
    torch.testing.assert_close(law.quantile(U), lam, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(law.survival(lam), U, rtol=1e-11, atol=1e-12)
    wanted = 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2) * t * (1 - t) / 2
    torch.testing.assert_close(law.pdf(lam), wanted, rtol=1e-12, atol=0)
    cosine = Cosine(0.0)  # whose t is u: uniform t of it draws the same levels, but for the cut at logsnr +-15
    start, stop = cosine.time(15.0), cosine.time(-15.0)
    torch.testing.assert_close(
        times.uniform().logsnr(U, cosine), law.quantile(start + U * (stop - start)), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.6), (-0.5, 1.0)])
def test_logit_normal_is_the_published_density(mean, std):
    """p(t) = exp(-(logit(t) - m)^2 / (2 s^2)) / (s sqrt(2 pi) t (1 - t)), Eq. 19: in logsnr N(-2m, 4s^2), to 9e-17."""
    t = torch.linspace(0.02, 0.98, 49, dtype=F64)
    logit = torch.log(t / (1 - t))
    published = torch.exp(-((logit - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * t * (1 - t))
    law = times.logit_normal(mean, std)
    gap = law.pdf(-2 * logit) - published * t * (1 - t) / 2
    assert float(gap.abs().max()) < 2e-16


@pytest.mark.parametrize("factor", [2.0, 3.0, 0.5])
def test_a_shift_of_resolution_moves_the_levels_once(factor):
    """Shifted(flow, f) under a density stated in logsnr draws the same levels; uniform t draws them 2 log f lower."""
    shifted = Shifted(Flow(), factor)
    for name in ("logit-normal", "mode", "cosmap", "edm"):
        law = times.NAMED[name]()
        torch.testing.assert_close(law.logsnr(U, shifted), law.logsnr(U, Flow()), rtol=1e-9, atol=1e-9)
    moved = times.uniform().logsnr(U, shifted) - times.uniform().logsnr(U, Flow())
    inner = (U > 0.05) & (U < 0.95)  # the cut at +-15 is felt at the ends
    assert float((moved + 2 * math.log(factor))[inner].abs().max()) < 0.05


@pytest.mark.parametrize("name", [n for n in times.NAMED if n not in ("uniform", "low-discrepancy")])
def test_stated_in_logsnr_a_density_does_not_know_the_schedule(name):
    """Where the range is the same, so are levels and density: flow, trigonometric and cosine curves, cut at +-15."""
    lam = torch.linspace(-14, 14, 29, dtype=F64)
    curves = [Flow(), CURVES["trig"], CURVES["cosine_s0"], LogLinear(-15.0, 15.0)]
    for curve in curves[1:]:
        law = times.NAMED[name]()
        torch.testing.assert_close(law.logsnr(U, curve), law.logsnr(U, curves[0]), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(law.density(lam, curve), law.density(lam, curves[0]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("curve", CURVES)
def test_every_density_and_weight_is_finite_on_every_schedule(curve):
    schedule = CURVES[curve]
    u = torch.cat((torch.tensor([1e-9, 1e-4], dtype=F64), U, torch.tensor([1 - 1e-4, 1 - 1e-9], dtype=F64)))
    lo, hi = times.limits(schedule)
    assert -15 <= lo < hi <= 15
    for name, make in times.NAMED.items():
        law = make()
        lam = law.logsnr(u, schedule)
        p = law.density(lam, schedule)
        assert bool((lam >= lo - 1e-9).all() and (lam <= hi + 1e-9).all() and (lam[1:] <= lam[:-1]).all()), name
        assert bool((p.isfinite() & (p > 0)).all()), name
        for weight, build in weights.NAMED.items():
            w = build()(lam)
            assert bool((w.isfinite() & (w > 0)).all()), (name, weight)


def bumps(lam):
    return torch.exp(-((lam - 3) ** 2)) + 0.3 * torch.exp(-((lam + 4) ** 2) / 8)


@pytest.mark.parametrize("cells", [1, 3, 50])
def test_a_table_draws_what_it_says(cells):
    """However coarse: the levels of u are the quantiles of the very density that the loss divides by."""
    law, curve = times.from_density(bumps, cells), VE(0.001, 300.0)
    lo, hi = times.limits(curve)
    lam = law.logsnr(U, curve)
    edges = torch.linspace(lo, hi, cells + 1, dtype=F64).tolist()

    def p(x):
        return float(law.density(torch.tensor([x], dtype=F64), curve))

    for u, level in zip(U[::10].tolist(), lam[::10].tolist(), strict=True):
        inside = [edge for edge in edges if level < edge < hi]
        stops = [level, *inside, hi]
        mass = sum(integrate.quad(p, a, b, limit=400)[0] for a, b in zip(stops, stops[1:], strict=False))
        assert mass == pytest.approx(u, rel=1e-6, abs=1e-7)


def test_a_fine_table_is_the_density():
    law, curve = times.from_density(lambda lam: 5 * bumps(lam)), Flow()
    lam = torch.linspace(-14, 14, 57, dtype=F64)
    total, _ = integrate.quad(lambda x: float(bumps(torch.tensor(x, dtype=F64))), -15, 15, limit=200)
    torch.testing.assert_close(law.density(lam, curve), bumps(lam) / total, rtol=1e-3, atol=1e-9)
    normal = times.NormalLogSNR(0.5, 2.0)
    same = times.from_density(normal.pdf)
    torch.testing.assert_close(same.logsnr(U, curve), normal.logsnr(U, curve), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: times.mode(2.0), "-1 <= s <= 1.75"),
        (lambda: times.logit_normal(0.0, 0.0), "std > 0"),
        (lambda: times.from_density(lambda lam: lam).logsnr(U, Flow()), "non-negative"),
        (lambda: times.from_density(lambda lam: 0 * lam).logsnr(U, Flow()), "not all zero"),
        (lambda: times.from_density(torch.ones_like, 0), "at least 1 cell"),
        (lambda: times.NormalLogSNR(200.0, 1.0).logsnr(U, Flow()), "no mass between"),
        (lambda: weights.p2(k=0.0), "positive number"),
        (lambda: weights.min_snr(-1.0), "positive number"),
    ],
)
def test_mistakes_are_said_in_one_sentence(make, words):
    with pytest.raises(SfumatoError, match=words):
        make()


# -- levels spread over a batch ------------------------------------------------------------------------------------


def test_spread_levels_are_the_same_however_the_batch_is_cut():
    """Micro-batches and ranks see the levels that the whole batch would, to the last bit."""
    law = times.low_discrepancy(times.logit_normal())
    index = torch.arange(1000, 1064)
    batch = law.levels(7, index, noise.TRAIN_TIME)
    for parts in (index.split(8), index.split(64 // 3), [index[0::2], index[1::2]]):
        rows = torch.cat([law.levels(7, part, noise.TRAIN_TIME) for part in parts])
        order = torch.cat([part - 1000 for part in parts])
        assert torch.equal(rows, batch[order])
    assert not torch.equal(batch, law.levels(8, index, noise.TRAIN_TIME))
    assert torch.equal(law.levels(7, [1003], noise.TRAIN_TIME), batch[3:4])


@pytest.mark.parametrize("count", [16, 64, 250])
def test_any_stretch_of_a_batch_is_spread_evenly(count):
    """The largest gap between neighbours is at most (1 + golden ratio)^2 / n; independent draws leave log(n) / n."""
    law = times.low_discrepancy()
    for start in (0, 12345, 10**9):
        u = law.levels(3, torch.arange(start, start + count), noise.TRAIN_TIME).sort().values
        gaps = torch.cat((u[:1], u.diff(), 1 - u[-1:]))
        assert float(gaps.max()) < 2.7 / count
        assert 0 < float(u[0]) and float(u[-1]) < 1


def test_each_level_alone_is_uniform():
    """Over seeds: Kolmogorov's distance of 800 draws of one sample's level stays below its 0.1 % point."""
    law = times.low_discrepancy()
    u = torch.cat([law.levels(seed, [5], noise.TRAIN_TIME) for seed in range(800)]).sort().values
    place = torch.arange(1, 801, dtype=F64) / 800
    assert float((u - place).abs().max()) < 1.95 / math.sqrt(800)


def test_spread_levels_lower_the_variance_and_not_the_mean():
    """x_hat = 0 of unit data: E = 1/2 int w snr; batches of 64 say so with a variance 25 times less."""

    class Zero:
        process = Gaussian(Flow())

        def __call__(self, z, t):
            return Estimate(z, t, self.process.schedule, x=torch.zeros_like(z))

    x, weight = torch.ones(64, 1, dtype=F64), weights.edm(0.5, 0.3, 0.8)
    found = {}
    for name, law in (
        ("independent", times.uniform_logsnr()),
        ("spread", times.low_discrepancy(times.uniform_logsnr())),
    ):
        means = [
            denoising_loss(
                Zero(), x, weight=weight, times=law, seed=5, index=torch.arange(64 * k, 64 * k + 64),
                eps=torch.zeros_like(x),
            ).mean()
            for k in range(150)
        ]  # fmt: skip
        found[name] = torch.stack(means)
    exact, _ = integrate.quad(
        lambda lam: 0.5 * float(weight(torch.tensor(lam, dtype=F64))) * math.exp(lam), -15, 15, limit=200
    )
    assert float(found["spread"].std()) < float(found["independent"].std()) / 5
    for means in found.values():
        assert float(means.mean()) == pytest.approx(exact, abs=4 * float(means.std()) / math.sqrt(150) + 1e-4 * exact)


def test_spread_levels_pass_on_what_their_base_learns():
    base = times.adaptive()
    law = times.low_discrepancy(base)
    lam = law.logsnr(U, Flow())
    law.observe(lam, torch.ones_like(lam))
    assert law.moves and law.tensors().keys() == base.tensors().keys() and float(base.sums[0].sum()) == len(U)
    other = times.low_discrepancy(times.adaptive())
    other.load(law.tensors())
    torch.testing.assert_close(other.density(lam, Flow()), law.density(lam, Flow()))
