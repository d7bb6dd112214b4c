"""A network that names the class of a sample: any network of this package below a linear layer."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SfumatoError
from ..registry import register
from ..trees import tree
from .build import build


@register("network", "ClassifierNet")
class ClassifierNet(nn.Module):
    """net(x, noise_level) -> logits (B, classes) = W flatten(f(x, noise_level)) + b, f: x (B, *shape) -> (B, *shape).

    net: the network f, without conditions. Raises SfumatoError for fewer than two classes.
    """

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise SfumatoError(f"A classifier needs two classes or more, got {classes}.")
        self.net, self.shape = net, tuple(net.shape)  # type: ignore[arg-type]
        self.head = nn.Linear(int(torch.Size(self.shape).numel()), classes)
        with suppress(SfumatoError):  # a network without a config leaves this one without a config too
            self.config = {"name": "ClassifierNet", "args": {"net": tree(net), "classes": classes}}

    def forward(self, x: Tensor, noise_level: Tensor, /) -> Tensor:
        logits: Tensor = self.head(self.net(x, noise_level).flatten(1).to(self.head.weight.dtype))
        return logits


@register("network", "classifier")
def classifier(
    shape: Sequence[int], classes: int, size: str = "auto", samples: int | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> ClassifierNet:  # fmt: skip
    """The classifier of samples of `shape`; `size` as for `build`. Its only condition is what it is to find."""
    return ClassifierNet(build(shape, 0, size, samples), classes)
