"""Probabilistic PCA: a latent-variable model of which every quantity is known, and its EM (A2)."""

import math

import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from sfumato import Gaussian, SfumatoError, schedules
from sfumato.exact import PPCA
from sfumato.exact.ppca import gaussian_kl


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def model() -> PPCA:
    return PPCA(normal(5, 2), normal(5, seed=1), 0.3)


def test_log_prob_is_that_of_scipy(model: PPCA) -> None:
    x = model.sample(20)
    wanted = stats.multivariate_normal(model.mean.numpy(), model.covariance.numpy()).logpdf(x.numpy())
    assert torch.allclose(model.log_prob(x), torch.from_numpy(wanted), rtol=0, atol=1e-11)


def test_posterior_is_bayes_rule_in_the_joint_law(model: PPCA) -> None:
    """Conditioning the joint Gaussian of (x, y), whose cross-covariance is W."""
    x = model.sample(6)
    gain = model.loading.T @ torch.linalg.inv(model.covariance)
    mean, cov = model.posterior(x)
    assert torch.allclose(mean, (x - model.mean) @ gain.T, rtol=0, atol=1e-12)
    assert torch.allclose(cov, torch.eye(2, dtype=torch.float64) - gain @ model.loading, rtol=0, atol=1e-12)


def test_after_the_e_step_the_bound_is_the_evidence(model: PPCA) -> None:
    x = model.sample(50)
    assert torch.allclose(model.elbo(x, *model.posterior(x)), model.log_prob(x), rtol=0, atol=1e-10)
    assert float(model.gap(x, *model.posterior(x)).abs().max()) < 1e-12


def test_the_gap_is_the_kl_to_the_posterior(model: PPCA) -> None:
    x, mean = model.sample(50), normal(50, 2, seed=3)
    root = normal(50, 2, 2, seed=4)
    cov = root @ root.mT + 0.1 * torch.eye(2, dtype=torch.float64)
    gap = model.log_prob(x) - model.elbo(x, mean, cov)
    assert torch.allclose(gap, model.gap(x, mean, cov), rtol=1e-12, atol=1e-10) and float(gap.min()) > 0


def test_the_kl_is_that_of_torch() -> None:
    a, b = normal(3, 3, seed=5), normal(3, 3, seed=6)
    covs = [m @ m.T + torch.eye(3, dtype=torch.float64) for m in (a, b)]
    means = [normal(7, 3, seed=7), normal(7, 3, seed=8)]
    laws = [torch.distributions.MultivariateNormal(m, c) for m, c in zip(means, covs, strict=True)]
    wanted = torch.distributions.kl_divergence(*laws)
    assert torch.allclose(gaussian_kl(means[0], covs[0], means[1], covs[1]), wanted, rtol=1e-12)


def test_the_closed_form_is_the_maximum() -> None:
    """No direction of (W, m, log s^2) raises the likelihood: its gradient is zero; a search from afar ends there."""
    x = PPCA(normal(4, 2), 1.0, 0.5).sample(200)
    best = PPCA.fit(x, 2)

    def loss(theta: Tensor) -> Tensor:
        loading, mean, variance = theta[:8].reshape(4, 2), theta[8:12], theta[12].exp()
        cov = loading @ loading.T + variance * torch.eye(4, dtype=torch.float64)
        return -torch.distributions.MultivariateNormal(mean, cov).log_prob(x).mean()

    log_variance = torch.tensor([math.log(best.variance)], dtype=torch.float64)
    at = torch.cat([best.loading.flatten(), best.mean, log_variance]).requires_grad_()
    value = loss(at)
    assert float(torch.autograd.grad(value, at)[0].abs().max()) < 1e-10
    assert float(value.detach()) == pytest.approx(-float(best.log_prob(x).mean()), abs=1e-12)

    def function(theta: object) -> tuple[float, object]:
        point = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        found = loss(point)
        return float(found.detach()), torch.autograd.grad(found, point)[0].numpy()

    found = optimize.minimize(function, normal(13, seed=9).numpy(), jac=True, method="BFGS", options={"gtol": 1e-9})
    assert found.fun == pytest.approx(float(value.detach()), abs=1e-9)


def test_em_never_lowers_the_likelihood_and_reaches_the_closed_form() -> None:
    x = PPCA(normal(6, 2), normal(6, seed=1), 0.2).sample(300)
    best = float(PPCA.fit(x, 2).log_prob(x).mean())
    model, values = PPCA(0.1 * normal(6, 2, seed=2), 0.0, 2.0), []
    for _ in range(400):
        values.append(float(model.log_prob(x).mean()))
        model = model.em_step(x)
    rises = torch.tensor(values).diff()
    assert float(rises.min()) > -1e-12 and values[0] < best - 1
    assert float(model.log_prob(x).mean()) == pytest.approx(best, abs=1e-10)
    assert torch.allclose(model.covariance, PPCA.fit(x, 2).covariance, rtol=0, atol=1e-5)


def test_an_m_step_maximises_the_expected_joint_likelihood() -> None:
    """The gradient of E_{p_old(y|x)} log p_new(x, y) vanishes at the new parameters."""
    x, old = PPCA(normal(4, 2), 0.0, 0.4).sample(100), PPCA(normal(4, 2, seed=3), 0.0, 1.0)
    old = PPCA(old.loading, x.mean(0), old.variance)
    y, cov = old.posterior(x)
    new = old.em_step(x)
    loading = new.loading.clone().requires_grad_()
    log_variance = torch.tensor(math.log(new.variance), dtype=torch.float64, requires_grad=True)
    square = (x - new.mean - y @ loading.T).square().sum() + len(x) * torch.trace(loading @ cov @ loading.T)
    value = -0.5 * square / log_variance.exp() - 0.5 * x.numel() * log_variance
    gradients = torch.autograd.grad(value, [loading, log_variance])
    assert max(float(g.abs().max()) for g in gradients) < 1e-9 * x.numel()


def test_samples_have_its_moments_and_it_is_an_exact_model_of_diffusion(model: PPCA) -> None:
    x = model.sample(40_000, seed=2)
    assert torch.allclose(x.mean(0), model.mean, atol=0.05)
    assert torch.allclose(torch.cov(x.T, correction=0), model.covariance, atol=0.1)
    truth, process = model.truth(), Gaussian(schedules.Cosine())
    assert torch.allclose(truth.log_prob(x[:9]), model.log_prob(x[:9]), rtol=0, atol=1e-10)
    # noised, it is principal components again: W -> alpha W, s^2 -> alpha^2 s^2 + sigma^2
    alpha, sigma = (float(v) for v in process.schedule(0.4))
    noised = PPCA(alpha * model.loading, alpha * model.mean, alpha**2 * model.variance + sigma**2)
    at = truth.log_prob(x[:9], process=process, t=0.4)
    assert torch.allclose(at, noised.log_prob(x[:9]), rtol=0, atol=1e-10)


def test_mistakes_are_said(model: PPCA) -> None:
    with pytest.raises(SfumatoError, match="1 <= L <= D"):
        PPCA(normal(2, 3))
    with pytest.raises(SfumatoError, match="above 0"):
        PPCA(normal(3, 2), variance=0.0)
    with pytest.raises(SfumatoError, match="must be \\(B, 5\\)"):
        model.log_prob(normal(3, 4))
    with pytest.raises(SfumatoError, match="unbounded"):
        PPCA.fit(normal(50, 2) @ normal(2, 5, seed=1), 2)
