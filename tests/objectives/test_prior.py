"""The prior term L_T against torch's own divergence, and what it does to samples."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.objectives.prior import prior_kl
from sfumato.process import Gaussian
from sfumato.schedules import EDM, VE, Cosine, Flow, FromBetas, LinearBeta, LogLinear, SubVP

F64 = torch.float64
CURVES = [LinearBeta(), LinearBeta(0.1, 3.0), SubVP(), VE(0.01, 5.0), EDM(), FromBetas.scaled_linear(), LogLinear()]


@pytest.mark.parametrize("std", [None, 1.0, 0.7])
@pytest.mark.parametrize("curve", CURVES, ids=lambda c: type(c).__name__)
def test_it_is_the_divergence_of_two_gaussians(curve, std):
    """Summed over the elements by torch.distributions, for the process's own prior and for a given one."""
    x = torch.linspace(-2, 3, 24, dtype=F64).reshape(4, 2, 3)
    alpha, sigma = curve(1.0)
    known = Normal(alpha * x, sigma.expand_as(x))
    prior = Normal(torch.zeros_like(x), (sigma if std is None else torch.tensor(std, dtype=F64)).expand_as(x))
    wanted = kl_divergence(known, prior).sum((1, 2))
    torch.testing.assert_close(prior_kl(Gaussian(curve), x, std), wanted, rtol=1e-9, atol=1e-14)


def test_the_published_form():
    """1/2 E[alpha^2 |x|^2 + d (sigma^2 - 1 - log sigma^2)] for a unit prior (2006.11239)."""
    curve, x = LinearBeta(0.1, 4.0), torch.tensor([[1.0, -2.0, 0.5]], dtype=F64)
    alpha, sigma = (float(c) for c in curve(1.0))
    wanted = 0.5 * (alpha**2 * 5.25 + 3 * (sigma**2 - 1 - math.log(sigma**2)))
    assert float(prior_kl(Gaussian(curve), x, std=1.0)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("curve", [Flow(), Cosine()], ids=lambda c: type(c).__name__)
def test_without_signal_nothing_is_lost(curve):
    assert float(prior_kl(Gaussian(curve), torch.full((1, 5), 7.0))) == 0


def test_it_splits_into_information_and_mismatch():
    """E KL(q(z_1|x) || prior) = I(x; z_1) + KL(p_1 || prior), both known of a Gaussian."""
    curve, mean, variance, n = VE(0.01, 3.0), 1.5, 2.0, 200_000
    law = GaussianMixture([1.0], [[mean]], variance)
    kl = prior_kl(Gaussian(curve), law.sample(n, seed=1))
    total = variance + 9.0
    information = 0.5 * math.log(total / 9.0)
    mismatch = 0.5 * ((total + mean**2) / 9.0 - 1 - math.log(total / 9.0))
    assert float(kl.mean()) == pytest.approx(information + mismatch, abs=4 * float(kl.std()) / n**0.5)


def test_gradients_reach_the_data_and_single_precision_is_taken():
    x = torch.ones(2, 3, requires_grad=True)
    curve = VE(0.01, 2.0)
    prior_kl(Gaussian(curve), x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2, 3), 0.25))


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_a_prior_without_a_width_is_refused(std):
    with pytest.raises(SfumatoError, match="positive and finite"):
        prior_kl(Gaussian(Flow()), torch.zeros(1, 2), std)
