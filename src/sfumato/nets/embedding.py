"""Fourier features of scalars (the noise level, scalar conditions), so that a network resolves close values."""

import math

import torch
from torch import Tensor

from ..errors import SfumatoError

# Angular frequencies per unit of noise level. The level spans about [-5, 5]: the lowest frequency covers less than half
# a circle over that span, so no two levels share their features; the highest resolves differences of a few hundredths.
LOWEST, HIGHEST = 0.25, 16.0


def sines(value: Tensor, count: int) -> Tensor:
    """[sin(w_k c), cos(w_k c)] for geometric w_k: (B,) -> (B, count), in the precision of `value`.

    The frequencies are computed at each call, not stored in a buffer, which `module.half()` would round.
    """
    if count < 4 or count % 2:
        raise SfumatoError(f"the number of noise features must be even and at least 4; got {count}")
    with torch.autocast(value.device.type, enabled=False):
        steps = torch.arange(count // 2, dtype=value.dtype, device=value.device) / (count // 2 - 1)
        angle = value[:, None] * (LOWEST * torch.exp(steps * math.log(HIGHEST / LOWEST)))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


def noise_features(noise_level: Tensor, count: int) -> Tensor:
    """The Fourier features of a noise level, in at least float32 even under autocast."""
    return sines(noise_level.to(torch.promote_types(noise_level.dtype, torch.float32)), count)
