"""Skip steps whose loss or gradients are not finite, and find the first tensor that caused it.

    one incident               the step is discarded and training continues with the next batch
    STRIKES in WINDOW steps    back to the last good checkpoint, with half the learning rate
    more than ROLLBACKS        the run stops and names the cause

No value that is not finite reaches the optimiser, the averages or a checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.distributed import ALONE, World, local
from sfumato.nets.watching import watched
from sfumato.objectives.loss import Batch, Loss

STRIKES, WINDOW, ROLLBACKS = 3, 100, 3
SLOWER = 0.5  # factor on the learning rate at each roll-back


@dataclasses.dataclass(frozen=True)
class Incident:
    """A step that was skipped.

    samples: the batch's positions in the run's stream of samples; rows: its rows in the training set; where: what was
    not finite, in words; precision: the network's compute dtype; rolled_back: the step that the run went back to.
    """

    step: int
    samples: list[int]
    rows: list[int]
    where: str
    lr: float
    precision: str = "float32"
    rolled_back: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        back = "" if self.rolled_back is None else f" Back to step {self.rolled_back:,}, with half the learning rate."
        return f"Step {self.step:,} was skipped: {self.where}.{back}"


def precision(model: Any) -> str:
    """The name of a network's compute dtype."""
    first = next((p.dtype for p in model.net.parameters()), torch.float32)
    return str(getattr(model, "compute_dtype", None) or first).removeprefix("torch.")


def finite(value: Any) -> bool:
    """Whether all floating-point tensors in nested tuples, lists and mappings are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, Mapping):
        return all(finite(v) for v in value.values())
    return all(finite(v) for v in value) if isinstance(value, list | tuple) else True


def find(model: Any, loss: Loss, batch: Batch, world: World = ALONE) -> tuple[str, bool]:
    """(where values first become infinite or NaN, whether the weights themselves are lost).

    Checks the weights, the data and conditions, the output of each module in a new forward pass, and the gradients of
    the failed step. Several processes search together; the first one that finds a cause names it.
    """
    looks: list[tuple[Callable[[], str | None], bool]] = [
        (lambda: _in_weights(model), True),
        (lambda: _in_data(batch), False),
        (lambda: _in_outputs(model, loss, batch), False),
        (lambda: _in_gradients(model), False),
    ]
    for look, lost in looks:
        where = next((found for found in world.all_gather_object(look()) if found is not None), None)
        if where is not None:
            return where, lost
    return "the norm of its gradient overflows", False


def _in_weights(model: Any) -> str | None:
    names = [name for name, p in model.net.named_parameters() if not finite(local(p))]
    return f"the weight {names[0]} is no longer finite: the step was too long" if names else None


def _in_data(batch: Batch) -> str | None:
    broken = [name for name, value in (("data", batch.x), ("conditions", batch.cond)) if not finite(value)]
    return f"the {broken[0]} of its batch are not finite" if broken else None


def _in_outputs(model: Any, loss: Loss, batch: Batch) -> str | None:
    first: list[str] = []

    def look(name: str, out: Any) -> None:
        if not first and not finite(out):
            first.append(name)

    with watched(model.net, look), torch.no_grad():
        losses = loss.losses(model, batch)
    if first:
        return f"the output of {first[0]} is not finite"
    return None if finite(losses) else "the loss is not finite, although all outputs of the network are"


def _in_gradients(model: Any) -> str | None:
    grads = {name: p.grad for name, p in model.net.named_parameters()}
    names = [name for name, grad in grads.items() if grad is not None and not finite(local(grad))]
    # the backward pass reaches the last part first
    return f"the gradient of {names[-1]} is not finite" if names else None
