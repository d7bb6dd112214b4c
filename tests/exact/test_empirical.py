"""The optimal denoiser of a finite data set is a mixture of points."""

import math

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.exact import Empirical, GaussianMixture, empirical

F64 = torch.float64


def close(a, b, tol):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


@pytest.fixture
def data():
    return torch.randn(23, 4, dtype=F64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("entries", [1 << 22, 50])
def test_equals_a_mixture_of_points(data, process, entries, monkeypatch):
    """In one piece and in chunks of two rows."""
    monkeypatch.setattr(empirical, "_ENTRIES", entries)
    weights, labels = torch.linspace(1, 2, 23, dtype=F64), torch.arange(23) % 3
    law = Empirical(data, labels=labels, weights=weights)
    twin = GaussianMixture(weights, data, 0.0, labels=labels)
    t = torch.linspace(0.05, 1, 9, dtype=F64)
    z = twin.sample(9, seed=2, process=process, t=t)
    assert torch.equal(law.sample(9, seed=2, process=process, t=t), z)
    for label in (None, torch.arange(9) % 4 - 1):
        at = {"process": process, "t": t, "label": label}
        for name in ("responsibilities", "variance", "covariance", "classify"):
            close(getattr(law, name)(z, **at), getattr(twin, name)(z, **at), 1e-11)
        a, b = law.moments(z, **at), twin.moments(z, **at)
        for name in ("x", "eps", "score", "log_prob"):
            close(getattr(a, name), getattr(b, name), 1e-10)
    close(law.flow(z[:3], t[:3], 0.3, process), twin.flow(z[:3], t[:3], 0.3, process), 1e-9)


def test_score_is_the_gradient_of_log_prob(data, process):
    law, t = Empirical(data), torch.linspace(0.2, 1, 7, dtype=F64)
    z = law.sample(7, seed=3, process=process, t=t).requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(z, process=process, t=t).sum(), z)
    close(law.score(z.detach(), process=process, t=t), gradient, 1e-9)


def test_ends_are_finite_and_exact(data):
    law = Empirical(data)
    z = torch.cat((data[:3], data[:1] + 1e-3))
    clean = law.moments(z, alpha=1.0, sigma=0.0)
    close(clean.x, data[[0, 1, 2, 0]], 0)
    assert not clean.eps.any() and clean.score.isfinite().all()
    assert clean.log_prob.tolist() == [math.inf] * 3 + [-math.inf]
    assert not law.variance(z, alpha=1.0, sigma=0.0).any()
    noise = law.moments(z, alpha=0.0, sigma=2.0)
    close(noise.x, data.mean(0).expand(4, 4), 1e-14)
    close(noise.eps, z / 2, 1e-14)
    close(law.covariance(z, alpha=0.0, sigma=2.0), torch.cov(data.T, correction=0).expand(4, 4, 4), 1e-13)
    # far below the distance of the samples the belief is the nearest one, and eps is what was added
    eps = torch.tensor([[1.0, -0.5, 0.2, 0.3]], dtype=F64)
    small = law.moments(data[:1] + 1e-9 * eps, alpha=1.0, sigma=1e-9)
    close(small.x, data[:1], 1e-15)
    close(small.eps, eps, 1e-6)
    for sigma in (1e-300, 1e-160, 1e-20, 1e20):
        assert all(v.isfinite().all() for v in law.moments(z, alpha=1.0, sigma=sigma)[:2])


def test_pictures_of_classes(process):
    """Any dtype and shape in, fields out; a class with one sample is that sample at every level."""
    images = torch.arange(3 * 2 * 2 * 2, dtype=torch.uint8).reshape(3, 2, 2, 2)
    law = Empirical(images, labels=torch.tensor([0, 0, 1]))
    z, label = law.labelled(5, seed=4, process=process, t=0.7)
    assert z.shape == (5, 2, 2, 2) and set(label.tolist()) <= {0, 1}
    belief = law.denoiser(process)(z, 0.7, label=1)
    close(belief.x, images[2:].double().expand(5, 2, 2, 2), 1e-13)
    a, s = (float(c) for c in process.schedule(0.7))
    b, r = (float(c) for c in process.schedule(0.2))
    x = images[2].double()
    expected = b * x + r / s * (z - a * x)
    close(law.flow(z, 0.7, 0.2, process, label=1), expected, 1e-12)


def test_posterior_variance_is_the_error_of_the_denoiser(data):
    """E|x - E[x|z]|^2 over fresh draws is the mean of tr Cov(x|z)."""
    law, n, at = Empirical(data), 20_000, {"alpha": 0.7, "sigma": 0.6}
    z, owner = Empirical(data, labels=torch.arange(23)).labelled(n, seed=5, **at)
    error = (law.moments(z, **at).x - data[owner]).square().sum(-1)
    torch.testing.assert_close(law.total_variance(z[:9], **at), law.variance(z[:9], **at).sum(1), rtol=1e-12, atol=0)
    mean, stderr = law.mmse(2000, seed=6, **at)
    assert abs(float(error.mean()) - mean) < 5 * (stderr + float(error.std()) / math.sqrt(n))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((torch.full((2, 2), math.nan),), "finite"),
        ((torch.zeros(0, 2),), "at least 1"),
        ((torch.zeros(3, 2), torch.zeros(2)), "labels"),
        ((torch.zeros(3, 2), None, torch.tensor([1.0, -1.0, 1.0])), "non-negative"),
        ((torch.zeros(3, 2), None, torch.ones(2)), "weights must be 3"),
    ],
)
def test_mistakes_are_said(arguments, says):
    with pytest.raises(SfumatoError, match=says):
        Empirical(*arguments)
