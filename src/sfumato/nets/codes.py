"""The code between encoder and decoder: a Gaussian distribution, or the nearest vectors of a codebook."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import SfumatoError

WIDEST = 20.0  # clamp of the log-variance, so that its exponential stays finite
RESTART = 0.05  # a code used less than this share of the average is reinitialised


class GaussianCode(NamedTuple):
    """q(y | x) = N(mean, diag(exp(log_variance))), both (B, L, ...)."""

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def split(cls, h: Tensor) -> GaussianCode:
        """The Gaussian of an encoder's output (B, 2 L, ...): means, then log-variances."""
        mean, log_variance = h.chunk(2, dim=1)
        return cls(mean, log_variance.clamp(-WIDEST, WIDEST))

    def sample(self, eps: Tensor) -> Tensor:
        """y = mean + std eps (Kingma and Welling 2013, the reparameterisation)."""
        return self.mean + (0.5 * self.log_variance).exp() * eps

    def kl(self) -> Tensor:
        """KL(q || N(0, 1)) of each element, in nats: (mean^2 + var - 1 - log var) / 2, shaped like the mean."""
        # -1 - log var + var in one term that does not cancel near var = 1
        return 0.5 * (self.mean.square() + torch.expm1(self.log_variance) - self.log_variance)

    def log_prob(self, y: Tensor) -> Tensor:
        """log q(y | x), (B,)."""
        eps = (y - self.mean) * (-0.5 * self.log_variance).exp()
        return log_normal(eps) - 0.5 * self.log_variance.flatten(1).sum(1)


class QuantisedCode(NamedTuple):
    """The nearest codebook vectors: value (B, L, ...), with straight-through gradients; codes int64 (B, ...)."""

    value: Tensor
    codes: Tensor
    features: Tensor

    def distance(self) -> Tensor:
        """|features - sg(value)|^2 of each sample, (B,): the commitment loss, which keeps an encoder near its codes."""
        return (self.features - self.value.detach()).flatten(1).square().sum(1)


def log_normal(eps: Tensor) -> Tensor:
    """log N(eps; 0, I) of each sample, (B,)."""
    flat = eps.flatten(1)
    return -0.5 * (flat.square() + math.log(2 * math.pi)).sum(1)


class VectorQuantiser(nn.Module):
    """Quantise features to the nearest codebook vector e_k at every position, with straight-through gradients.

    The codebook (codes, dim) follows the features by moving averages, an online k-means:
        n_k <- d n_k + (1 - d) #{i: k_i = k},   e_k <- (d n_k e_k + (1 - d) sum_{i: k_i = k} f_i) / n_k
    A code used less than `RESTART` times the average is reset to a feature of the batch; the first batch sets all
    codes. Source: van den Oord et al. 2017 (1711.00937), Eq. 1-3 and Appendix A.1.
    """

    codebook: Tensor
    count: Tensor

    def __init__(self, codes: int, dim: int, decay: float = 0.99) -> None:
        super().__init__()
        if codes < 2 or dim < 1 or not 0 <= decay < 1:
            raise SfumatoError(f"A codebook needs at least 2 codes and a decay in [0, 1): got {codes} and {decay:g}.")
        self.decay = decay
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("count", torch.zeros(codes))

    def forward(self, features: Tensor) -> QuantisedCode:
        flat = features.movedim(1, -1)
        with torch.no_grad():
            rows = flat.reshape(-1, flat.shape[-1]).to(self.codebook.dtype)
            index = torch.cdist(rows, self.codebook).argmin(1).reshape(flat.shape[:-1])
        nearest = self.look_up(index).to(features.dtype)
        return QuantisedCode(features + (nearest - features).detach(), index, features)

    def look_up(self, index: Tensor) -> Tensor:
        """The codebook vectors (B, L, ...) of codes (B, ...)."""
        return self.codebook[index].movedim(-1, 1)

    @torch.no_grad()
    def learn(self, code: QuantisedCode) -> int:
        """Move the codebook towards the features of a batch; returns how many codes were reset."""
        rows = code.features.detach().movedim(1, -1).reshape(-1, self.codebook.shape[1]).to(self.codebook.dtype)
        index = code.codes.reshape(-1)
        used = torch.zeros_like(self.count).index_add_(0, index, torch.ones_like(rows[:, 0]))
        total = torch.zeros_like(self.codebook).index_add_(0, index, rows)
        kept = self.decay * self.count
        count = kept + (1 - self.decay) * used
        moved = (kept[:, None] * self.codebook + (1 - self.decay) * total) / count.clamp_min(1e-12)[:, None]
        usual = len(rows) / len(count)
        dead = torch.nonzero((count < RESTART * usual) | (self.count.sum() == 0))[:, 0]
        self.codebook.copy_(torch.where(count[:, None] > 0, moved, self.codebook))
        self.count.copy_(count)
        if len(dead):  # take features spread over the batch, so that no two codes start alike
            chosen = torch.linspace(0, len(rows) - 1, len(dead), device=rows.device).round().long()
            self.codebook[dead], self.count[dead] = rows[chosen], usual
        return len(dead)

    @property
    def perplexity(self) -> float:
        """exp of the entropy of the code frequencies: the effective number of codes in use, 1 to `codes`."""
        share = self.count.double() / self.count.double().sum().clamp_min(1e-300)
        return float(torch.special.entr(share).sum().exp())
