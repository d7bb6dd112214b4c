"""log p(x) of masked symbols along orders in which they are revealed, one a call: D calls for D symbols.

order        log p(x) = sum_k log p(x_{s(k)} | x_{s(1)} .. x_{s(k-1)}), s from left to right: exactly what a sampler
             draws from that reveals in this order, of any model
importance   log p(x) >= E log mean_k p(x | s_k), K orders at random: at K = 1 the bound by counts of masks, and the
             closer to the log p of all orders mixed, the larger K  (Burda et al. 2015, 1509.00519, Eq. 8)

Source: Hoogeboom et al. 2021 (2110.02037) for any order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError
from sfumato.likelihood.measured import Measured, pooled
from sfumato.objectives.counts import masked, masked_logits

_ROWS = 512  # states per model call


def left_to_right(
    model: Any, x: Tensor, index: Tensor, cond: Conditions, steps: int, probes: int, seed: int,
    sigma_min: float | None = None,
) -> Measured:  # fmt: skip
    """log p of symbols x (B, *shape), revealed by position; exact, and independent of all other arguments."""
    size = x[0].numel()
    first = torch.arange(size, 0, -1, dtype=torch.float64).reshape(1, 1, *x.shape[1:])
    value = along(model, x, cond, first.expand(len(x), 1, *x.shape[1:]))[:, 0]
    zero = torch.zeros_like(value)
    return Measured(value, zero, zero, None, None, None, "exact, left to right", size, 0, size)


def importance(
    model: Any, x: Tensor, index: Tensor, cond: Conditions, steps: int, probes: int, seed: int,
    sigma_min: float | None = None, particles: int = 16,
) -> Measured:  # fmt: skip
    """The bound by `particles` random orders in each of `probes` replicates, for symbols x (B, *shape)."""
    if particles < 1 or probes < 2:
        raise SfumatoError(f"The bound needs at least 1 order and 2 replicates, got {particles} and {probes}.")
    size, shape = x[0].numel(), tuple(x.shape[1:])
    keys = noise.uniform(seed, index, (probes * particles, size), noise.BOUND, dtype=torch.float64)
    each = along(model, x, cond, keys.reshape(len(x), probes * particles, *shape)).unflatten(1, (probes, particles))
    value, stderr, third = pooled(each.logsumexp(2) - math.log(particles))
    name = f"importance-weighted bound, {particles} orders, {probes} replicates"
    return Measured(value, stderr, third, None, None, None, name, size, probes, size, bound=True)


def along(model: Any, x: Tensor, cond: Conditions, keys: Tensor) -> Tensor:
    """log p(x) in each of R orders, float64 (B, R); keys (B, R, *shape): the symbol of the largest comes first."""
    count, orders, size = len(x), keys.shape[1], x[0].numel()
    found = torch.empty(count * orders * size, dtype=torch.float64)
    for part in torch.arange(len(found)).split(_ROWS):
        row, order, n = part // (orders * size), part // size % orders, part % size + 1
        own, clean = keys[row, order], x[row.to(x.device)]
        z, t = masked(model.process, clean, n, own.to(x.device))
        now = noise.ranks(own.flatten(1)) == n[:, None] - 1  # the largest key among the masks
        at = now.reshape(own.shape).to(x.device)
        logits = masked_logits(model, z, t, at, **cond.rows(row))
        found[part] = logits.double().log_softmax(-1).gather(-1, clean[at][:, None])[:, 0].cpu()
    return found.reshape(count, orders, size).sum(2)
