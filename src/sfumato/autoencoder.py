"""An autoencoder with its data's contract: user units in, codes out, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.nets import Autoencoder, GaussianCode
from sfumato.registry import register


@register("model", "Codec")
class Codec(nn.Module):
    """codec.encode(x) -> y, codec.decode(y) -> x, in the user's units and dtype where there is a spec.

    net: an `Autoencoder` of normalised data. spec: the data's contract (`data.DataSpec`); None works in plain tensors.
    For the loop a model as any other: `fit(codec, x, config, loss=Autoencoding())`.
    """

    def __init__(self, net: Autoencoder, spec: Any = None) -> None:
        super().__init__()
        if spec is not None and tuple(spec.shape) != net.shape:
            raise SfumatoError(f"The data have shape {tuple(spec.shape)} and the autoencoder {net.shape}.")
        self.net, self.spec = net, spec
        self.provenance: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return self.net.log_variance.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.net.shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one code."""
        return self.net.latent_shape

    def normalise(self, x: Tensor) -> Tensor:
        """What the network sees of data in user units, on its device."""
        return (x.float() if self.spec is None else self.spec.normalise(x)).to(self.device)

    def encode(self, x: Tensor) -> Tensor:
        """The code (B, *latent_shape) of x (B, *shape): its mean, or the nearest vectors of the codebook."""
        code = self.net.encode(self.normalise(x))
        return code.mean if isinstance(code, GaussianCode) else code.value

    def codes(self, x: Tensor) -> Tensor:
        """The numbers of the nearest vectors, int64 (B, *places): what a VQ bottleneck keeps of x."""
        code = self.net.encode(self.normalise(x))
        if isinstance(code, GaussianCode):
            raise SfumatoError("Only an autoencoder with bottleneck='vq' has numbered codes; this one has 'kl'.")
        return code.codes

    def decode(self, y: Tensor) -> Tensor:
        """The mean of x given a code (B, *latent_shape), or given the numbers of codes (int64)."""
        if not y.is_floating_point():
            if self.net.quantiser is None:
                raise SfumatoError("Whole numbers are codes of an autoencoder with bottleneck='vq'; this one has none.")
            y = self.net.quantiser.look_up(y)
        x = self.net.decode(y)
        return x if self.spec is None else self.spec.denormalise(x)

    def forward(self, x: Tensor) -> Tensor:
        """decode(encode(x))."""
        return self.decode(self.encode(x))
