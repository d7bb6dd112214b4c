"""The gradient of the loss at a noise level and its noise: |G|^2, tr Sigma and their ratio, the noise scale.

With m micro-batches of b samples at the level, g_i their gradients and g their mean, unbiased for any m >= 2:

    |G|^2 = (m |g|^2 - mean |g_i|^2) / (m - 1),   tr Sigma = b m (mean |g_i|^2 - |g|^2) / (m - 1)
    simple noise scale B = tr Sigma / |G|^2

A step needs about B samples to be more gradient than noise. The estimate of |G|^2 may be negative if the gradient is
smaller than its noise; the ratio is then NaN. Standard errors are by the jackknife over micro-batches.
Source: McCandlish et al. 2018 (1812.06162), Eq. 2.8 and App. A.1, with the small batch b and the big one m b.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.diagnostics.draws import ByLevel, Draws, losses
from sfumato.distributed import ALONE, World, local
from sfumato.machine import in_parts
from sfumato.noised import evaluating, in_shards

NAN = math.nan


def ratio(square: ByLevel, variance: ByLevel) -> ByLevel:
    """tr Sigma / |G|^2 and its error, as if the two were independent; NaN where |G|^2 is negative."""
    scale = torch.where(square.value > 0, variance.value / square.value, NAN)
    parts = (square.stderr / square.value) ** 2 + (variance.stderr / variance.value) ** 2
    return ByLevel(scale, scale * parts.sqrt())


@dataclasses.dataclass(frozen=True)
class Gradients:
    """|G|^2 and tr Sigma of the loss of one sample at each level; total: both for the whole objective."""

    square: ByLevel
    variance: ByLevel
    scale: ByLevel
    total: tuple[float, float]

    @property
    def norm(self) -> ByLevel:
        """|G| and its error; NaN where the estimate of |G|^2 is negative."""
        norm = torch.where(self.square.value > 0, self.square.value, NAN).sqrt()
        return ByLevel(norm, self.square.stderr / (2 * norm))

    @property
    def total_norm(self) -> float:
        """|G| of the whole objective; NaN if it is below its noise."""
        return math.sqrt(self.total[0]) if self.total[0] > 0 else NAN

    @property
    def total_scale(self) -> float:
        """The noise scale of batches with levels from the time density; NaN if the gradient is below its noise."""
        return self.total[1] / self.total[0] if self.total[0] > 0 else NAN


def measure(model: Any, draws: Draws, factor: Tensor, micro: int, size: int, world: World = ALONE) -> Gradients | None:
    """The gradients of mean(factor * loss) over micro * size draws of each bin; None for a model without parameters.

    factor: w / p of each draw, float64 (count K,). Uses the trainable parameters, or all if none is trainable; `.grad`,
    the optimiser, train/eval modes and the random state are not changed. Runs in evaluation mode, without dropout.
    world: processes that share the work, by bins, or by samples if the weights are sharded; all get the result.
    """
    with _trained(model) as parameters, evaluating(model):
        if not parameters:
            return None
        sharded = in_shards(model)
        gradient = _shard_of_gradient if sharded else _gradient
        bins, whole = len(draws.bins), [torch.zeros_like(local(p), requires_grad=False) for p in parameters]
        table, share = torch.zeros(bins, 6, dtype=torch.float64), draws.bins.mass / draws.bins.mass.sum()
        # draws are ordered by level within a bin: interleave them, so that every micro-batch covers the whole bin
        order = noise.permutation(draws.seed, draws.first, draws.count)[: micro * size]
        for k in range(bins) if sharded else range(world.rank, bins, world.size):
            chosen = draws.index[k::bins][order].split(size)
            grads = [gradient(model, draws, factor, part, parameters, world) for part in chosen]
            gram = torch.stack([_gram(column) for column in zip(*grads, strict=True)]).sum(0)
            values, errors = estimate((world.all_reduce(gram) if sharded else gram).cpu(), size)
            table[k] = torch.tensor((*values, *errors), dtype=torch.float64)
            for sums, column in zip(whole, zip(*grads, strict=True), strict=True):
                sums.add_(torch.stack(column).mean(0), alpha=float(share[k]))
    if not sharded:
        table, whole = world.all_reduce(table), [world.all_reduce(part) for part in whole]
    square, variance, scale = (ByLevel(table[:, i], table[:, i + 3]) for i in range(3))
    length = sum((part.double().square().sum().cpu() for part in whole), torch.zeros((), dtype=torch.float64))
    total = float(world.all_reduce(length) if sharded else length)
    return Gradients(square, variance, scale, _total(total, share, square.value, variance.value, micro * size))


def norms(model: Any, draws: Draws) -> Tensor:
    """|gradient of |eps - eps_hat|^2 / d| of each draw, float64 (count K,); NaN for a model without parameters."""
    found, ones = torch.full((len(draws.index),), NAN, dtype=torch.float64), torch.ones(len(draws.index))
    with _trained(model) as parameters, evaluating(model):
        for draw in draws.index if parameters else ():
            grads = _gradient(model, draws, ones, draw[None], parameters, ALONE)
            found[draw] = torch.stack([g.double().square().sum() for g in grads]).sum().sqrt()
    return found


def _gradient(
    model: Any, draws: Draws, factor: Tensor, part: Tensor, parameters: list[nn.Parameter], world: World
) -> list[Tensor]:
    """The gradient of the mean over a micro-batch, accumulated over batches that fit into memory."""
    sums = [torch.zeros_like(p, requires_grad=False) for p in parameters]

    def add(rows: Tensor) -> None:
        with torch.enable_grad():
            found = losses(model, draws.take(rows))
            loss = (factor[rows].to(found) * found).mean() * (len(rows) / len(part))
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        for each, grad in zip(sums, grads, strict=True):
            if grad is not None:
                each.add_(grad)

    in_parts(add, part, draws.batch)
    return sums


def _shard_of_gradient(
    model: Any, draws: Draws, factor: Tensor, part: Tensor, parameters: list[nn.Parameter], world: World
) -> list[Tensor]:
    """The same for sharded weights: each process computes a share of the draws and receives its shard of the result."""
    kept = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    count = -(-len(part) // world.size)
    place = torch.arange(world.rank * count, (world.rank + 1) * count)
    own, inside = part[place.clamp(max=len(part) - 1)], place < len(part)
    with torch.enable_grad():
        found = losses(model, draws.take(own))
        weight = factor[own] * inside * (world.size / len(part))  # the gradient is a mean over processes
        (weight.to(found) * found).sum().backward()
    grads = [torch.zeros_like(local(p), requires_grad=False) if p.grad is None else local(p.grad) for p in parameters]
    for p, grad in zip(parameters, kept, strict=True):
        p.grad = grad
    return grads


def _gram(column: Sequence[Tensor]) -> Tensor:
    """The products g_i . g_j for one parameter, float64 (m, m)."""
    flat = torch.stack([g.flatten() for g in column])
    flat = flat if flat.dtype == torch.float64 else flat.float()
    return (flat @ flat.T).double()


def estimate(gram: Tensor, size: int) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(|G|^2, tr Sigma, B) and their standard errors, from g_i . g_j (m, m) of micro-batches of `size`."""
    m = len(gram)
    values = _unbiased(gram, size)
    if m < 3:
        return values, (NAN, NAN, NAN)
    keep = ~torch.eye(m, dtype=torch.bool)
    left = torch.tensor([_unbiased(gram[k][:, k], size) for k in keep], dtype=torch.float64)
    errors = ((m - 1) / m * (left - left.mean(0)).square().sum(0)).sqrt().tolist()
    return values, (errors[0], errors[1], errors[2])


def _unbiased(gram: Tensor, size: int) -> tuple[float, float, float]:
    """(|G|^2, tr Sigma, B); (m |g|^2 - mean |g_i|^2) / (m - 1) equals the mean of g_i . g_j over pairs."""
    m, one = len(gram), float(gram.diagonal().mean())
    square = float(gram.sum() - gram.trace()) / (m * (m - 1))
    variance = size * (one - square)
    return square, variance, variance / square if square > 0 else NAN


def _total(length: float, share: Tensor, square: Tensor, variance: Tensor, count: int) -> tuple[float, float]:
    """|G|^2 and tr Sigma of batches with random levels: G = sum_k share_k G_k, and the level adds to the variance.

    length: |sum_k share_k g_k|^2 of the means g_k of `count` draws.
    """
    norm = length - float((share**2 * variance).sum()) / count
    return norm, float((share * (variance + square)).sum()) - norm


@contextlib.contextmanager
def _trained(model: Any) -> Iterator[list[nn.Parameter]]:
    """The trainable parameters, or all if none is trainable: these require gradients within the block only."""
    listed: Callable[[], Iterator[nn.Parameter]] | None = getattr(model, "parameters", None)
    every = list(listed()) if listed is not None else []
    wanted = [p for p in every if p.requires_grad] or every
    frozen = [p for p in wanted if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        yield wanted
    finally:
        for p in frozen:
            p.requires_grad_(False)
