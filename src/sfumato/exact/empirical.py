"""The optimal denoiser of a finite data set: p_t = sum_i w_i N(alpha x_i, sigma^2 I).

    E[x|z] = sum_i softmax_i(log w_i - |z - alpha x_i|^2 / (2 sigma^2)) x_i

Sampling it returns the data set itself, like a model that only memorises. At sigma = 0 it gives the nearest sample.
Source: Karras et al. 2022 (2206.00364), Eq. 57; Gu et al. 2023 (2310.02664), Eq. 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.exact.flow import Level
from sfumato.exact.truth import Moments, Truth

Reduce = Callable[[Tensor, Tensor], Tensor]  # of weights (n,) and deviations (n, D) of the samples with weight
_ULP = 1e-15
_ENTRIES = 1 << 22  # most distances computed at once, 32 MB of float64


@final
class Empirical(Truth):
    """The distribution with weight w_i on sample x_i.

    x (N, *shape), stored as float64. labels (N,): the class of each sample, 0, 1, .. (default: all class 0).
    weights (N,): non-negative, normalised to sum 1; equal by default. Memory: N D for the data and 32 MB per call.
    """

    def __init__(self, x: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        x = torch.as_tensor(x, dtype=torch.float64)
        if x.ndim < 2 or not len(x) or not bool(x.isfinite().all()):
            raise SfumatoError(f"x must be finite samples (N, ...), N at least 1; got shape {tuple(x.shape)}.")
        labels = torch.zeros(len(x), dtype=torch.int64) if labels is None else labels
        weights = torch.ones(len(x)) if weights is None else weights
        if len(weights) != len(x):
            raise SfumatoError(f"weights must be {len(x)} numbers, one per sample; got {len(weights)}.")
        super().__init__(tuple(x.shape[1:]), math.prod(x.shape[1:]), weights, labels)
        self.data = x.flatten(1)
        self._floor = (_ULP * (float(self.data.abs().max()) or 1.0)) ** 2  # the variance of rounding

    @property
    def mean(self) -> Tensor:
        return self.log_weights.exp() @ self.data

    @property
    def spread(self) -> float:
        return math.sqrt(float((self.data - self.mean).square().sum(-1).amax()))

    def _log_joint(self, z: Tensor, at: Level, label: Tensor) -> tuple[Tensor, Tensor]:
        """log p(i, z) (B, N), with sigma at least the rounding error, and log p_t(z) (B,), infinite at sigma = 0."""
        # |z - alpha x| = alpha |z/alpha - x|, with one alpha per row; the matrix product
        # |z|^2 - 2 z.x + |x|^2 would cancel at small sigma
        alpha = at.alpha.clamp_min(1e-100)[:, None]
        distance = torch.cdist(z / alpha, self.data.to(z.device), compute_mode="donot_use_mm_for_euclid_dist")
        square, v = (alpha * distance) ** 2, (at.sigma**2).clamp_min(self._floor)[:, None]
        prior = self._log_prior(label)
        joint = prior - 0.5 * (square / v + self.dim * torch.log(2 * math.pi * v))
        on = ((square <= self._floor * self.dim) & (prior > -torch.inf)).any(-1)
        point = torch.where(on, torch.inf, -torch.inf)
        return joint, torch.where(at.sigma == 0, point, torch.logsumexp(joint, -1))

    def _moments_of(self, z: Tensor, at: Level, label: Tensor) -> Moments:
        joint, log_prob = self._log_joint(z, at, label)
        log_weights = torch.log_softmax(joint, -1)
        x = log_weights.exp() @ self.data.to(z.device)
        sigma = at.sigma[:, None]
        clean = sigma == 0  # z carries no information on eps there
        eps = torch.where(clean, 0.0, (z - at.alpha[:, None] * x) / torch.where(clean, 1.0, sigma))
        return Moments(x, eps, torch.where(clean, 0.0, -eps / torch.where(clean, 1.0, sigma)), log_prob, log_weights)

    def _moments(self, z: Tensor, at: Level, label: Tensor) -> Moments:
        parts = [self._moments_of(*rows) for rows in self._chunks(z, at, label)]
        return Moments(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _chunks(self, z: Tensor, at: Level, label: Tensor) -> Iterator[tuple[Tensor, Level, Tensor]]:
        size = max(1, _ENTRIES // len(self.data))
        pieces = zip(*(value.split(size) for value in (z, at.alpha, at.sigma, label)), strict=True)
        return ((z, Level(alpha, sigma), label) for z, alpha, sigma, label in pieces)

    def _spread_of(self, z: Tensor, at: Level, label: Tensor, reduce: Reduce) -> Tensor:
        """reduce(r, x_i - E[x|z]) for each row, over the samples with non-negligible weight."""
        out = []
        for rows in self._chunks(z, at, label):
            r = torch.softmax(self._log_joint(*rows)[0], -1)
            for one in r:
                near = one > 1e-30
                data, weight = self.data.to(z.device)[near], one[near]
                out.append(reduce(weight, data - weight @ data / weight.sum()))
        return torch.stack(out)

    def _variance(self, z: Tensor, at: Level, label: Tensor) -> Tensor:
        return self._spread_of(z, at, label, lambda r, d: r @ d**2)

    def _total_variance(self, z: Tensor, at: Level, label: Tensor) -> Tensor:
        return self._spread_of(z, at, label, lambda r, d: r @ d.square().sum(-1))

    def _covariance(self, z: Tensor, at: Level, label: Tensor) -> Tensor:
        return self._spread_of(z, at, label, lambda r, d: (r[:, None] * d).mT @ d)

    def _draw(self, component: Tensor, seed: int, index: Tensor) -> Tensor:
        return self.data[component]

    def _flow_alone(self, z: Tensor, start: Level, stop: Level, component: Tensor) -> Tensor:
        x, clean = self.data.to(z.device)[component], start.sigma == 0
        ratio = torch.where(clean, 0.0, stop.sigma / torch.where(clean, 1.0, start.sigma))
        return stop.alpha[:, None] * x + ratio[:, None] * (z - start.alpha[:, None] * x)
