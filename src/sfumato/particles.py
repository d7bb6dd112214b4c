"""Weighted particles: how many of them count, the mean of their weights, and systematic resampling.

Log-weights come as (G, K): K particles in each of G independent groups.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2, the effective sample size of each group, between 1 and K: (G,) from (G, K)."""
    w = log_weights.double().softmax(1)
    return 1 / w.square().sum(1)


def log_mean(log_weights: Tensor) -> Tensor:
    """log (1/K sum w) of each group, (G,) from (G, K)."""
    return log_weights.double().logsumexp(1) - math.log(log_weights.shape[1])


def systematic(log_weights: Tensor, u: Tensor) -> Tensor:
    """The particles that survive: number i is taken floor(K w_i) or ceil(K w_i) times, K w_i times on average.

        ancestor_k = min { i : w_1 + .. + w_i >= (k + u) / K },   k = 0 .. K - 1

    log_weights: (G, K). u: one uniform number in (0, 1) for each group, (G,). Returns int64 (G, K), numbers within the
    group. Source: Kitagawa 1996.
    """
    count = log_weights.shape[1]
    reached = log_weights.double().softmax(1).cumsum(1)
    points = (torch.arange(count, dtype=torch.float64, device=u.device) + u.double()[:, None]) / count
    return torch.searchsorted(reached, points.to(reached.device)).clamp_(max=count - 1)
