"""Halve or double a grid by a filter, without weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError


class Resample(nn.Module):
    """x * f at every second place, or f * x between the places: (B, C, *grid) -> (B, C, *coarse) or back if `up`.

    f is the outer product of the filter along the axes that differ, of sum 1 (2 per axis upwards), so that constants
    stay; the border is repeated. (1, 1) is the average of pairs, upwards the nearest place; (1, 3, 3, 1) is bilinear.
    Source: Karras et al. 2022 (2206.00364), Table 1, `resample filter`. Raises SfumatoError for a filter of odd length,
    or whose sum is 0.
    """

    def __init__(self, grid: Sequence[int], coarse: Sequence[int], taps: Sequence[float], up: bool) -> None:
        super().__init__()
        if len(taps) % 2 or not taps or sum(taps) == 0:
            raise SfumatoError(f"a resampling filter has an even number of taps of sum other than 0, not {list(taps)}")
        self.up, self.target = up, tuple(grid if up else coarse)
        self.halved = [n != m for n, m in zip(grid, coarse, strict=True)]
        self.margin = len(taps) // 2 - 1  # taps beyond the pair itself
        line = torch.tensor(taps, dtype=torch.float64) / sum(taps) * (2 if up else 1)
        kernel = torch.ones(())
        for each in self.halved:
            kernel = kernel[..., None] * (line if each else torch.ones(1))
        self.kernel: Tensor
        self.register_buffer("kernel", kernel.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, rank, margin = x.shape[1], len(self.halved), self.margin
        kernel = self.kernel.to(x.dtype).expand(channels, 1, *self.kernel.shape)
        stride = [1 + each for each in self.halved]
        if self.up:
            beside = math.ceil(margin / 2)
            x = F.pad(x, [n * each for each in reversed(self.halved) for n in (beside, beside)], mode="replicate")
            made = (F.conv_transpose2d if rank == 2 else F.conv_transpose3d)(x, kernel, stride=stride, groups=channels)
            first = 2 * beside + margin
            for axis, (each, size) in enumerate(zip(self.halved, self.target, strict=True), start=2):
                made = made.narrow(axis, first if each else 0, size)
            return made
        sizes = zip(reversed(self.halved), reversed(x.shape[2:]), strict=True)
        x = F.pad(x, [n * each for each, size in sizes for n in (margin, margin + size % 2)], mode="replicate")
        return (F.conv2d if rank == 2 else F.conv3d)(x, kernel, stride=stride, groups=channels)
