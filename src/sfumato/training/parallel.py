"""How the gradient of one batch is made by many processes: DistributedDataParallel, each of which has all weights."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, final

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sfumato.training.goal import Batch, Goal
from sfumato.world import World


@final
class Losses(nn.Module):
    """The losses of a goal as one module, so that whatever they call of the network is seen by what wraps them."""

    def __init__(self, model: Any, goal: Goal) -> None:
        super().__init__()
        self.model, self.goal = model, goal

    def forward(self, batch: Batch) -> Tensor:
        """(B,)."""
        return self.goal.losses(self.model, batch)


def shared(model: Any, goal: Goal, world: World) -> nn.Module:
    """The losses of a batch, whose gradients are the mean over all processes."""
    losses = Losses(model, goal)
    if world.size == 1:
        return losses
    # buffers change by what all processes know, and so they are equal
    return DistributedDataParallel(losses, broadcast_buffers=False, gradient_as_bucket_view=True)


def quiet(losses: nn.Module, last: bool) -> Any:
    """A context in which backward passes leave the other processes alone, except for the last part of a batch."""
    return nullcontext() if last or not isinstance(losses, DistributedDataParallel) else losses.no_sync()
