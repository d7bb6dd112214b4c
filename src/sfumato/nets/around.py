"""A network around another one, called as it is."""

from typing import Any

from torch import Tensor, nn


class Around(nn.Module):
    """The network `net`, called as it is; other attributes (shape, outputs, takes_symbols ..) are those of `net`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = self.net(*args, **kwargs)
        return found
