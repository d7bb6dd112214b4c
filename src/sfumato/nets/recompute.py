"""Activations that are computed again in the backward pass instead of being stored."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def call(block: Callable[..., Any], again: bool, *args: Any) -> Any:
    """block(*args); if `again`, only the arguments are stored, and the backward pass calls the block a second time.

    The gradients are the same, the memory of a network of n equal blocks falls from n blocks to one and n inputs, and a
    training step costs a third more. Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """
    if again and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False)
    return block(*args)
