"""The memory layout of a network's weights."""

import torch
from torch import nn

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes of a kernel


def channels_last(net: nn.Module) -> None:
    """Convert the convolution kernels of images and volumes to channels-last memory, where they run faster."""
    for parameter in net.parameters():
        if parameter.ndim in LAYOUTS:
            parameter.data = parameter.data.contiguous(memory_format=LAYOUTS[parameter.ndim])
