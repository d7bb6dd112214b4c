"""A network with a table of vectors beside it, which are trained and kept as its weights are."""

from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from ..errors import SfumatoError
from ..registry import register
from ..trees import tree


@register("network", "Codebook")
class Codebook(nn.Module):
    """The network `net`, called as it is, and `codebook.weight` (symbols, dim), one vector a symbol.

    `process.Embedded(codebook="learned")` takes the vectors from here and normalises them. They are normal at first.
    """

    def __init__(self, net: nn.Module, symbols: int, dim: int) -> None:
        super().__init__()
        self.net, self.codebook = net, nn.Embedding(symbols, dim)
        with suppress(SfumatoError):  # a network without a config leaves this one without a config too
            self.config = {"name": "Codebook", "args": {"net": tree(net), "symbols": symbols, "dim": dim}}

    def __getattr__(self, name: str) -> Any:
        """What else a network says of itself: shape, outputs, takes_symbols."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = self.net(*args, **kwargs)
        return found
