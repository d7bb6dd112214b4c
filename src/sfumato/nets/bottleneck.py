"""An autoencoder used as a denoiser's network: an encoder, a code of any length and a decoder."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import SfumatoError
from ..registry import register
from .autoencoder import VectorMap
from .fields import check_input


@register("network", "Bottleneck")
class Bottleneck(nn.Module):
    """net(x) = decode(encode(x)): x and y (B, *shape), through a code (B, code).

    Args: `shape` of a sample, any; `code`, the length of the code, smaller or larger than x; `widths` of the hidden
    layers of the encoder, reversed for the decoder; none for linear maps. `outputs` is always 1.
    The noise level and conditions are accepted and ignored: a denoising autoencoder of one level does not need them.
    The output is zero at initialisation.
    Raises SfumatoError for sizes that are not positive or an x of another shape.
    """

    def __init__(self, shape: Sequence[int], code: int, widths: Sequence[int] = (256,)) -> None:
        super().__init__()
        self.shape, self.outputs = tuple(int(n) for n in shape), 1
        if not self.shape or min(*self.shape, code, *widths) < 1:
            raise SfumatoError(f"Bottleneck needs positive sizes; got shape {self.shape}, code {code}, widths {widths}")
        self.config = {"name": "Bottleneck", "args": {"shape": list(self.shape), "code": code, "widths": list(widths)}}
        size = math.prod(self.shape)
        self.encoder, self.decoder = VectorMap(size, code, widths), VectorMap(code, size, widths[::-1])
        nn.init.zeros_(self.decoder.output.weight)
        nn.init.zeros_(self.decoder.output.bias)

    def encode(self, x: Tensor) -> Tensor:
        """The code of x, (B, code)."""
        check_input(x, self.shape)
        return self.encoder(x.flatten(1).to(self.encoder.output.weight.dtype)).to(x.dtype)

    def decode(self, code: Tensor) -> Tensor:
        """The reconstruction from a code, (B, *shape)."""
        y = self.decoder(code.to(self.decoder.output.weight.dtype)).to(code.dtype)
        return y.reshape(-1, *self.shape)

    def forward(
        self, x: Tensor, noise_level: Tensor | None = None, /, label: Tensor | None = None, **cond: Tensor
    ) -> Tensor:
        return self.decode(self.encode(x))
