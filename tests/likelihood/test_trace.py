"""Estimates of the trace by probes: unbiased, of the variance that theory gives, a function of seed and sample."""

import pytest
import torch

from likelihood_models import Plain, ranks
from sfumato.exact import GaussianMixture
from sfumato.likelihood import log_prob
from sfumato.process import Gaussian
from sfumato.schedules import Cosine, Flow

F64 = torch.float64
PROBES = ("rademacher", "gaussian", "deflated")


def log_map(law, start):
    """log dw_1/dw_0 of the flow of one Gaussian from sigma = start to pure noise, w = z / (s alpha + sigma)."""
    values, vectors = torch.linalg.eigh(law.covs[0])
    logs = torch.log(values.mean().sqrt() + start) - 0.5 * torch.log(values + start**2)
    return vectors @ torch.diag(logs) @ vectors.T


@pytest.mark.parametrize("name", ["rademacher", "gaussian"])
def test_variance_is_that_of_theory(name):
    """2 sum_{i != j} L_ij^2 for signs and 2 |L|_F^2 for normal numbers, L the logarithm of the flow's linear map."""
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=F64))[0]
    cov = turn @ torch.diag(torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=F64)) @ turn.T
    law = GaussianMixture([1.0], torch.zeros(1, 4), cov[None])
    x = law.sample(1, seed=1).expand(3000, -1)
    found = log_prob(law.denoiser(Gaussian(Flow())), x, trace=name, probes=2, steps=32, sigma_min=1e-3)
    form = log_map(law, 1e-3)
    true = 2 * float(form.square().sum() - (form.diagonal().square().sum() if name == "rademacher" else 0.0))
    assert float(found.stderr.square().mean() * 2) == pytest.approx(true, rel=0.1)
    assert float(found.value.var()) == pytest.approx(true / 2, rel=0.12)
    assert float(found.value.mean() - law.log_prob(x[:1])) == pytest.approx(0, abs=4 * (true / 6000) ** 0.5)


@pytest.mark.first(1)
@pytest.mark.parametrize("name", PROBES)
def test_the_interval_covers_the_truth(name):
    """Of 1,000 points 93 to 97 % lie within the stated 95 % interval."""
    law = ranks(dim=16, count=4, rank=2)
    x, model = law.sample(1000, seed=1), law.denoiser(Gaussian(Cosine()))
    found = log_prob(model, x, trace=name, probes=8, steps=48)
    low, high = found.interval()
    true = law.log_prob(x)
    assert 0.93 <= float(((low <= true) & (true <= high)).double().mean()) <= 0.97


def test_deflation_leaves_little_to_the_probes():
    law = ranks(dim=32, count=4, rank=2)
    x, model = law.sample(100, seed=1), law.denoiser(Gaussian(Cosine()))
    plain, deflated = (log_prob(model, x, trace=name, steps=32) for name in ("rademacher", "deflated"))
    exact = log_prob(model, x, steps=32).value
    assert float(deflated.stderr.mean()) < float(plain.stderr.mean()) / 3
    assert float((deflated.value - exact).square().mean()) < float((plain.value - exact).square().mean()) / 9


@pytest.mark.first(1)
@pytest.mark.parametrize("name", PROBES)
def test_no_estimate_is_biased(name):
    """The mean over many seeds is the exact trace's, within 4 standard errors."""
    law = ranks(dim=6, count=3, rank=1)
    x, model = law.sample(1, seed=2), law.denoiser(Gaussian(Flow()))
    many = log_prob(model, x.expand(4000, -1), trace=name, probes=3, steps=16)
    exact = log_prob(model, x, steps=16).value
    assert abs(float(many.value.mean() - exact)) < 4 * float(many.value.std()) / 4000**0.5
    assert float(many.value.std()) > 0.01


@pytest.mark.parametrize("name", ["exact", *PROBES])
def test_a_figure_belongs_to_its_sample(name):
    """Not to the batch nor to the order in which samples come."""
    law = ranks(dim=5, count=2, rank=1)
    x, model = law.sample(9, seed=3), Plain(law.denoiser(Gaussian(Cosine())))
    whole = log_prob(model, x, trace=name, probes=3, steps=8, seed=5)
    parts = log_prob(model, x, trace=name, probes=3, steps=8, seed=5, batch=2)
    mixed = log_prob(model, x[[7, 2]], trace=name, probes=3, steps=8, seed=5, index=[7, 2])
    for figure in ("value", "stderr", "third", "solver_error", "prior_mismatch", "truncation"):
        torch.testing.assert_close(getattr(parts, figure), getattr(whole, figure), rtol=0, atol=1e-9)
        torch.testing.assert_close(getattr(mixed, figure), getattr(whole, figure)[[7, 2]], rtol=0, atol=1e-9)
    if name != "exact":
        assert bool((log_prob(model, x, trace=name, probes=3, steps=8, seed=6).value != whole.value).all())
