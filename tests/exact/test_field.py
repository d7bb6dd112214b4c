"""Stationary Gaussian fields: the spectrum, and the same law written as one Gaussian with a full covariance."""

import math

import pytest
import torch

from sfumato.exact import GaussianField, GaussianMixture

F64 = torch.float64


def close(a, b, tol):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def covariance_by_cosines(field):
    """C_xy = sum_f P(f) cos(2 pi f.(x - y)) / N on the torus, from the spectrum alone (Wiener and Khinchin)."""
    h, w = field.spectrum.shape
    frequency = torch.cartesian_prod(torch.arange(h, dtype=F64) / h, torch.arange(w, dtype=F64) / w)
    place = torch.cartesian_prod(torch.arange(h), torch.arange(w)).double()
    phase = 2 * math.pi * (place[:, None] - place) @ frequency.T
    return phase.cos() @ field.spectrum.flatten() / (h * w)


@pytest.mark.parametrize("shape", [(4, 6), (5, 3), (2, 3, 4)])
def test_field_is_a_gaussian_with_the_covariance_of_its_spectrum(shape, process):
    mean = torch.linspace(-1, 1, math.prod(shape), dtype=F64).reshape(shape)
    field = GaussianField(shape, power=1.7, mean=mean, std=0.8)
    cov = covariance_by_cosines(GaussianField(shape[-2:], power=1.7, std=0.8))
    cov = torch.block_diag(*[cov] * math.prod(shape[:-2]))
    law = GaussianMixture([1.0], mean.reshape(1, -1), cov[None], shape=shape)
    close(cov.diagonal(), torch.full((math.prod(shape),), 0.64, dtype=F64), 1e-12)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=F64)
    z = law.sample(3, seed=1, process=process, t=t)
    at = {"process": process, "t": t}
    for name in ("log_prob", "score", "variance", "covariance", "responsibilities"):
        close(getattr(field, name)(z, **at), getattr(law, name)(z, **at), 1e-10)
    a, b = field.denoiser(process)(z, t), law.denoiser(process)(z, t)
    close(a.x, b.x, 1e-11)
    close(a.eps, b.eps, 1e-11)
    close(field.flow(z, t, 0.0, process), law.flow(z, t, 0.0, process), 1e-11)
    close(field.log_prob(z), law.log_prob(z), 1e-9)


def test_score_is_the_gradient_of_log_prob():
    field = GaussianField((6, 5), power=2.0)
    z = field.sample(3, seed=2, alpha=0.6, sigma=0.8).requires_grad_()
    (gradient,) = torch.autograd.grad(field.log_prob(z, alpha=0.6, sigma=0.8).sum(), z)
    close(field.score(z.detach(), alpha=0.6, sigma=0.8), gradient, 1e-11)


@pytest.mark.parametrize("power", [0.0, 2.0, 3.0])
def test_samples_have_the_power_law(power):
    """F1: the slope of the mean spectrum of samples against frequency on double logarithmic axes is -power."""
    field = GaussianField((64, 64), power=power, mean=3.0, std=2.0)
    x = field.sample(100, seed=3)
    spectrum, f = field.power_spectrum(x).mean(0).flatten(), field.frequency.flatten()
    keep = f > 0
    lx, ly = f[keep].log(), spectrum[keep].log()
    slope = ((lx - lx.mean()) * (ly - ly.mean())).sum() / (lx - lx.mean()).square().sum()
    assert float(slope) == pytest.approx(-power, abs=0.02)
    assert float((x - 3).square().mean()) == pytest.approx(4.0, rel=0.2)
    ratio = spectrum / field.spectrum.flatten()
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02) and float(ratio.std()) < 0.2


def test_noised_samples_have_the_noised_spectrum():
    field = GaussianField((32, 32), power=2.0)
    z = field.sample(200, seed=4, alpha=0.8, sigma=0.6)
    ratio = field.power_spectrum(z).mean(0) / field.noised_spectrum(0.8, 0.6)
    assert float(ratio.mean()) == pytest.approx(1, abs=0.02) and float((ratio - 1).abs().max()) < 0.6


def test_one_dimension_and_volumes():
    for shape, space in (((3, 16), 1), ((2, 4, 4, 4), 3)):
        field = GaussianField(shape, power=1.0, space=space)
        assert field.frequency.shape == shape[1:] and field.sample(2, seed=5).shape == (2, *shape)
        x = field.sample(300, seed=6)
        ratio = field.power_spectrum(x).mean((0, 1)) / field.spectrum
        assert float(ratio.mean()) == pytest.approx(1, abs=0.06)
        assert float(field.spectrum.mean()) == pytest.approx(1, abs=1e-12)
