"""Networks for vectors, sequences, images, volumes and text. None of them depends on diffusion.

Each is called as `net(x, noise_level, label=None) -> y`: x and y (B, *shape), noise_level (B,) roughly in [-5, 5],
label int64 (B,) with -1 (or no label at all) for the null class. Further conditions are keyword arguments, plain
tensors; `present` maps a condition's name to a mask, bool (B,), of the samples where it is known (default: all).
The output is zero at initialisation. `net.config` is plain JSON, and `from_config` rebuilds the network from it.
An `Autoencoder` has `encode` and `decode` instead.
"""

from .autoencoder import Autoencoder
from .bottleneck import Bottleneck
from .build import SIZES, build, from_config, named
from .captioned import Captioned
from .classifier import ClassifierNet
from .codebook import Codebook
from .codes import GaussianCode, QuantisedCode, VectorQuantiser
from .dit import DiT
from .energy import Energy
from .mlp import MLP
from .transformer import Transformer
from .unet import UNet

__all__ = [
    "MLP", "SIZES", "Autoencoder", "Bottleneck", "Captioned", "ClassifierNet", "Codebook", "DiT", "Energy",
    "GaussianCode", "QuantisedCode", "Transformer", "UNet", "VectorQuantiser", "build", "from_config", "named",
]  # fmt: skip
