"""Observe a network's modules: their tensors while they are made, their outputs while they run."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from ..errors import SfumatoError


@contextmanager
def registered_within(count: int, elements: int) -> Iterator[None]:
    """Within the block, raise SfumatoError once this thread's new modules have more tensors or elements than that.

    A tensor counts when it is registered, before most modules fill it, so that no memory of that size is touched.
    """
    left, own = [count, elements], threading.get_ident()

    def hook(module: nn.Module, name: str, tensor: Any) -> None:
        if tensor is None or threading.get_ident() != own:
            return
        left[0], left[1] = left[0] - 1, left[1] - tensor.numel()
        if min(left) < 0:
            raise SfumatoError("the network is larger than its weights in the file")

    handles = [register_module_parameter_registration_hook(hook), register_module_buffer_registration_hook(hook)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


class _Seen(Exception):
    """All outputs that were asked for are there."""


def outputs(modules: Sequence[nn.Module], call: Callable[[], Any]) -> list[Any]:
    """The outputs of these modules, in the order of their calls, in a call that ends with the last of them."""
    found: list[Any] = []

    def hook(module: nn.Module, args: Any, out: Any) -> None:
        found.append(out)
        if len(found) == len(modules):
            raise _Seen

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        call()
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found
