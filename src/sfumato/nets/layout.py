"""The order of a network's weights in memory."""

import torch
from torch import nn


def channels_last(net: nn.Module) -> None:
    """Kernels in the layout that convolutions are fast in, of images and of volumes."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in net.parameters():
        if parameter.ndim in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.ndim])
