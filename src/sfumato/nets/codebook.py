"""A network with a table of vectors beside it, which are trained and kept as its weights are."""

from contextlib import suppress

from torch import nn

from ..errors import SfumatoError
from ..registry import register
from ..trees import tree
from .around import Around


@register("network", "Codebook")
class Codebook(Around):
    """The network `net`, called as it is, and `codebook.weight` (symbols, dim), one vector a symbol.

    `process.Embedded(codebook="learned")` takes the vectors from here and normalises them. They are normal at first.
    """

    def __init__(self, net: nn.Module, symbols: int, dim: int) -> None:
        super().__init__(net)
        self.codebook = nn.Embedding(symbols, dim)
        with suppress(SfumatoError):  # a network without a config leaves this one without a config too
            self.config = {"name": "Codebook", "args": {"net": tree(net), "symbols": symbols, "dim": dim}}
