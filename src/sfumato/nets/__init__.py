"""Networks for vectors, sequences, images and volumes. They know nothing of diffusion.

Each is called as `net(x, noise_level, label=None) -> y`: x and y (B, *shape), noise_level (B,) roughly in [-5, 5],
label int64 (B,) with -1 (or no label at all) for the null class. The output is zero at first. `net.config` is plain
JSON, and `from_config` makes the network from it.
"""

from .build import build, from_config
from .dit import DiT
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "DiT", "UNet", "build", "from_config"]
