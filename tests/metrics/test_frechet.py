"""FD of normal laws in closed form, by scipy's matrix root, and from samples."""

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.metrics import FD
from sfumato.metrics.frechet import distance

F64 = torch.float64


def laws(dim: int):
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, dim, dim))
    means = rng.normal(size=(2, dim))
    return means, roots @ roots.transpose(0, 2, 1)


def test_diagonal_laws_in_closed_form():
    a, b = torch.tensor([1.0, 4.0, 0.0], dtype=F64), torch.tensor([9.0, 4.0, 1.0], dtype=F64)
    m = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    expected = float(m.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert distance(m, a.diag(), torch.zeros(3, dtype=F64), b.diag()) == pytest.approx(expected, rel=1e-12)


def test_any_covariances_by_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    (m, k), (a, b) = laws(5)
    expected = ((m - k) ** 2).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert distance(*map(torch.from_numpy, (m, a, k, b))) == pytest.approx(float(expected), rel=1e-9)


def test_samples_come_near_their_laws():
    (m, k), (a, b) = laws(3)
    rng = np.random.default_rng(1)
    x, y = (torch.from_numpy(rng.multivariate_normal(mean, cov, 4000)) for mean, cov in ((m, a), (k, b)))
    found = FD()(x, y)
    true = distance(*map(torch.from_numpy, (m, a, k, b)))
    assert found.low < true < found.high and found.half < 0.1 * true
    assert FD()(x, x).value == pytest.approx(0, abs=1e-9)


def test_too_few_samples_are_refused_and_kid_is_offered():
    x = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    with pytest.raises(sf.SfumatoError, match="needs more than 20 samples, and there are 20: draw more .* take kid"):
        FD()(x, x)
    assert FD()(x[:, :5], x[:, :5]).value == pytest.approx(0, abs=1e-9)
