"""Spectra of fields, and what noise levels and loss weights mean in frequency.

    P(f)        mean |c_f|^2 over |frequency| = f, of the orthonormal Fourier transform: white noise of variance 1 has 1
    law         P(f) = A f^-b, f in cycles per place; pictures have b near 2
    cut-off     P(f_c) = e^-logsnr: below f_c a state z is data, above it is noise; f_c = (A e^logsnr)^(1/b)
    meaning     dL/dlog P_f = 1/2 int w(lam) s (1 - s) dlam, s = sigmoid(lam + log P_f): a weight of noise levels is the
                weight of frequencies that it becomes when a logistic at -log P_f smooths it
    inverse     w(lam) = W(f_c(lam)) e^-lam for a wanted weight W of |x - x_hat|^2 at each frequency
    eye         W = CSF(f ppd)^2, CSF(r) = 2.6 (0.0192 + 0.114 r) exp(-(0.114 r)^1.1), r in cycles a degree

Sources: van der Schaaf and van Hateren 1996; Dieleman 2024, "Diffusion is spectral autoregression"; Mannos and Sakrison
1974 for the contrast sensitivity of the eye.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.intervals import Interval, around, student_quantile
from sfumato.metrics.channels import radial_power
from sfumato.noise import PROBE, Noise
from sfumato.objectives.eye import PowerLaw, contrast_sensitivity, weight_of
from sfumato.objectives.weights import Weight, chosen
from sfumato.pictures import save_png
from sfumato.state import numbers_like

__all__ = [
    "PowerLaw", "Spectrum", "Written", "contrast_sensitivity", "meaning", "power", "weight_of", "written",
]  # fmt: skip

_GROUPS = 20
_NODES, _REACH = 801, 20.0  # of the quadrature over lam: s (1 - s) is below e^-20 beyond


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The radially averaged power of n samples, mean over channels; all float64 (R,), at R radii.

    frequency: in cycles per place, up to 0.5. power: P(f). low, high: its 95 % interval over samples. groups: the power
    without each of up to 20 groups of samples, (groups, R), from which fits have their interval.
    """

    frequency: Tensor
    power: Tensor
    low: Tensor
    high: Tensor
    groups: Tensor

    def fit(self) -> tuple[PowerLaw, Interval]:
        """The law A f^-b, and b with its interval: least squares of log P on log f, weighted by f."""
        law, count = _fitted(self.frequency, self.power), len(self.groups)
        others = torch.tensor([_fitted(self.frequency, each).exponent for each in self.groups], dtype=torch.float64)
        stderr = float(((count - 1) / count * (others - others.mean()).square().sum()).sqrt())
        return law, around(law.exponent, stderr, count - 1)


def power(x: Tensor) -> Spectrum:
    """The spectrum of fields x (n, C, *spatial), n at least 2, whose mean over places is left out."""
    if x.ndim < 3 or len(x) < 2:
        raise SfumatoError(f"A spectrum takes at least 2 fields (n, C, *spatial), not a tensor {tuple(x.shape)}.")
    each = torch.cat([radial_power(part.double()).mean(1) for part in x.split(128)])
    n, count = len(each), min(_GROUPS, len(each))
    mean, stderr = each.mean(0), each.std(0) / n**0.5
    half = student_quantile(0.975, n - 1) * stderr
    group = torch.arange(n) * count // n
    groups = torch.stack([each[group != k].mean(0) for k in range(count)])
    radius = torch.arange(1, each.shape[1] + 1, dtype=torch.float64)
    return Spectrum(radius / min(x.shape[2:]), mean, (mean - half).clamp_min(0.0), mean + half, groups)


def _fitted(frequency: Tensor, power: Tensor) -> PowerLaw:
    """The power law by weighted least squares of logarithms."""
    if not bool((power > 0).all()):
        raise SfumatoError("A power law needs power at every frequency, and these samples have none at some.")
    x, y, weight = frequency.log(), power.log(), frequency / frequency.sum()
    dx = x - (weight * x).sum()
    slope = float((weight * dx * y).sum() / (weight * dx.square()).sum())
    return PowerLaw(-slope, float(((weight * y).sum() - slope * (weight * x).sum()).exp()))


def meaning(weight: Weight | str, log_power: Tensor) -> Tensor:
    """dL/dlog P = 1/2 int w(lam) s (1 - s) dlam, s = sigmoid(lam + log P), at each log power, like `log_power`.

    L is the loss with this weight of the optimal denoiser of a Gaussian coefficient of variance P.
    """
    function = chosen(weight)
    if function is None:
        raise SfumatoError("The plain weight is none of noise levels alone: name one, such as 'sigmoid' or 'v'.")
    offset = torch.linspace(-_REACH, _REACH, _NODES, dtype=torch.float64)
    share = torch.sigmoid(offset)
    lam = offset - log_power.to(torch.float64)[..., None]
    return 0.5 * torch.trapezoid(function(lam) * share * (1 - share), offset, dim=-1)


class Written(NamedTuple):
    """error: E|eps - eps_hat|^2 over that of the Wiener filter, at each level and band, (L, R); logsnr (L,); frequency
    (R,), cycles per place; cutoff: f_c of each level by the fitted law, (L,)."""

    logsnr: Tensor
    frequency: Tensor
    error: Tensor
    cutoff: Tensor

    def save(self, path: str | os.PathLike[str]) -> None:
        """Draw error by level and frequency as a PNG, with the cut-off as a line."""
        save_png(_drawn(self), path)


@torch.no_grad()
def written(model: Any, x: Tensor, levels: int = 13, reach: float = 6.0, seed: int = 0) -> Written:
    """Autoregression over frequencies: what a model knows beyond second moments, at each noise level and frequency.

    1 is a model that knows the spectrum of x alone, below 1 it knows more. The frequencies that are being written at a
    level are those where the ratio leaves 1, near the cut-off P(f_c) = e^-logsnr.
    x: normalised fields (n, C, *spatial). levels: from -reach to reach in logsnr.
    """
    process, spectrum = model.process, power(x)
    lam = torch.linspace(-reach, reach, levels, dtype=torch.float64)
    noise = numbers_like(Noise(seed, torch.arange(len(x)), PROBE), x)
    rows = []
    for level, t in zip(lam.tolist(), process.clock.time(lam).tolist(), strict=True):
        eps_hat = model(process.corrupt(x, t, noise), t).eps
        error = radial_power((noise - eps_hat).double()).mean((0, 1))
        signal = spectrum.power * torch.tensor(level, dtype=torch.float64).exp()
        rows.append(error * (1 + signal) / signal)
    return Written(lam, spectrum.frequency, torch.stack(rows), spectrum.fit()[0].cutoff(lam))


def _drawn(found: Written) -> Any:
    """error as colours over level and frequency."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(6, 4), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    shown = axes.pcolormesh(
        found.logsnr.numpy(), found.frequency.numpy(), found.error.T.clamp_min(1e-3).log2().numpy(), cmap="RdBu_r",
        vmin=-1.5, vmax=1.5, shading="nearest",
    )  # fmt: skip
    axes.plot(found.logsnr.numpy(), found.cutoff.numpy(), color="black", label="P(f) = 1 / snr")
    axes.set_ylim(float(found.frequency[0]), float(found.frequency[-1]))
    axes.set_xlabel("logsnr: noise to the left, data to the right")
    axes.set_ylabel("frequency, cycles per place")
    axes.legend(loc="upper left")
    figure.colorbar(shown, label="log2 of error / error of the Wiener filter")
    canvas.draw()
    width, height = canvas.get_width_height()
    return Image.frombytes("RGBA", (width, height), bytes(canvas.buffer_rgba())).convert("RGB")
