"""An autoencoder with the data spec: user units in, codes out, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import SfumatoError
from sfumato.nets import Autoencoder, GaussianCode
from sfumato.registry import register


@register("model", "Codec")
class Codec(nn.Module):
    """codec.encode(x) -> y, codec.decode(y) -> x, in the user's units and dtype if there is a spec.

    net: an `Autoencoder` of normalised data. spec: a `data.DataSpec`; None works on plain tensors.
    It trains like any other model: `fit(codec, x, config, loss=Autoencoding())`.
    """

    def __init__(self, net: Autoencoder, spec: Any = None) -> None:
        super().__init__()
        if spec is not None and tuple(spec.shape) != net.shape:
            raise SfumatoError(f"The data have shape {tuple(spec.shape)}, but the autoencoder expects {net.shape}.")
        self.net, self.spec = net, spec
        self.provenance: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return self.net.log_variance.device

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.net.shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one code."""
        return self.net.latent_shape

    def normalise(self, x: Tensor) -> Tensor:
        """Data in user units as network inputs, on its device."""
        return (x.float() if self.spec is None else self.spec.normalise(x)).to(self.device)

    def encode(self, x: Tensor) -> Tensor:
        """The code (B, *latent_shape) of x (B, *shape): its mean (KL), or the nearest codebook vectors (VQ)."""
        code = self.net.encode(self.normalise(x))
        return code.mean if isinstance(code, GaussianCode) else code.value

    def codes(self, x: Tensor) -> Tensor:
        """The indices of the nearest codebook vectors, int64 (B, *grid), for a VQ bottleneck."""
        code = self.net.encode(self.normalise(x))
        if isinstance(code, GaussianCode):
            raise SfumatoError("Only an autoencoder with bottleneck='vq' has code indices; this one has 'kl'.")
        return code.codes

    def decode(self, y: Tensor) -> Tensor:
        """The mean of x given a code (B, *latent_shape), or given code indices (int64)."""
        if not y.is_floating_point():
            if self.net.quantiser is None:
                raise SfumatoError("Integers are code indices, which need bottleneck='vq'; this autoencoder has 'kl'.")
            y = self.net.quantiser.look_up(y)
        x = self.net.decode(y)
        return x if self.spec is None else self.spec.denormalise(x)

    def forward(self, x: Tensor) -> Tensor:
        """decode(encode(x))."""
        return self.decode(self.encode(x))
