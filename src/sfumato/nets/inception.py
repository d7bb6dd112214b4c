"""Inception-v3 up to its last pooling, as the FID is defined by it, forward only (Szegedy et al. 2015, 1512.00567).

The names of its tensors are those of the published files. Other than in the paper, the network of the FID (Heusel et
al. 2017, 1706.08500; TensorFlow's of 2015-12-05) averages without the padding in its pools of 3 x 3, and takes the
maximum in that of its last block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FORK = (0, 0)  # the kernel of a step that ends in two convolutions of one input, 1 x 3 ("a") and 3 x 1 ("b")
_POOL = "branch_pool"  # a 3 x 3 pool before its convolution
Branches = Mapping[str, Sequence[tuple[int, tuple[int, int]]]]  # name -> (channels, kernel) of each convolution


def _square(*steps: tuple[int, int]) -> list[tuple[int, tuple[int, int]]]:
    return [(channels, (kernel, kernel)) for channels, kernel in steps]


def _a(pool: int) -> Branches:
    return {
        "branch1x1": _square((64, 1)),
        "branch5x5": _square((48, 1), (64, 5)),
        "branch3x3dbl": _square((64, 1), (96, 3), (96, 3)),
        _POOL: _square((pool, 1)),
    }


def _c(inner: int) -> Branches:
    row, column = (1, 7), (7, 1)
    return {
        "branch1x1": _square((192, 1)),
        "branch7x7": [(inner, (1, 1)), (inner, row), (192, column)],
        "branch7x7dbl": [(inner, (1, 1)), (inner, column), (inner, row), (inner, column), (192, row)],
        _POOL: _square((192, 1)),
    }


# Blocks without a pooled branch halve the sides: the last convolution of each branch, and a maximum beside them.
_B: Branches = {"branch3x3": _square((384, 3)), "branch3x3dbl": _square((64, 1), (96, 3), (96, 3))}
_D: Branches = {
    "branch3x3": _square((192, 1), (320, 3)),
    "branch7x7x3": [(192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3))],
}
_E: Branches = {
    "branch1x1": _square((320, 1)),
    "branch3x3": [(384, (1, 1)), (384, FORK)],
    "branch3x3dbl": [(448, (1, 1)), (384, (3, 3)), (384, FORK)],
    _POOL: _square((192, 1)),
}
_BLOCKS = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _B, "Mixed_6b": _c(128),
    "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": _D, "Mixed_7b": _E, "Mixed_7c": _E,
}  # fmt: skip
_LAST = "Mixed_7c"
# name: (channels, kernel, stride, padding); after these two a maximum over 3 x 3 halves the sides
_STEM = {
    "Conv2d_1a_3x3": (32, 3, 2, 0), "Conv2d_2a_3x3": (32, 3, 1, 0), "Conv2d_2b_3x3": (64, 3, 1, 1),
    "Conv2d_3b_1x1": (80, 1, 1, 0), "Conv2d_4a_3x3": (192, 3, 1, 0),
}  # fmt: skip
_HALVED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")


class Inception(nn.Module):
    """x (B, 3, 299, 299) in [-1, 1] -> (B, 2048), the means over the last 8 x 8 places; other sides from 75 do, too."""

    features = 2048

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for name, (outer, kernel, stride, padding) in _STEM.items():
            self.add_module(name, _Conv(channels, outer, (kernel, kernel), stride, (padding, padding)))
            channels = outer
        for name, branches in _BLOCKS.items():
            block = Block(channels, branches, largest=name == _LAST)
            self.add_module(name, block)
            channels = block.channels

    def forward(self, x: Tensor) -> Tensor:
        for name in _STEM:
            x = self.get_submodule(name)(x)
            x = F.max_pool2d(x, 3, 2) if name in _HALVED else x
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


class Block(nn.Module):
    """Branches of convolutions of one input, their channels one after the other. largest: pool by the maximum."""

    def __init__(self, inner: int, branches: Branches, largest: bool = False) -> None:
        super().__init__()
        self.largest, self.halves = largest, _POOL not in branches
        self.chains: list[tuple[str, list[list[str]]]] = []
        self.channels = inner if self.halves else 0
        for branch, steps in branches.items():
            chain, channels = [], inner
            for i, (outer, kernel) in enumerate(steps, 1):
                name = f"{branch}_{i}" if len(steps) > 1 else branch
                stride = 2 if self.halves and i == len(steps) else 1
                parts = {f"{name}a": (1, 3), f"{name}b": (3, 1)} if kernel == FORK else {name: kernel}
                for part, size in parts.items():
                    padding = (0, 0) if stride == 2 else (size[0] // 2, size[1] // 2)
                    self.add_module(part, _Conv(channels, outer, size, stride, padding))
                chain.append(list(parts))
                channels = outer * len(parts)
            self.chains.append((branch, chain))
            self.channels += channels

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch, chain in self.chains:
            h = x if branch != _POOL else self._pooled(x)
            for names in chain:
                h = torch.cat([self.get_submodule(name)(h) for name in names], 1)
            found.append(h)
        return torch.cat([*found, F.max_pool2d(x, 3, 2)] if self.halves else found, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 1, 1) if self.largest else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _Conv(nn.Module):
    """relu(norm(w * x)), the norm by the moments of training."""

    def __init__(self, inner: int, outer: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))
