"""The order of a network's weights in memory."""

import torch
from torch import nn

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the axes of a kernel


def channels_last(net: nn.Module) -> None:
    """Kernels in the layout that convolutions are fast in, of images and of volumes."""
    for parameter in net.parameters():
        if parameter.ndim in LAYOUTS:
            parameter.data = parameter.data.contiguous(memory_format=LAYOUTS[parameter.ndim])
