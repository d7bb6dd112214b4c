"""Loss weights as functions of logsnr: loss = 1/2 int w(logsnr) E|eps - eps_hat|^2 dlogsnr.

Stated in logsnr a weight does not change with the schedule, the target or the time density.
Source: Kingma and Gao 2023 (2303.00848), Table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Weight = Callable[[Tensor], Tensor]


def elbo() -> Weight:
    """w = 1: the evidence lower bound (2107.00630); likelihood weighting g^2 (2101.09258)."""
    return torch.ones_like


def eps_simple() -> Weight:
    """w = sech(logsnr/2): DDPM's simple loss under the cosine schedule (2006.11239, 2102.09672)."""
    return lambda lam: 1 / torch.cosh(lam / 2)


def v() -> Weight:
    """w = exp(-logsnr/2): v-prediction with cosine, flow matching with uniform t (2202.00512, 2210.02747)."""
    return lambda lam: torch.exp(-lam / 2)


flow = v  # METHODS' dictionary: the same weight under two names


def x_simple() -> Weight:
    """w = exp(-logsnr) sech(logsnr/2): plain x-prediction with cosine."""
    return lambda lam: torch.exp(-lam) / torch.cosh(lam / 2)


def edm(sigma_data: float = 0.5, mean: float = -1.2, std: float = 1.2) -> Weight:
    """w = N(logsnr; -2 mean, 4 std^2) (exp(-logsnr) + sigma_data^2) / sigma_data^2 (2206.00364, Table 1)."""

    def weight(lam: Tensor) -> Tensor:
        gauss = torch.exp(-((lam + 2 * mean) ** 2) / (8 * std**2)) / (2 * std * math.sqrt(2 * math.pi))
        return gauss * (torch.exp(-lam) + sigma_data**2) / sigma_data**2

    return weight


def sigmoid(bias: float = 0.0) -> Weight:
    """w = sigmoid(bias - logsnr): VDM++ and SiD2 (2303.00848, 2410.19324); monotone, so an ELBO with augmentation."""
    return lambda lam: torch.sigmoid(bias - lam)
