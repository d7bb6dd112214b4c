"""Probabilistic principal components: x = W y + m + s n with y ~ N(0, I_L) and n ~ N(0, I_D).

    evidence   p(x)     = N(m, C),   C = W W^T + s^2 I
    posterior  p(y | x) = N(M^-1 W^T (x - m), s^2 M^-1),   M = W^T W + s^2 I
    ELBO       E_q[log p(x | y)] - KL(q || p(y)) = log p(x) - KL(q || p(y | x)),   q = N(mean, cov)

The maximum likelihood for data with sample covariance S = U diag(l) U^T is s^2 = mean of the D - L smallest l and
W = U_L (diag(l_L) - s^2 I)^(1/2). This is the linear-Gaussian VAE with its EM steps, where everything that a
variational autoencoder learns by networks is known exactly. Source: Tipping and Bishop 1999, "Probabilistic principal
component analysis", Eq. 3-14 and 25-28 (EM).
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.exact.mixture import GaussianMixture

_LATENT, _NOISE = 1, 2  # streams of random numbers under the role noise.DATA


@final
class PPCA:
    """The model above: loading W (D, L), mean m (D,), variance s^2 > 0. Everything in float64."""

    def __init__(self, loading: Tensor, mean: Tensor | float = 0.0, variance: float = 1.0) -> None:
        self.loading = torch.as_tensor(loading, dtype=torch.float64)
        if self.loading.ndim != 2 or not 1 <= self.loading.shape[1] <= self.loading.shape[0]:
            raise SfumatoError(f"A loading is (D, L) with 1 <= L <= D, not {tuple(self.loading.shape)}.")
        if not 0 < float(variance) < math.inf:
            raise SfumatoError(f"The variance of the noise must be above 0 and finite, not {float(variance):g}.")
        self.dim, self.latent = self.loading.shape
        self.mean = torch.as_tensor(mean, dtype=torch.float64).expand(self.dim)
        self.variance = float(variance)

    # -- the model -----------------------------------------------------------------------------------------------

    @property
    def covariance(self) -> Tensor:
        """C = W W^T + s^2 I, (D, D)."""
        return self.loading @ self.loading.T + self.variance * torch.eye(self.dim, dtype=torch.float64)

    @property
    def precision(self) -> Tensor:
        """M = W^T W + s^2 I, (L, L)."""
        return self.loading.T @ self.loading + self.variance * torch.eye(self.latent, dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) = log N(x; m, C) in nats, (B,)."""
        return _log_normal(self._centred(x), self.covariance)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p(y | x): means (B, L), and the covariance (L, L), which does not depend on x."""
        inverse = torch.linalg.inv(self.precision)
        return self._centred(x) @ self.loading @ inverse, self.variance * inverse

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """x, (n, D) float64. Row i is a function of (seed, i) alone."""
        index = torch.arange(n)
        y = noise.normal(seed, index, (self.latent,), noise.DATA, _LATENT, dtype=torch.float64)
        added = noise.normal(seed, index, (self.dim,), noise.DATA, _NOISE, dtype=torch.float64)
        return y @ self.loading.T + self.mean + math.sqrt(self.variance) * added

    def truth(self) -> GaussianMixture:
        """The same distribution of x as an exact diffusion model."""
        return GaussianMixture([1.0], self.mean[None], self.covariance[None])

    # -- the variational bound -----------------------------------------------------------------------------------

    def elbo(self, x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
        """E_q[log p(x | y)] - KL(q || N(0, I)) for q = N(mean, cov): mean (B, L), cov (L, L) or (B, L, L); (B,)."""
        cov = torch.as_tensor(cov, dtype=torch.float64)
        residual = (self._centred(x) - mean @ self.loading.T).square().sum(-1)
        spread = _trace(self.loading.T @ self.loading, cov)
        fit = -0.5 * (residual + spread) / self.variance - 0.5 * self.dim * math.log(2 * math.pi * self.variance)
        return fit - gaussian_kl(mean, cov, torch.zeros_like(mean), torch.eye(self.latent, dtype=torch.float64))

    def gap(self, x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
        """KL(q || p(y | x)) = log p(x) - `elbo`, (B,). Zero after an E step."""
        return gaussian_kl(mean, torch.as_tensor(cov, dtype=torch.float64), *self.posterior(x))

    # -- learning ------------------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, x: Tensor, latent: int) -> PPCA:
        """The maximum-likelihood model of x (N, D) over W, m and s^2, in closed form."""
        x = torch.as_tensor(x, dtype=torch.float64)
        if x.ndim != 2 or not 1 <= latent < x.shape[1]:
            raise SfumatoError(f"x must be (N, D) with D above the latent dimension {latent}, not {tuple(x.shape)}.")
        mean = x.mean(0)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        variance = float(values[: x.shape[1] - latent].mean())
        if variance <= 1e-12 * float(values[-1]):
            raise SfumatoError(f"The data lie in {latent} dimensions and their likelihood is unbounded: use fewer.")
        top = (values[-latent:] - variance).clamp_min(0).sqrt()
        return cls((vectors[:, -latent:] * top).flip(1), mean, variance)

    def em_step(self, x: Tensor) -> PPCA:
        """One step of expectation maximisation on x (N, D); it never decreases the likelihood of x.

        E: q = p(y | x), which makes the bound tight.  M: the W, m and s^2 that maximise it, with m the mean of x:
            W = (sum_i r_i E[y_i]^T) (sum_i E[y_i y_i^T])^-1,   r = x - m
            s^2 = mean_i,d (|r_i|^2 - 2 E[y_i]^T W^T r_i + tr E[y_i y_i^T] W^T W)
        """
        x = torch.as_tensor(x, dtype=torch.float64)
        mean = x.mean(0)
        # the optimal m does not depend on W and s^2, so the E step can already use it
        start = PPCA(self.loading, mean, self.variance)
        y, cov = start.posterior(x)
        r, second = x - mean, len(x) * cov + y.T @ y
        loading = torch.linalg.solve(second, y.T @ r).T
        total = r.square().sum() - 2 * (y @ loading.T * r).sum() + (second * (loading.T @ loading)).sum()
        return PPCA(loading, mean, float(total) / x.numel())

    def _centred(self, x: Tensor) -> Tensor:
        x = torch.as_tensor(x, dtype=torch.float64)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise SfumatoError(f"x must be (B, {self.dim}), not {tuple(x.shape)}.")
        return x - self.mean


def gaussian_kl(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> Tensor:
    """KL(N(mean, cov) || N(other_mean, other_cov)) in nats, (B,): means (B, L), covariances (L, L) or (B, L, L)."""
    inverse = torch.linalg.inv(other_cov)
    away = torch.einsum("bi,...ij,bj->b", mean - other_mean, inverse, mean - other_mean)
    volumes = torch.logdet(other_cov) - torch.logdet(cov)
    return 0.5 * (away + _trace(inverse, cov) - mean.shape[-1] + volumes)


def _trace(a: Tensor, b: Tensor) -> Tensor:
    return (a * b.mT).sum((-2, -1))


def _log_normal(r: Tensor, cov: Tensor) -> Tensor:
    """log N(r; 0, cov), (B,)."""
    root = torch.linalg.cholesky(cov)
    white = torch.linalg.solve_triangular(root, r.T, upper=False)
    volume = 2 * root.diagonal().log().sum() + r.shape[-1] * math.log(2 * math.pi)
    return -0.5 * (white.square().sum(0) + volume)
