"""The goal of discrete denoisers: the bound of 2015, by the loop of all models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sfumato.objectives.nonequilibrium import nonequilibrium_loss
from sfumato.training.goal import Batch, Plain


def symbols(steps: int, seed: int = 0) -> Plain:
    """-K on `steps` levels in nats a symbol: `fit(DiscreteDenoiser(...), x, config, goal=symbols(32))`.

    Each sample of a batch takes one level, at its place u in (0, 1), so that a batch spreads over all of them.
    """

    def losses(model: Any, batch: Batch) -> Tensor:
        x = model.process.data(batch.x)
        return nonequilibrium_loss(model, x, steps, batch.u, seed, batch.index, cond=batch.cond) / x[0].numel()

    return Plain(losses, seed)
