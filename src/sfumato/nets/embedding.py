"""Fourier features of scalars (the noise level, scalar conditions, noisy numbers): a network resolves close values."""

import math

import torch
from torch import Tensor

from ..errors import SfumatoError

# Angular frequencies per unit of noise level. The level spans about [-5, 5]: the lowest frequency covers less than half
# a circle over that span, so no two levels share their features; the highest resolves differences of a few hundredths.
LOWEST, HIGHEST = 0.25, 16.0
_HIDDEN = 12.0  # -log(snr) from which no frequency shows anything


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


# Angular frequencies of numbers of variance 1: the lowest turns once within six deviations, the highest within a fifth.
NUMBER_FREQUENCIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def number_features(u: Tensor, level: Tensor) -> Tensor:
    """e^(-w^2 r^2 / 2) [sin(w z / alpha), cos(w z / alpha)],   r = sigma / alpha,   z / alpha = u (1 + r^2)^(1/2)

    The mean of [sin(w x), cos(w x)] over all x that z = alpha x + sigma eps may come from, each as likely as any other:
    what the noise hides from a frequency is 0 instead of noise. u: noisy numbers (B, n), scaled as networks get them;
    level: (B, n) or (B, 1), that of networks, log(r) / 4. Returns (B, 2 n K) for K frequencies, in the precision of u.
    Source: the integrated positional encoding of Barron et al. 2021 (2103.13415), Eq. 13.
    """
    w = torch.tensor(NUMBER_FREQUENCIES, dtype=u.dtype, device=u.device)
    ratio = (8 * level.to(u.dtype)).clamp(max=_HIDDEN).exp()[:, :, None]
    angle = w * (u[:, :, None] * (1 + ratio).sqrt())
    return ((-0.5 * w**2 * ratio).exp()[..., None] * torch.stack([angle.sin(), angle.cos()], -1)).flatten(1)
