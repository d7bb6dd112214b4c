"""A measured log-likelihood: intervals, bits, units of whole numbers."""

import math

import pytest
import torch
from scipy import stats

from likelihood_models import Plain, spec_of
from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.intervals import student_quantile
from sfumato.likelihood import Measured, bits_per_dim, log_prob
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine

F64 = torch.float64


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 12, 31])
@pytest.mark.parametrize("p", [0.6, 0.9, 0.975, 0.9995])
def test_quantile_of_student(freedom, p):
    assert student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9)


def measured(estimates):
    """A Measured of given estimates (B, k) of single probes."""
    k, value = estimates.shape[1], estimates.mean(1)
    apart, zero = estimates - value[:, None], torch.zeros_like(value)
    third = k / ((k - 1) * (k - 2)) * apart.pow(3).sum(1)
    return Measured(value, estimates.std(1) / math.sqrt(k), third, zero, zero, zero, "test", 3, k, 8)


@pytest.mark.parametrize("k", [4, 8, 16])
@pytest.mark.parametrize("directions", [2, 4, 16, 200])
def test_interval_covers_sums_of_squares(k, directions):
    """What a probe says of a Jacobian of few directions is skew; the interval keeps its level."""
    g = torch.Generator().manual_seed(directions)
    estimates = torch.randn(6000, k, directions, generator=g, dtype=F64).square().sum(2) - directions
    low, high = measured(estimates).interval()
    covered = float(((low <= 0) & (high >= 0)).double().mean())
    assert 0.94 < covered < (0.985 if directions == 2 else 0.965)
    inner = measured(estimates).interval(0.5)
    assert bool((inner[0] > low).all() and (inner[1] < high).all())


def test_interval_of_symmetric_estimates_is_students():
    g = torch.Generator().manual_seed(0)
    estimates = torch.randn(4000, 5, generator=g, dtype=F64)
    both = measured(torch.cat((estimates, -estimates)))
    low, high = both.interval(0.9)
    half = stats.t.ppf(0.95, 4) * both.stderr
    torch.testing.assert_close((low, high), (both.value - half, both.value + half), rtol=1e-9, atol=1e-12)


def test_uniform_pixels_have_eight_bits():
    """C8: 256 equally likely values are 8 bits, whatever the number of pixels."""
    for dim in (1, 784, 3 * 32 * 32):
        log_p = torch.full((3,), -dim * math.log(256), dtype=F64)
        torch.testing.assert_close(bits_per_dim(log_p, dim), torch.full((3,), 8.0, dtype=F64), rtol=1e-15, atol=0)


class Box:
    """The optimal denoiser of numbers that are uniform on [-half, half]."""

    def __init__(self, half, shape, process):
        self.half, self.shape, self.process = half, shape, process

    def __call__(self, z, t):
        alpha, sigma = (float(v) for v in self.process.schedule(t))
        m, s = z / alpha, sigma / alpha  # x | z is N(m, s^2) cut to the box
        low, high = (-self.half - m) / s, (self.half - m) / s
        # by the logarithms of the tails, from the side where they are not 1
        flip = torch.where(low > 0, -1.0, 1.0)
        low, high = torch.where(flip < 0, -high, low), torch.where(flip < 0, -low, high)
        a, b = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
        mass = b + torch.log(-torch.expm1((a - b).clamp_max(-1e-300)))
        density = torch.exp(-0.5 * low.square() - mass) - torch.exp(-0.5 * high.square() - mass)
        return Estimate(z, t, self.process.schedule, x=m + flip * s * density / math.sqrt(2 * math.pi))


def test_uniform_pixels_through_a_model():
    """C8: pixels 0..255, dequantised by u ~ U(-1/2, 1/2), under the exact model of U(-1/2, 255 + 1/2): 8 bits/dim."""
    pixels = torch.arange(256, dtype=torch.uint8).repeat(2).reshape(512, 1, 1, 1)
    spec = spec_of(pixels)
    half = 128 / spec.normaliser.std[0]
    model = Plain(Box(half, (1, 1, 1), Gaussian(VE(1e-4, 100.0))), spec)
    assert abs(spec.normaliser.mean[0] - 127.5) < 1e-9
    found = log_prob(model, pixels, trace="exact", sigma_min=1e-4, steps=256)
    assert float(found.bits_per_dim.median()) == pytest.approx(8, abs=1e-4)
    assert float(found.bits_per_dim.mean()) == pytest.approx(8, abs=2e-3)
    assert found.dequantisation == "uniform"


def test_whole_numbers_of_a_gaussian():
    """C8: the bound is -E_u log2 N(x + u), in closed form, and lies above the bits of the discretised law."""
    g = torch.Generator().manual_seed(1)
    x = (20 + 3 * torch.randn(4000, 1, generator=g, dtype=F64)).round().to(torch.int64)
    spec = spec_of(x)
    model = Plain(GaussianMixture([1.0], [[0.0]], 1.0).denoiser(Gaussian(Cosine())), spec)
    found = log_prob(model, x, steps=32)
    mean, std = spec.normaliser.mean[0], spec.normaliser.std[0]
    centred = (x[:, 0].double() - mean) / std
    bound = (0.5 * (centred.square() + 1 / (12 * std**2)) + math.log(std * math.sqrt(2 * math.pi))) / math.log(2)
    spread = float((found.bits_per_dim - bound).std()) / math.sqrt(len(x))
    assert abs(float((found.bits_per_dim - bound).mean())) < 4 * spread
    cells = torch.distributions.Normal(torch.tensor(0.0, dtype=F64), 1.0)
    edges = (x[:, 0].double()[:, None] + torch.tensor([-0.5, 0.5]) - mean) / std
    exact = -torch.log2(cells.cdf(edges[:, 1]) - cells.cdf(edges[:, 0]))
    assert float((bound - exact).min()) > 0


def test_dequantisation_belongs_to_the_sample():
    x = torch.arange(40).reshape(20, 2) % 7
    model = Plain(GaussianMixture([1.0], [[0.0, 0.0]], 1.0).denoiser(Gaussian(Cosine())), spec_of(x))
    whole = log_prob(model, x, steps=8)
    again = log_prob(model, x, steps=8, batch=7)
    torch.testing.assert_close(again.value, whole.value, rtol=0, atol=1e-9)
    part = log_prob(model, x[5:15], steps=8, index=range(5, 15))
    torch.testing.assert_close(part.value, whole.value[5:15], rtol=0, atol=1e-9)
    assert bool((log_prob(model, x, steps=8, seed=1).value != whole.value).all())


def test_bits_are_refused_for_real_numbers():
    law = GaussianMixture([1.0], [[0.0, 0.0]], 1.0)
    with pytest.raises(SfumatoError, match="discrete"):
        _ = log_prob(law.denoiser(Gaussian(Cosine())), law.sample(2), steps=2).bits_per_dim
