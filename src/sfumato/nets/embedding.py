"""What a network is told besides its input: the noise level and the class, as one vector a sample."""

import math

import torch
from torch import Tensor, nn

from ..errors import SfumatoError

# Angular frequencies per unit of noise level. The level spans about [-5, 5]: the lowest turns less than half a circle
# over that span, so no two levels share their features; the highest tells levels apart that differ by a few hundredths.
LOWEST, HIGHEST = 0.25, 16.0


def noise_features(noise_level: Tensor, count: int) -> Tensor:
    """[sin(w_k c), cos(w_k c)] for geometric w_k: (B,) -> (B, count), float32 at least whatever autocast says.

    The frequencies are computed at each call and are no buffer, which `module.half()` would round.
    """
    if count < 4 or count % 2:
        raise SfumatoError(f"noise features come in sine and cosine pairs, at least two: {count} is not possible")
    with torch.autocast(noise_level.device.type, enabled=False):
        level = noise_level.to(torch.promote_types(noise_level.dtype, torch.float32))
        steps = torch.arange(count // 2, dtype=level.dtype, device=level.device) / (count // 2 - 1)
        angle = level[:, None] * (LOWEST * torch.exp(steps * math.log(HIGHEST / LOWEST)))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class Conditioning(nn.Module):
    """silu(MLP(features(noise_level)) + E[label + 1]): the vector (B, dim) that modulates every block.

    Row 0 of E is the null class, which stands for label -1 and for no label at all. The noise features and their MLP
    run in the precision of the weights, outside autocast: a noise level rounded to bfloat16 is another noise level.
    """

    def __init__(self, dim: int, classes: int = 0, features: int = 128) -> None:
        super().__init__()
        if classes < 0:
            raise SfumatoError(f"a network cannot have {classes} classes: give 0 for none")
        self.classes, self.features = classes, features
        self.first, self.second = nn.Linear(features, dim), nn.Linear(dim, dim)
        self.label = nn.Embedding(classes + 1, dim) if classes else None

    def forward(self, noise_level: Tensor, label: Tensor | None, batch: int) -> Tensor:
        if noise_level.ndim > 1 or noise_level.numel() not in (1, batch):
            raise SfumatoError(f"noise_level has shape {tuple(noise_level.shape)}; expected ({batch},), one a sample")
        with torch.autocast(noise_level.device.type, enabled=False):
            features = noise_features(noise_level.reshape(-1).expand(batch), self.features)
            vector = self.second(nn.functional.silu(self.first(features.to(self.first.weight.dtype))))
            if label is not None:
                self._check(label, batch)
            if self.label is not None:
                row = noise_level.new_zeros(batch, dtype=torch.long) if label is None else label.long() + 1
                vector = vector + self.label(row)
            return nn.functional.silu(vector)

    def _check(self, label: Tensor, batch: int) -> None:
        if label.shape != (batch,) or label.is_floating_point():
            raise SfumatoError(
                f"label has shape {tuple(label.shape)} and dtype {label.dtype}; expected ({batch},) integers"
            )
        # Reading values back from an accelerator would stall it, and inside a compiled graph break it.
        if label.device.type != "cpu" or torch.compiler.is_compiling() or label.numel() == 0:
            return
        low, high = int(label.min()), int(label.max())
        if low < -1 or high >= self.classes:
            known = f"0 to {self.classes - 1}, or -1 for none" if self.classes else "only -1: it has no classes"
            raise SfumatoError(f"label {low if low < -1 else high} is not a class of this network, which knows {known}")
