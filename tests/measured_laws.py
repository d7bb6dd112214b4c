"""Laws whose posterior is known: a Gaussian, a mixture, and the measurement of either by a matrix."""

import math

import torch

import sfumato as sf

PROCESS = sf.Gaussian(sf.schedules.Flow())
FIELD = sf.exact.GaussianField((1, 8, 8))
FIELD_COVARIANCE = FIELD.components.basis.matrix(FIELD.components.spectra[None])[0]


def dense(operator: sf.operators.Linear, shape: tuple[int, ...]) -> torch.Tensor:
    """The matrix (m, D) of a linear operator."""
    one = torch.eye(math.prod(shape), dtype=torch.float64)
    return operator(one.reshape(-1, *shape)).flatten(1).T


def gaussian_posterior(covariance, A, y, s):
    """(mean, covariance) of x given y = A x + s n, x ~ N(0, covariance)."""
    gain = covariance @ A.T @ torch.linalg.inv(A @ covariance @ A.T + s**2 * torch.eye(len(A)))
    return gain @ y, covariance - gain @ A @ covariance


def mixture(dim: int = 8, count: int = 4) -> sf.exact.GaussianMixture:
    draw = torch.Generator().manual_seed(3)
    means = torch.randn(count, dim, generator=draw, dtype=torch.float64)
    root = 0.35 / math.sqrt(dim) * torch.randn(count, dim, dim, generator=draw, dtype=torch.float64)
    covs = root @ root.mT + 0.02 * torch.eye(dim)
    return sf.exact.GaussianMixture([0.4, 0.3, 0.2, 0.1][:count], 0.9 * means / means.std(), covs)


def mixture_posterior(truth, A, y, s):
    """(the law of x given y = A x + s n, log p(y)) of a mixture."""
    S = A @ truth.covs @ A.T + s**2 * torch.eye(len(A))
    r = y - truth.means @ A.T
    square = torch.einsum("ki,kij,kj->k", r, torch.linalg.inv(S), r)
    log_weights = truth.log_weights - 0.5 * (square + torch.logdet(2 * math.pi * S))
    gain = truth.covs @ A.T @ torch.linalg.inv(S)
    covs = truth.covs - gain @ A @ truth.covs
    means = truth.means + torch.einsum("kij,kj->ki", gain, r)
    law = sf.exact.GaussianMixture(log_weights.softmax(0), means, (covs + covs.mT) / 2)
    return law, float(log_weights.logsumexp(0))
