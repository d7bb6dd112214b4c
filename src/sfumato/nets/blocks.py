"""The convolutional parts of a U-Net for two and three spatial axes, NCHW shapes in channels-last memory."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError
from .attention import Tokens, attend

Grid = tuple[int, ...]  # the size of each spatial axis


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with up to 32 groups, of 32 channels or more where there are that many."""
    return nn.GroupNorm(next(g for g in range(min(32, max(1, channels // 32)), 0, -1) if channels % g == 0), channels)


def halved(grid: Grid) -> Grid:
    """The next coarser grid: ceil(n / 2) for axes of n >= 4; shorter axes keep their size."""
    return tuple(-(-n // 2) if n >= 4 else n for n in grid)


class Conv3d(nn.Conv3d):
    """nn.Conv3d that runs inputs of depth 2 in float32 on a CPU, where the bfloat16 gradient of the kernel is
    uninitialised memory (oneDNN in torch 2.13, 3 taps, AVX512)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.shape[2] == 2 and self.kernel_size[0] == 3:
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


def conv(inputs: int, outputs: int, grid: Grid, coarse: Grid | None = None) -> nn.Module:
    """A convolution of 3 taps along each axis of `grid` (1 for axes of size 1), stride 2 where `coarse` is smaller."""
    kernel = tuple(3 if n > 1 else 1 for n in grid)
    stride = tuple(1 if n == m else 2 for n, m in zip(grid, coarse or grid, strict=True))
    padding = tuple(k // 2 for k in kernel)
    kind: Callable[..., nn.Module] = nn.Conv2d if len(grid) == 2 else Conv3d
    return kind(inputs, outputs, kernel, stride=stride, padding=padding)


class Pointwise(nn.Module):
    """A 1x1 convolution as a linear layer over the channels, which always keeps the channels-last layout."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)


def zero(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Block(nn.Module):
    """x <- skip(x) + W2 silu((1 + s) GN(W1 silu(GN(x))) + b), (s, b) the modulation (or 0), W2 = 0 initially."""

    def __init__(self, inputs: int, outputs: int, grid: Grid, dropout: float) -> None:
        super().__init__()
        self.outputs = outputs
        self.norm1, self.conv1 = group_norm(inputs), conv(inputs, outputs, grid)
        self.norm2, self.conv2 = group_norm(outputs), zero(conv(outputs, outputs, grid))
        self.dropout = nn.Dropout(dropout)
        self.skip = Pointwise(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if modulation is not None:
            scale, shift = modulation.to(h.dtype).reshape(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """x <- x + W softmax(q k^T / sqrt(d)) v over all positions of the grid, with W = 0 initially.

    context: the width of the context tokens that are attended to as well, 0 for none.
    """

    def __init__(self, channels: int, head_dim: int, context: int = 0) -> None:
        super().__init__()
        if channels % min(head_dim, channels):
            raise SfumatoError(f"{channels} channels do not divide into attention heads of {head_dim}")
        self.heads = max(1, channels // head_dim)
        self.norm = group_norm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), zero(nn.Linear(channels, channels))
        self.context = nn.Linear(context, 2 * channels) if context else None

    def forward(self, x: Tensor, tokens: Tokens | None = None) -> Tensor:
        h = self.norm(x).movedim(1, -1)  # channels are last in memory already: a view
        qkv, extra, mask = self.qkv(h.flatten(1, -2)), None, None
        if self.context is not None and tokens is not None:
            extra, mask = self.context(tokens.values), tokens.behind(qkv.shape[1])
        y = self.out(attend(qkv, self.heads, extra, mask))
        return x + y.reshape(h.shape).movedim(-1, 1)


class Stage(nn.Module):
    """A residual block, then attention (or the identity)."""

    def __init__(self, block: Block, attention: nn.Module) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, modulation: Tensor, context: Tokens | None = None) -> Tensor:
        h = self.block(x, modulation)
        return (
            self.attention(h)
            if context is None or isinstance(self.attention, nn.Identity)
            else self.attention(h, context)
        )
