"""What a training step sees, and the loss that a run minimises: the loop knows nothing else of a method.

    loss = mean over the batch of loss.losses(model, batch)

`objectives.losses` has those that settings name; any module with `losses` is one, and any function by `Plain`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sfumato.errors import SfumatoError
from sfumato.objectives.loss import Batch as Batch
from sfumato.objectives.loss import CompletedLoss, Loss
from sfumato.objectives.losses import Denoising as Denoising
from sfumato.objectives.losses import Hybrid as Hybrid
from sfumato.objectives.losses import Plain as Plain
from sfumato.registry import make
from sfumato.training.config import TrainConfig
from sfumato.training.objective import times_of, weight_of

Goal = Loss  # its name before losses were modules


def goal_of(config: TrainConfig) -> Any:
    """The loss that the settings of a run name, with their density, weight and seed."""
    word = config.loss
    if word == "auto":
        word = "hybrid" if config.variance == "learned" else "denoising"
    given = {"times": times_of(config.times), "weight": weight_of(config.weight), "seed": config.seed}
    return loss_of(make("loss", word, given))


def loss_of(loss: Any) -> Any:
    """Any module that has `losses` as a whole loss."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, nn.Module) and hasattr(loss, "losses"):
        return CompletedLoss(loss)
    raise SfumatoError(
        f"A loss is a module with `losses(model, batch)` that gives one number a sample, and {type(loss).__name__} is "
        "none: give it one, or take `Plain` for a function."
    )
