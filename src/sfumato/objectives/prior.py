"""The prior term L_T of the variational bound: what is lost where z_1 still knows of x.

    L_T = KL(q(z_1 | x) || N(0, s^2 I)) = 1/2 [alpha_1^2 |x|^2 / s^2 + d (sigma_1^2 / s^2 - 1 - log(sigma_1^2 / s^2))]

s = 1 is the prior of the variance-preserving papers; this library samples from s = sigma(1) on every schedule
(`Gaussian.prior`), where L_T = 1/2 snr(1) |x|^2. Zero terminal SNR (`schedules.zero_terminal_snr`) makes it 0.
Sources: Ho et al. 2020 (2006.11239), Eq. 5; Lin et al. 2023 (2305.08891), Sec. 2 and 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.process import Gaussian


def prior_kl(process: Gaussian, x: Tensor, std: float | None = None) -> Tensor:
    """KL(q(z_1 | x) || N(0, std^2 I)) in nats, float64 (B,), for normalised data x (B, ...).

    std: of the prior; sigma(1) by default, what `sample` starts from. Raises for a std that is not positive and finite.
    """
    if std is not None and not 0 < std < math.inf:
        raise SfumatoError(f"The prior's standard deviation must be positive and finite, not {std:g}.")
    alpha, sigma = process.schedule(1.0)
    scale = sigma if std is None else torch.full_like(sigma, std)
    square = x.flatten(1).to(torch.float64).square().sum(1)
    ratio = (sigma / scale) ** 2
    spread = math.prod(x.shape[1:]) * (ratio - 1 - ratio.log())
    return 0.5 * ((alpha / scale).to(square.device) ** 2 * square + spread.to(square.device))
