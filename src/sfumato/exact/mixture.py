"""Gaussian mixtures, noised: p_t = sum_k w_k N(alpha m_k, V_k), V_k = alpha^2 C_k + sigma^2 I.

With C_k = U_k diag(c_k) U_k^T, v = alpha^2 c + sigma^2, y_k = U_k^T (z - alpha m_k) and responsibilities r_k = p(k|z):

    score   = -sum_k r_k U_k (y_k / v_k)
    E[x|z]  =  sum_k r_k (m_k + alpha U_k (c_k y_k / v_k))
    Cov(x|z) = sum_k r_k (U_k diag(c_k sigma^2 / v_k) U_k^T + (mu_k - E[x|z]) (mu_k - E[x|z])^T)

No formula divides by alpha or sigma, so both ends are exact. Source: Efron 2011 and the product of Gaussians.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.exact.basis import Axes, Basis, Eigen
from sfumato.exact.flow import Level, column
from sfumato.exact.truth import Moments, Truth, draw_position

_ULP = 1e-15  # relative size below which a distance is rounding error


@dataclasses.dataclass(frozen=True)
class Components:
    """K Gaussians: means (K, D) and the spectra (K, D) of their covariances in `basis`."""

    means: Tensor
    spectra: Tensor
    basis: Basis

    def to(self, device: torch.device) -> Components:
        if self.means.device == device:
            return self
        return Components(self.means.to(device), self.spectra.to(device), self.basis.to(device))

    @property
    def floor(self) -> float:
        """The variance of the rounding error of distances between z and a component."""
        size = float(self.means.abs().amax()) + math.sqrt(float(self.spectra.amax()))
        return (_ULP * (size or 1.0)) ** 2

    def residuals(self, z: Tensor, at: Level) -> tuple[Tensor, Tensor]:
        """y = U_k^T (z - alpha m_k) and its variances v, both (B, K, D)."""
        y = self.basis.analyse(z[:, None] - _each(at.alpha) * self.means)
        return y, _each(at.alpha) ** 2 * self.spectra + _each(at.sigma) ** 2

    def densities(self, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """log N(z; alpha m_k, V_k), (B, K), twice: with v at least the rounding error; exact (infinite if v = 0)."""
        safe = v.clamp_min(self.floor)
        finite = -0.5 * (y**2 / safe + torch.log(2 * math.pi * safe)).sum(-1)
        flat = v == 0
        on = (torch.where(flat, y, 0.0) ** 2).sum(-1) <= self.floor * y.shape[-1]
        return finite, torch.where(flat.any(-1), torch.where(on, torch.inf, -torch.inf), finite)


def _each(level: Tensor) -> Tensor:
    """A level (B,) or (B, D), shaped to multiply (B, K, D)."""
    return column(level)[:, None]


def moments(parts: Components, z: Tensor, at: Level, prior: Tensor) -> Moments:
    """The formulas at the head of this file for flat z (B, D) and log weights `prior` (B, K)."""
    y, v = parts.residuals(z, at)
    finite, true = parts.densities(y, v)
    log_weights = torch.log_softmax(prior + finite, -1)
    r = log_weights.exp()
    # where v = 0 the component is a point in that direction and z carries no noise: E[eps|z] = 0
    pull = r[..., None] * torch.where(v == 0, 0.0, y / torch.where(v == 0, 1.0, v))
    score = -parts.basis.gather(pull)
    x = r @ parts.means + parts.basis.gather(_each(at.alpha) * parts.spectra * pull)
    log_prob = torch.logsumexp(torch.where(prior == -torch.inf, -torch.inf, prior + true), -1)
    return Moments(x, -column(at.sigma) * score, score, log_prob, log_weights)


def _posterior_parts(parts: Components, z: Tensor, at: Level, prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r_k (B, K), the spectra r_k c_k sigma^2 / v_k and the deviations mu_k - E[x|z], both (B, K, D)."""
    y, v = parts.residuals(z, at)
    r = torch.softmax(prior + parts.densities(y, v)[0], -1)
    gain = parts.spectra / torch.where(v == 0, 1.0, v)
    each = torch.eye(len(parts.means), dtype=z.dtype, device=z.device)[..., None]
    shift = _each(at.alpha) * gain * y
    mu = parts.means + torch.stack([parts.basis.gather(shift * one) for one in each], 1)
    deviation = mu - torch.einsum("bk,bkd->bd", r, mu)[:, None]
    return r, r[..., None] * gain * _each(at.sigma) ** 2, deviation


def total_variance(parts: Components, z: Tensor, at: Level, prior: Tensor) -> Tensor:
    """tr Cov(x|z) (B,), by the deviations in each component's basis, U_k^T (m_k - E[x|z]) + alpha c_k y_k / v_k."""
    y, v = parts.residuals(z, at)
    r = torch.softmax(prior + parts.densities(y, v)[0], -1)
    gain = parts.spectra / torch.where(v == 0, 1.0, v)
    shift = _each(at.alpha) * gain * y
    x = r @ parts.means + parts.basis.gather(r[..., None] * shift)
    deviation = parts.basis.analyse(parts.means - x[:, None]) + shift
    within = gain * _each(at.sigma) ** 2
    return (r * (within + deviation.square()).sum(-1)).sum(-1)


class GaussianSum(Truth):
    """A mixture of the Gaussians in `Components`."""

    def __init__(
        self, parts: Components, shape: tuple[int, ...], weights: Tensor, labels: Tensor | Sequence[int] | None = None
    ) -> None:
        super().__init__(shape, parts.means.shape[1], weights, labels)
        self._parts, self.separate = {parts.means.device: parts}, isinstance(parts.basis, Axes)
        self.components = parts

    def _on(self, device: torch.device) -> Components:
        if device not in self._parts:
            self._parts[device] = self.components.to(device)
        return self._parts[device]

    @property
    @final
    def mean(self) -> Tensor:
        return self.log_weights.exp() @ self.components.means

    @property
    @final
    def spread(self) -> float:
        offsets = (self.components.means - self.mean).square().sum(-1).amax()
        return math.sqrt(float(offsets + self.components.spectra.amax()))

    @final
    def _moments(self, z: Tensor, at: Level, label: Tensor) -> Moments:
        return moments(self._on(z.device), z, at, self._log_prior(label))

    @final
    def _variance(self, z: Tensor, at: Level, label: Tensor) -> Tensor:
        parts = self._on(z.device)
        r, spectrum, deviation = _posterior_parts(parts, z, at, self._log_prior(label))
        return parts.basis.diagonal(spectrum) + torch.einsum("bk,bkd->bd", r, deviation**2)

    @final
    def _total_variance(self, z: Tensor, at: Level, label: Tensor) -> Tensor:
        return total_variance(self._on(z.device), z, at, self._log_prior(label))

    @final
    def _covariance(self, z: Tensor, at: Level, label: Tensor) -> Tensor:
        parts = self._on(z.device)
        r, spectrum, deviation = _posterior_parts(parts, z, at, self._log_prior(label))
        return parts.basis.matrix(spectrum) + torch.einsum("bk,bkd,bke->bde", r, deviation, deviation)

    @final
    def _draw(self, component: Tensor, seed: int, index: Tensor) -> Tensor:
        parts = self.components
        position = parts.spectra.sqrt() * draw_position(self.dim, seed, index)[:, None]
        return parts.means[component] + parts.basis.gather(_only(component, parts) * position)

    @final
    def _flow_alone(self, z: Tensor, start: Level, stop: Level, component: Tensor) -> Tensor:
        parts = self._on(z.device)
        (y, v), w = parts.residuals(z, start), parts.residuals(z, stop)[1]
        moved = torch.where(v == 0, 0.0, y * torch.sqrt(w / torch.where(v == 0, 1.0, v)))
        centre = column(stop.alpha) * parts.means[component]
        return centre + parts.basis.gather(_only(component, parts) * moved)


def _only(component: Tensor, parts: Components) -> Tensor:
    """1 for the row's component and 0 for the others, (B, K, 1)."""
    return torch.nn.functional.one_hot(component, len(parts.means)).to(parts.means)[..., None]


@final
class GaussianMixture(GaussianSum):
    """p(x) = sum_k w_k N(x; m_k, C_k).

    weights (K,): non-negative, normalised to sum 1. means (K, D). covs: full (K, D, D), diagonal (K, D), one variance
    per component (K,), or one number; positive semi-definite, zero is a point. labels (K,): the class of each
    component, 0, 1, .. by default. shape: the shape of a sample of D numbers, (D,) by default. All in the data's units,
    stored as float64.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence[Sequence[float]],
        covs: Tensor | Sequence | float,
        labels: Tensor | Sequence[int] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        w, m, c = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, covs))
        if m.ndim != 2 or w.shape != m.shape[:1] or not m.numel() or not bool(m.isfinite().all()):
            raise SfumatoError(f"weights {tuple(w.shape)}, means {tuple(m.shape)} must be (K,), (K, D) and finite.")
        parts = Components(m, *_diagonalise(c, *m.shape))
        super().__init__(parts, (m.shape[1],) if shape is None else shape, w, labels)

    def noised(self, alpha: float, sigma: float) -> GaussianMixture:
        """The distribution of z = alpha x + sigma eps: means alpha m_k, covariances alpha^2 C_k + sigma^2 I."""
        covs = alpha**2 * self.covs + sigma**2 * torch.eye(self.dim, dtype=torch.float64)
        return GaussianMixture(self.weights, alpha * self.means, covs, self.labels, self.shape)

    @property
    def weights(self) -> Tensor:
        """The weights of the components (K,), summing to 1."""
        return self.log_weights.exp()

    @property
    def means(self) -> Tensor:
        """The means of the components, (K, D)."""
        return self.components.means

    @property
    def covs(self) -> Tensor:
        """The full covariances of the components, (K, D, D)."""
        parts = self.components
        one = torch.eye(len(parts.means), dtype=torch.float64)
        return parts.basis.matrix(one[..., None] * parts.spectra)


def _diagonalise(covs: Tensor, count: int, dim: int) -> tuple[Tensor, Basis]:
    """Spectra (K, D) and their basis from any accepted form of covariances."""
    basis: Basis
    if covs.ndim == 3:
        if covs.shape != (count, dim, dim):
            raise SfumatoError(f"covs {tuple(covs.shape)} must be ({count}, {dim}, {dim}) for these means.")
        if not torch.allclose(covs, covs.mT, rtol=1e-10, atol=1e-12 * float(covs.abs().max())):
            raise SfumatoError("covs must be symmetric: pass (C + C^T) / 2.")
        spectra, vectors = torch.linalg.eigh((covs + covs.mT) / 2)
        rounding = 4e-16 * dim * float(spectra.abs().max())
        spectra, basis = torch.where(spectra.abs() <= rounding, 0.0, spectra), Eigen(vectors)
    elif covs.shape in ((), (count,), (count, dim)):
        spectra, basis = covs.reshape(*covs.shape, *[1] * (2 - covs.ndim)).expand(count, dim).clone(), Axes()
    else:
        raise SfumatoError(
            f"covs {tuple(covs.shape)} must be ({count}, {dim}, {dim}), ({count}, {dim}), ({count},) or a number."
        )
    if not bool(((spectra >= 0) & spectra.isfinite()).all()):
        least = float(spectra.min())
        raise SfumatoError(f"covs must be positive semi-definite and finite; the smallest eigenvalue is {least:g}.")
    return spectra, basis
