"""Marginals beside scipy, spectra of known factors, autocorrelations of a known process."""

import math

import pytest
import torch

import sfumato as sf
from sfumato.metrics import Autocorrelation, Marginals, Spectrum
from sfumato.metrics.channels import kolmogorov, radial_power

F64 = torch.float64


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_kolmogorov_by_scipy_with_ties_too():
    stats = pytest.importorskip("scipy.stats")
    a, b = draws(2, 80), draws(2, 50, seed=1) + torch.tensor([[0.0], [0.5]], dtype=F64)
    for x, y in ((a, b), (a.round(), b.round())):
        expected = [stats.ks_2samp(u.numpy(), v.numpy()).statistic for u, v in zip(x, y, strict=True)]
        assert kolmogorov(x, y).tolist() == pytest.approx(expected, abs=1e-12)


def test_marginals_are_the_mean_over_channels():
    x, y = draws(100, 2), draws(100, 2, seed=1)
    x[:, 1] += 100
    assert Marginals()(x, y).value == pytest.approx((float(kolmogorov(x[:, :1].T, y[:, :1].T)) + 1) / 2)
    pictures = draws(30, 3, 5, 4)
    assert Marginals()(pictures, pictures).value == 0


def test_the_power_of_white_noise_is_flat_and_of_a_wave_at_its_radius():
    assert radial_power(draws(400, 1, 16, 16)).mean((0, 1)).tolist() == pytest.approx([1.0] * 8, abs=0.05)
    row = torch.cos(2 * math.pi * 3 * torch.arange(16, dtype=F64) / 16).expand(1, 1, 16, 16)
    power = radial_power(row)[0, 0]
    assert int(power.argmax()) == 2 and float(power.sum()) == pytest.approx(float(power[2]), rel=1e-9)


@pytest.mark.parametrize("shape", [(2, 16), (1, 8, 12), (1, 6, 6, 5)])
def test_twice_the_amplitude_is_four_times_the_power(shape):
    x = draws(40, *shape)
    found = Spectrum()(2 * x, x)
    assert found.value == pytest.approx(math.log(4), rel=1e-6)
    assert Spectrum()(x + 7, x).value == pytest.approx(0, abs=1e-6)


def test_channels_without_power_are_no_difference():
    x = draws(20, 2, 8)
    x[:, 1] = 0
    assert Spectrum()(x, x).value == 0 and Autocorrelation()(x, x).value == 0


def test_autocorrelation_of_an_autoregressive_process():
    """C(l) = rho^l, beside white noise, whose C(l) = 0."""
    rho, lags, length = 0.8, 5, 200
    noise = draws(400, 1, length)
    x = torch.empty_like(noise)
    x[..., 0] = noise[..., 0]
    for t in range(1, length):
        x[..., t] = rho * x[..., t - 1] + math.sqrt(1 - rho**2) * noise[..., t]
    found = Autocorrelation(lags)(x, draws(400, 1, length, seed=1))
    expected = math.sqrt(sum(rho ** (2 * lag) for lag in range(1, lags + 1)) / lags)
    assert found.value == pytest.approx(expected, abs=0.01) and found.low < expected < found.high


def test_points_have_no_spectrum():
    for measure in (Spectrum(), Autocorrelation()):
        with pytest.raises(sf.SfumatoError, match="needs samples with axes of at least 4 places"):
            measure(draws(20, 3), draws(20, 3))
