"""Denoising diffusion restoration: each singular direction of the measurement by itself."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.inverse.measurement import Measurement
from sfumato.inverse.method import StepMethod
from sfumato.registry import register
from sfumato.state import numbers_like

MOST_NUMBERS = 4096  # of a sample: its singular vectors are a square matrix


@register("method", "ddrm")
@dataclasses.dataclass(frozen=True)
class DDRM(StepMethod):
    """z_s along each singular vector of A / noise = U S V^T, with x = E[x|z], y' = U^T y / S, r = 1 / S (no noise: 0):

        not measured           alpha x + sqrt(1 - eta^2) sigma eps + eta sigma n
        sigma < alpha r        alpha x + sqrt(1 - eta^2) sigma (y' - x) / r + eta sigma n
        sigma >= alpha r       alpha y' + sqrt(sigma^2 - alpha^2 r^2) n

    One call a step and no backward pass; samples of at most 4,096 numbers, whose singular vectors are computed once.
    Raises SfumatoError for more, and where some of the measurement has noise and some none. Source: Kawar et al. 2022
    (2201.11793), Eq. 7 and 8, with its eta_b = 1.
    """

    eta: float = 0.85
    nonlinear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise SfumatoError(f"DDRM takes an eta from 0 to 1, not {self.eta!r}.")

    def check(self, measurement: Measurement) -> None:
        super().check(measurement)
        if math.prod(measurement.shape) > MOST_NUMBERS:
            raise SfumatoError(
                f"DDRM takes samples of at most {MOST_NUMBERS} numbers, and this has {math.prod(measurement.shape)}: "
                "use ddnm or mmps."
            )
        if bool((measurement.noise == 0).any()) and bool((measurement.noise > 0).any()):
            raise SfumatoError("DDRM needs noise above 0 everywhere or nowhere: use mmps here.")

    def step(self, model: Any, measurement: Measurement, z: Tensor, t: float, s: float, noise: Any) -> Tensor:
        belief = model(z, t)
        clean = belief.x
        values, directions, y, r = (each.to(clean) for each in measurement.once("singular", _singular))
        alpha, sigma = (float(v) for v in model.process.schedule(s)) if s else (1.0, 0.0)
        x, eps, n = (v.to(clean).flatten(1) @ directions.T for v in (clean, belief.eps, numbers_like(noise, clean)))
        faint = sigma >= alpha * r
        towards = torch.where(faint, 0.0, (y - x) / torch.where(faint, 1.0, r))
        inside = alpha * x + math.sqrt(1 - self.eta**2) * sigma * torch.where(values > 0, towards, eps)
        drawn = alpha * y + (sigma**2 - (alpha * r) ** 2).clamp_min(0).sqrt() * n
        moved = torch.where((values > 0) & faint, drawn, inside + self.eta * sigma * n)
        return (moved @ directions).reshape(z.shape)


def _singular(measurement: Measurement) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(singular values, 0 where nothing is measured; V^T; y / S and 1 / S along its rows), each of D rows, float64."""
    size = math.prod(measurement.shape)
    zero = torch.zeros(1, *measurement.shape, dtype=torch.float64)
    pushed = measurement.push(zero, torch.eye(size, dtype=torch.float64).reshape(size, *measurement.shape))
    noisy = bool((measurement.noise > 0).all())
    scale = measurement.noise.expand(measurement.y.shape).flatten() if noisy else torch.ones(measurement.size)
    A = pushed.flatten(1).T / scale.double()[:, None]
    y = measurement.residual(zero)[0].flatten() / scale
    U, values, directions = torch.linalg.svd(A)
    values = torch.where(values > 1e-9 * values.max(), values, 0.0)
    rank = int((values > 0).sum())
    whole = torch.zeros(3, size, dtype=torch.float64)
    whole[0, :rank] = values[:rank]
    whole[1, :rank] = (U.T @ y)[:rank] / values[:rank]
    whole[2, :rank] = float(noisy) / values[:rank]
    return whole[0], directions, whole[1], whole[2]
