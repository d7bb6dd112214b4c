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
from .couplings import Couplings
from .dit import DiT
from .energy import Energy
from .flops import flops
from .forward_mode import forward_mode
from .lora import Adapted
from .mlp import MLP
from .painted import Painted
from .rin import RIN
from .transformer import Transformer
from .unet import UNet
from .uvit import UViT

__all__ = [
    "MLP", "RIN", "SIZES", "Adapted", "Autoencoder", "Bottleneck", "Captioned", "ClassifierNet", "Codebook",
    "Couplings", "DiT", "Energy", "GaussianCode", "Painted", "QuantisedCode", "Transformer", "UNet", "UViT",
    "VectorQuantiser", "build", "flops", "forward_mode", "from_config", "named",
]  # fmt: skip
