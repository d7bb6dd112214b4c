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


def systematic(log_weights: Tensor, u: Tensor, count: int | None = None) -> Tensor:
    """The n particles that survive: number i is taken floor(n w_i) or ceil(n w_i) times, n w_i times on average.

        ancestor_k = min { i : w_1 + .. + w_i >= (k + u) / n },   k = 0 .. n - 1

    log_weights: (G, K). u: one uniform number in (0, 1) for each group, (G,). count: n, by default K. Returns int64
    (G, n), numbers within the group. Source: Kitagawa 1996.
    """
    most = log_weights.shape[1] - 1
    count = most + 1 if count is None else count
    reached = log_weights.double().softmax(1).cumsum(1)
    points = (torch.arange(count, dtype=torch.float64, device=u.device) + u.double()[:, None]) / count
    return torch.searchsorted(reached, points.to(reached.device)).clamp_(max=most)
