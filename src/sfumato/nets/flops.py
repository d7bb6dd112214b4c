"""The work of a network."""

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..errors import SfumatoError
from .autoencoder import Autoencoder


class _Count(TorchDispatchMode):
    """Adds up torch's own formulas of the operations that run; its `FlopCounterMode` fails inside an `Energy`."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # torch asks; the answer True imports its compiler, which takes seconds
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def flops(net: nn.Module) -> int:
    """The floating-point operations of one call on one sample: 2 m n k of each matrix product (m, k) x (k, n).

    Counted while a call runs, of products, convolutions and attention, which are nearly all; conditions are absent.
    A training step costs about three times as much a sample, four times where activations are computed again.
    Raises SfumatoError for a network that does not say its `shape`.
    """
    shape = getattr(net, "shape", None)
    if shape is None:
        raise SfumatoError(
            f"{type(net).__name__} has no attribute shape, the shape of a sample that it is called with."
        )
    weight = next(net.parameters())
    symbols = getattr(net, "takes_symbols", False)
    x = torch.zeros(1, 1, shape[1], dtype=torch.int64) if symbols else torch.zeros(1, *shape, dtype=weight.dtype)
    x, level = x.to(weight.device), torch.zeros(1, device=weight.device)
    inputs = (x,) if isinstance(net, Autoencoder) else (x, level)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Count() as count:
        net(*inputs)
    return count.total
