"""A control variate for the bound of real numbers: the error of the linear denoiser of N(0, s^2), with known mean.

    value - c (control - its mean),   c by least squares over the other replicates near the level, hence unbiased

Source: Owen 2013, "Monte Carlo theory, methods and examples", Ch. 8.9.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.belief import broadcast


class LinearDenoiser(NamedTuple):
    """The denoiser E[eps|z] of N(0, s^2) data: eps - E[eps|z] = a eps - b x, a = sigmoid(logsnr + 2 log s)."""

    scale: float

    def _row(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) with b = a sigma / (alpha s^2)."""
        a = torch.sigmoid(logsnr + 2 * math.log(self.scale))
        return a, a * torch.exp(-logsnr / 2) / self.scale**2

    def error(self, logsnr: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        """|a eps - b x|^2, (B,)."""
        a, b = self._row(logsnr)
        return (broadcast(a, x) * eps - broadcast(b, x) * x).flatten(1).square().sum(1)

    def mean(self, logsnr: float, x: Tensor) -> Tensor:
        """E|a eps - b x|^2 over eps, (B,)."""
        a, b = (float(v) for v in self._row(torch.tensor(logsnr, dtype=torch.float64)))
        return a**2 * x[0].numel() + b**2 * x.flatten(1).square().sum(1)

    def integral(self, edges: Tensor, x: Tensor) -> Tensor:
        """1/2 int E|eps - E[eps|z]|^2 dlogsnr from -inf to each edge, (B, edges), on the CPU."""
        square, lam = x.flatten(1).square().sum(1)[:, None].cpu(), edges + 2 * math.log(self.scale)
        part = torch.sigmoid(lam)
        noise_part = x[0].numel() * (torch.nn.functional.softplus(lam) - part)
        return 0.5 * (noise_part + square * part / self.scale**2)


def controlled(value: Tensor, control: Tensor, mean: Tensor, window: int) -> Tensor:
    """value - c control, (B, R, K), control of mean 0, c from the least-squares fit value ~ a mean + c control.

    The fit uses the other replicates within `window` strata, so that c is independent of the control it multiplies.
    """

    def others(v: Tensor) -> Tensor:
        rest = v.sum(1, keepdim=True) - v
        reach = min(window, v.shape[2] - 1)
        padded = torch.nn.functional.pad(rest, (reach + 1, reach)).cumsum(2)
        return padded[..., 2 * reach + 1 :] - padded[..., : -2 * reach - 1]

    square, cross, own = others(control.square()), others(control * mean), others(mean.square())
    spread = square * own - cross.square()
    slope = (others(value * control) * own - others(value * mean) * cross) / spread.clamp_min(1e-300)
    return value - torch.where(spread > 1e-9 * square * own, slope, 0.0) * control
