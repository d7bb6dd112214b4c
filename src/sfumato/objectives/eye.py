"""The power law of a spectrum, and the weight of noise levels that weighs frequencies as the eye does.

    P(f) = A f^-b,   f_c(lam) = (A e^lam)^(1/b),   w(lam) = CSF(f_c(lam) ppd)^2 e^-lam

Source: Mannos and Sakrison 1974, "The effects of a visual fidelity criterion on the encoding of images".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.objectives.weights import Weight
from sfumato.registry import register

_NYQUIST = 0.5  # cycles per place: finer detail than this a picture does not have


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """P(f) = amplitude f^-exponent, f in cycles per place."""

    exponent: float
    amplitude: float

    def power(self, frequency: Tensor) -> Tensor:
        """P at frequencies."""
        return self.amplitude * frequency**-self.exponent

    def level(self, frequency: Tensor) -> Tensor:
        """The logsnr at which a frequency is as strong as the noise, -log P(f)."""
        return -self.power(frequency).log()

    def cutoff(self, logsnr: Tensor) -> Tensor:
        """The frequency with P(f) = e^-logsnr, the inverse of `level`."""
        return (self.amplitude * logsnr.exp()) ** (1 / self.exponent)


def contrast_sensitivity(r: Tensor) -> Tensor:
    """CSF(r) = 2.6 (0.0192 + 0.114 r) exp(-(0.114 r)^1.1), r in cycles a degree of sight; its largest is 0.98."""
    return 2.6 * (0.0192 + 0.114 * r) * torch.exp(-((0.114 * r) ** 1.1))


def weight_of(wanted: Callable[[Tensor], Tensor], law: PowerLaw) -> Weight:
    """w(lam) = W(f_c(lam)) e^-lam, for a wanted weight W(f) of |x - x_hat|^2 at each frequency f, in cycles per place.

    Beyond f = 0.5 nothing is being written, and W is that of 0.5.
    """
    return lambda lam: wanted(law.cutoff(lam).clamp_max(_NYQUIST)) * torch.exp(-lam)


@register("weight", "eye")
def eye(ppd: float = 32.0, exponent: float = 2.0, amplitude: float = 0.01) -> Weight:
    """w = CSF(f_c ppd)^2 exp(-logsnr): each frequency as the eye sees it from where a degree spans `ppd` places.

    exponent, amplitude: of the spectrum of the normalised data, as `sf.spectra.power(x).fit()` finds them.
    """
    if not min(ppd, exponent, amplitude) > 0:
        raise SfumatoError("The weight eye needs ppd, exponent and amplitude above 0.")
    return weight_of(lambda f: contrast_sensitivity(f * ppd).square(), PowerLaw(exponent, amplitude))
