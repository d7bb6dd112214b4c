"""Vectors before a network of fields: each also paints a canvas, as captions do (`Captioned`).

An embedding that only modulates channels has to make what a picture looks like on the whole from them; a canvas, which
stands beside the input, says it at each place.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from ..errors import SfumatoError
from ..registry import register
from ..trees import tree
from .captioned import InFront, canvas, painter
from .conditions import Described, presence


def with_canvas(
    conditions: Mapping[str, Mapping[str, Any]], vectors: Sequence[str], painted: Sequence[int]
) -> Described:  # fmt: skip
    """The conditions of the network behind: the same, and of each of `vectors` a canvas of the shape `painted`."""
    return {
        **{name: dict(each) for name, each in conditions.items()},
        **{canvas(name): {"kind": "field", "shape": list(painted)} for name in vectors},
    }


@register("network", "Painted")
class Painted(InFront):
    """net(x, noise_level, label, v=..) -> y: the network `net`, told the vector v (B, d) and a canvas NAME_canvas.

        canvas = W_2 gelu(W_1 v),   (B, C, *spatial), channels beside x; zeros where v is absent

    Args: `net`, a network that hears the conditions `with_canvas(..)`; `sizes`, name -> d of each vector; `painted`,
    the shape (C, *spatial) of a canvas. Raises SfumatoError for a vector of another size.
    """

    def __init__(self, net: nn.Module, sizes: Mapping[str, int], painted: Sequence[int]) -> None:
        super().__init__()
        self.net, self.sizes, self.painted = net, dict(sizes), tuple(painted)
        self.painters = nn.ModuleList(painter(size, self.painted) for size in self.sizes.values())
        with suppress(SfumatoError):  # a network without a config leaves this one without a config too
            args = {"net": tree(net), "sizes": self.sizes, "painted": list(self.painted)}
            self.config = {"name": "Painted", "args": args}

    def forward(
        self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        known = dict(present or {})
        for (name, size), paint in zip(self.sizes.items(), self.painters, strict=True):
            if (value := cond.get(name)) is None:
                continue
            if tuple(value.shape) != (len(x), size):
                raise SfumatoError(
                    f"the condition {name!r} has shape {tuple(value.shape)}; expected ({len(x)}, {size})"
                )
            cond[canvas(name)] = paint(value.to(x.dtype)).unflatten(1, self.painted)
            known[canvas(name)] = presence(name, value, present)
        found: Tensor = self.net(x, noise_level, label, present=known, **cond)
        return found
