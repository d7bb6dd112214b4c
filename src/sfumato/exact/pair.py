"""Pairs (x, x') of a mixture of joint Gaussians, with every belief of the processes of pairs in closed form.

    (x, x') ~ sum_k w_k N(m_k, C_k),   y = A (x, x') + n,   n ~ N(0, R)
    E[(x, x') | y, k] = m_k + C_k A^T S_k^-1 (y - A m_k),   S_k = A C_k A^T + R,   p(k | y) ~ w_k N(y; A m_k, S_k)

Couplings of normal laws N(., A) at x and N(., B) at x' have Cov(x, x') = C:

    optimal transport    C = A^1/2 (A^1/2 B A^1/2)^1/2 A^-1/2                                        (Bures)
    Schroedinger bridge  C = (A^1/2 D A^-1/2 - s^2 I) / 2,   D = (4 A^1/2 B A^1/2 + s^4 I)^1/2,   s = noise

Source of the last: Bunne et al. 2023 (2202.05722), Theorem 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato.belief import Between, Estimate
from sfumato.conditions import Given
from sfumato.errors import SfumatoError
from sfumato.exact.mixture import GaussianMixture
from sfumato.process import Bridge, Interpolant, Paired, RectifiedFlow
from sfumato.schedule import Time, as_time


class _Posterior(NamedTuple):
    """E[x | y], E[x' | y] and E[n | y] (B, O), log p(y) (B,)."""

    x: Tensor
    source: Tensor
    noise: Tensor
    log_prob: Tensor


@final
class Pair:
    """A coupling of two laws in R^D: weights (K,), means (K, 2 D) and covs (K, 2 D, 2 D) of (x, x'), in float64."""

    def __init__(self, weights: Any, means: Any, covs: Any) -> None:
        self.joint = GaussianMixture(weights, means, covs)
        if self.joint.dim % 2:
            raise SfumatoError(f"A pair has an even number of elements, x and its source, not {self.joint.dim}.")
        self.dim = self.joint.dim // 2
        self.shape = (self.dim,)

    @classmethod
    def independent(cls, x: GaussianMixture, source: GaussianMixture) -> Pair:
        """x and x' drawn independently."""
        k, m = len(x.weights), len(source.weights)
        weights = (x.weights[:, None] * source.weights).reshape(-1)
        means = torch.cat((x.means.repeat_interleave(m, 0), source.means.repeat(k, 1)), 1)
        covs = [torch.block_diag(a, b) for a in x.covs for b in source.covs]
        return cls(weights, means, torch.stack(covs))

    @classmethod
    def optimal(cls, x: GaussianMixture, source: GaussianMixture, noise: float = 0.0) -> Pair:
        """Optimal transport between two normal laws, or with noise the coupling of their Schroedinger bridge."""
        if len(x.weights) > 1 or len(source.weights) > 1:
            raise SfumatoError("The optimal coupling has a closed form for two normal laws alone, of one component.")
        a, b, one = x.covs[0], source.covs[0], torch.eye(x.dim, dtype=torch.float64)
        root = square_root(a)
        middle = square_root(4 * root @ b @ root + noise**4 * one)
        cross = (root @ middle @ torch.linalg.inv(root) - noise**2 * one) / 2
        cov = torch.cat((torch.cat((a, cross), 1), torch.cat((cross.mT, b), 1)), 0)
        return cls([1.0], torch.cat((x.means, source.means), 1), cov[None])

    @property
    def x(self) -> GaussianMixture:
        """The law of x."""
        return self._half(slice(None, self.dim))

    @property
    def source(self) -> GaussianMixture:
        """The law of x'."""
        return self._half(slice(self.dim, None))

    def _half(self, part: slice) -> GaussianMixture:
        return GaussianMixture(self.joint.weights, self.joint.means[:, part], self.joint.covs[:, part, part])

    def sample(self, n: int, seed: int = 0, first: int = 0) -> tuple[Tensor, Tensor]:
        """(x, x'), each float64 (n, D); row i is a function of (seed, first + i) alone."""
        x, source = self.joint.sample(n, seed, first).split(self.dim, 1)
        return x, source

    def between(self, z: Tensor, t: Time, process: Interpolant) -> Between:
        """E[x|z], E[x'|z] and E[zeta|z] of z = alpha x + beta x' + gamma zeta."""
        alpha, beta, gamma = process.path(t)
        found = self._along(z, alpha, beta, gamma)
        zeta = found.noise / torch.where(gamma == 0, 1.0, gamma).reshape(-1, 1)  # 0 at both ends
        return Between(found.x, found.source, zeta, z.double(), as_time(t), process)

    def log_prob(self, z: Tensor, t: Time, process: Interpolant | RectifiedFlow) -> Tensor:
        """log p_t(z) in nats, (B,)."""
        gamma = process.path(t)[2] if isinstance(process, Interpolant) else torch.zeros((), dtype=torch.float64)
        return self._along(z, *process.schedule(t), gamma).log_prob

    def model(self, process: Paired) -> ExactPair:
        """The optimal model of this coupling under a process of pairs, usable like any other."""
        return ExactPair(self, process)

    def _along(self, z: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor) -> _Posterior:
        """The belief about alpha x + beta x' + gamma zeta = z."""
        one = torch.eye(self.dim, dtype=torch.float64)
        seen = torch.cat((_times(alpha, one), _times(beta, one)), -1)
        return self._posterior(z.double(), seen, _times(gamma**2, one))

    def _given_source(self, z: Tensor, source: Tensor, alpha: Tensor, sigma: Tensor) -> _Posterior:
        """The belief about alpha x + sigma eps = z where x' is known."""
        one, none = torch.eye(self.dim, dtype=torch.float64), torch.zeros(self.dim, self.dim, dtype=torch.float64)
        upper = torch.cat((_times(alpha, one), _times(alpha, none)), -1)
        seen = torch.cat((upper, torch.cat((none, one), -1).expand_as(upper)), -2)
        spread = _times(sigma**2, torch.block_diag(one, none))
        return self._posterior(torch.cat((z.double(), source.double()), 1), seen, spread)

    def _posterior(self, y: Tensor, seen: Tensor, spread: Tensor) -> _Posterior:
        """y (B, O), seen (B or 1, O, 2 D), spread (B or 1, O, O)."""
        means, covs = self.joint.means, self.joint.covs
        gain = covs @ seen[:, None].mT  # (B, K, 2 D, O)
        total = seen[:, None] @ gain + spread[:, None]
        rest = y[:, None] - (seen[:, None] @ means[..., None])[..., 0]
        solved = torch.linalg.solve(total, rest[..., None])[..., 0]
        log_each = -0.5 * ((rest * solved).sum(-1) + torch.logdet(2 * torch.pi * total)) + self.joint.log_weights
        share = torch.softmax(log_each, 1)
        both = (share[..., None] * (means + (gain @ solved[..., None])[..., 0])).sum(1)
        noise = (share[..., None] * (spread[:, None] @ solved[..., None])[..., 0]).sum(1)
        return _Posterior(both[:, : self.dim], both[:, self.dim :], noise, torch.logsumexp(log_each, 1))


@final
class ExactPair:
    """The exact beliefs of a coupling as a model: model(z, t), for a Bridge with its condition, the source of each."""

    exact = True

    def __init__(self, pair: Pair, process: Paired) -> None:
        self.pair, self.process, self.shape = pair, process, pair.shape

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Any:
        if isinstance(self.process, Interpolant):
            return self.pair.between(z, t, self.process)
        assert isinstance(self.process, RectifiedFlow | Bridge)
        alpha, sigma = self.process.schedule(t)
        if isinstance(self.process, RectifiedFlow):
            found = self.pair._along(z, alpha, sigma, torch.zeros_like(alpha))
            return Estimate(z.double(), t, self.process.schedule, x=found.x, eps=found.source)
        if not self.process.hears_source:
            known = self.process.given(cond)
            found = self.pair._along(known.position(z, t), *known.path(t))
            return Estimate(z.double(), t, self.process.schedule, x=found.x)
        source = Given.of(cond[self.process.source]).values
        found = self.pair._given_source(z, source, alpha, sigma)
        return Estimate(z.double(), t, self.process.schedule, x=found.x)


def square_root(matrix: Tensor) -> Tensor:
    """The symmetric root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.mT


def _times(c: Tensor, matrix: Tensor) -> Tensor:
    """c times a matrix for one number, (1, O, P), or for each row, (B, O, P)."""
    return c.reshape(-1, 1, 1) * matrix
