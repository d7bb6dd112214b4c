"""Players: parameters of a loss with an optimiser of their own, such as a critic, a fake score or loss weights.

They take an AdamW step, at the learning rate of the network times `rate`, after the network's. Their gradients are
those of the mean of `player_losses(model, batch)` if the loss has it, otherwise those that `losses` produced. With
`player_losses` a loss may ask for several steps, `turns`; it then finds the number of the present one in `turn`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sfumato.distributed import World
from sfumato.objectives.loss import one_a_sample


class Players:
    """The players of one loss; does nothing if there are none."""

    def __init__(self, loss: Any, lr: float) -> None:
        self.loss, self.parameters = loss, [p for p in loss.players() if p.requires_grad]
        self.optimizer = None
        if self.parameters:
            self.optimizer = torch.optim.AdamW(self.parameters, lr, betas=(0.9, 0.99), weight_decay=0.0)
            self.optimizer.param_groups[0]["rate"] = getattr(loss, "rate", 1.0)

    def step(self, model: Any, parts: Iterable[Any], total: int, lr: float, world: World) -> None:
        """Step the players. parts: this process's share of a batch of `total` samples, in micro-batches."""
        if self.optimizer is None:
            return
        if not hasattr(self.loss, "player_losses"):
            self._apply(lr, world, summed=False)
            return
        parts = list(parts)
        for turn in range(getattr(self.loss, "turns", 1)):
            self.loss.turn = turn
            self._differentiate(model, parts, total)
            self._apply(lr, world)

    def _apply(self, lr: float, world: World, summed: bool = True) -> None:
        """Step by the gradients, which are sums over this process's samples or, not `summed`, means of `losses`."""
        assert self.optimizer is not None
        for p in self.parameters:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            # the gradients of `losses` were scaled for a mean over the processes
            p.grad = world.all_reduce(grad if summed else grad / world.size)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("rate", 1.0)
        if all(bool(p.grad.isfinite().all()) for p in self.parameters if p.grad is not None):
            self.optimizer.step()

    def _differentiate(self, model: Any, parts: Iterable[Any], total: int) -> None:
        for p in self.parameters:
            p.grad = None
        for part in parts:
            found = self.loss.player_losses(model, part)
            losses = one_a_sample(found, len(part.x), self.loss, "player_losses")
            found = torch.autograd.grad(losses.sum() / total, self.parameters, allow_unused=True)
            for p, grad in zip(self.parameters, found, strict=True):
                if grad is not None:
                    p.grad = grad if p.grad is None else p.grad + grad
