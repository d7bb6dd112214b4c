"""Stationary Gaussian fields on the torus: a Gaussian with a covariance that the Fourier transform diagonalises.

    P(f) ~ f^-power,   E[x|z] = mean + F^-1 [alpha P / (alpha^2 P + sigma^2)] F (z - alpha mean)

The denoiser is the Wiener filter. Source: Wiener 1949.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.exact.basis import Hartley
from sfumato.exact.mixture import Components, GaussianSum


@final
class GaussianField(GaussianSum):
    """A Gaussian field of `shape` with a power-law spectrum; natural images have power near 2.

    shape: channels first, such as (H, W) or (C, H, W); its last `space` dimensions (at most) are a torus, channels are
    independent copies. power: the exponent of P(f) ~ f^-power in f = |(f_1, .., f_n)|, cycles per pixel; the zero
    frequency gets the power of the lowest other one. mean: a number or a tensor that broadcasts to shape. std: of each
    element. Source: van der Schaaf and van Hateren 1996, "Modelling the power spectra of natural images".
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        power: float = 2.0,
        mean: Tensor | float = 0.0,
        std: float = 1.0,
        space: int = 2,
    ) -> None:
        shape = tuple(shape)
        if not shape or min(shape) < 1 or space < 1 or std < 0:
            raise SfumatoError(f"A field needs positive sizes, space >= 1 and std >= 0; got {shape}, {space}, {std}.")
        space = min(space, len(shape))
        self.power, self.std, self.space = float(power), float(std), space
        self.frequency = radial_frequency(shape[-space:])
        power_law = self.frequency.clamp_min(1 / max(shape[-space:])) ** -self.power
        self.spectrum = std**2 * power_law / power_law.mean()
        centre = torch.as_tensor(mean, dtype=torch.float64).expand(shape)
        parts = Components(
            centre.reshape(1, -1).clone(),
            self.spectrum.expand(shape).reshape(1, -1).clone(),
            Hartley(shape, space),
        )
        super().__init__(parts, shape, torch.ones(1))

    def power_spectrum(self, x: Tensor) -> Tensor:
        """|FFT(x - mean)|^2 / N for fields x (B, *shape), in the layout of `spectrum` (the shape of the torus)."""
        dims = tuple(range(-self.space, 0))
        centred = x.to(torch.float64) - self.mean.to(x.device).reshape(self.shape)
        return torch.fft.fftn(centred, dim=dims, norm="ortho").abs() ** 2

    def noised_spectrum(self, alpha: float, sigma: float) -> Tensor:
        """alpha^2 P + sigma^2, in the layout of `spectrum`: noise dominates beyond the frequency of equal terms."""
        return alpha**2 * self.spectrum + sigma**2


def radial_frequency(space: tuple[int, ...]) -> Tensor:
    """|f| in cycles per pixel on the FFT grid of a torus, float64, shape `space`."""
    axes = torch.meshgrid(*(torch.fft.fftfreq(n, dtype=torch.float64) for n in space), indexing="ij")
    return torch.stack(axes).square().sum(0).sqrt()
