"""Simulation-based calibration: where the truth stands among samples of its posterior.

    x ~ p(x),   y = A(x) + s n,   x_1 .. x_n ~ p(x | y):   the rank of f(x) among f(x_i) is uniform on 0 .. n

if and only if the samples follow the posterior on average over y. Source: Talts et al. 2018 (1804.06788).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.inverse.operators import Operator
from sfumato.inverse.posterior import Words, posterior
from sfumato.noise import DATA, Noise

_MEASURED = 3  # a stream under the role DATA, after those of exact laws


def rank_statistics(
    model: Any,
    x: Tensor,
    operator: Operator,
    noise: float,
    method: Words = "auto",
    n: int = 31,
    seed: int = 0,
    statistic: Callable[[Tensor], Tensor] | None = None,
    **how: Any,
) -> Tensor:
    """The rank, 0 .. n, of each truth x (L, *shape) among n samples of its posterior, int64 (L, q).

    x: samples of the prior, in user units; truth number i is measured with noise of its own, and given the seed
    seed + i. statistic: f, (B, *shape) -> (B, q), by default all numbers. how: other arguments of `posterior`.
    """
    function = statistic or (lambda x: x.flatten(1))
    measured = operator(x.double())
    measured = measured + noise * Noise(seed, torch.arange(len(x)), DATA, _MEASURED).normal(
        measured.shape[1:], dtype=torch.float64
    )
    ranks = []
    for i, y in enumerate(measured):
        drawn = posterior(model, y, operator, noise, method, n, seed=seed + i, **how)
        truth = function(x[i : i + 1].double())
        ranks.append((function(drawn.samples.double()) < truth).sum(0))
    return torch.stack(ranks)


def uniformity(ranks: Tensor, n: int, bins: int = 8) -> Tensor:
    """The probability of a chi-square at least as large if the ranks (L, q) in 0 .. n are uniform, float64 (q,).

    n + 1 has to be a multiple of the number of bins, each of which should hold five ranks or more.
    """
    if (n + 1) % bins:
        raise SfumatoError(f"{n} samples have {n + 1} ranks, which {bins} bins do not divide: draw n = 8 k - 1.")
    which = ranks * bins // (n + 1)
    counts = torch.stack([(which == b).sum(0) for b in range(bins)]).double()
    expected = len(ranks) / bins
    square = ((counts - expected) ** 2 / expected).sum(0)
    return torch.special.gammaincc(torch.full_like(square, (bins - 1) / 2), square / 2)
