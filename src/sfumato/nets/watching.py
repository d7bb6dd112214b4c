"""Look at the outputs of a network's parts while it computes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def watched(net: nn.Module, look: Callable[[str, Any], None]) -> Iterator[None]:
    """Within the block look(name, output) is called after each part of the network; parts before what holds them."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, given, out: look(name, out)

    handles = [module.register_forward_hook(hook(name or "the network")) for name, module in net.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
