"""Observe the outputs of a network's modules while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def watched(net: nn.Module, look: Callable[[str, Any], None]) -> Iterator[None]:
    """Within the block, call look(name, output) after each module's forward pass; children come before parents."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, out: look(name, out)

    handles = [module.register_forward_hook(hook(name or "the network")) for name, module in net.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
