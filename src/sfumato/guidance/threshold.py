"""Thresholding: clean signals within the bounds of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato.belief import Estimate, broadcast
from sfumato.compose import Wrapped
from sfumato.errors import SfumatoError
from sfumato.model import Model, usable
from sfumato.process.gaussian import require_numbers
from sfumato.registry import register
from sfumato.schedule import Time


@register("model", "Thresholded")
class Thresholded(Wrapped):
    """x' = c + clip(x - c, -s h, s h) / s,   s = max(1, quantile of |x - c| / h), of each sample; eps = (z - alpha x')
    / sigma.

    c, h: centre and half the range of the bounds that the data declare, in user units. quantile: dynamic thresholding,
    such as 0.995 (Imagen, 2205.11487, Sect. 2.3); None: static, s = 1, a clip to the bounds. An x within the bounds is
    left as it is, with its eps. Space: x. Law on Gaussians: none. Raises SfumatoError without bounds, or with a
    normaliser that is not affine.
    """

    def __init__(self, inner: Model, quantile: float | None = 0.995) -> None:
        super().__init__(usable(inner, "Thresholding"))
        require_numbers(inner, "Thresholding", "leave it out")
        if quantile is not None and not 0 < quantile <= 1:
            raise SfumatoError(f"Thresholding takes a quantile above 0 and up to 1, or None, got {quantile!r}.")
        self.quantile = quantile
        spec = getattr(inner, "spec", None)
        if spec is None or spec.bounds is None or spec.normaliser.kind != "affine":
            raise SfumatoError(
                "Thresholding needs data with declared bounds, as pictures have, under an affine normaliser: leave it "
                "out."
            )
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (spec.normaliser.mean, spec.normaliser.std))
        low, high = spec.bounds
        column = (-1, *(1,) * (len(spec.shape) - 1))
        self._centre = (((low + high) / 2 - mean) / std).reshape(column)  # of z = (x - mean) / std
        self._half = ((high - low) / 2 / std).reshape(column)

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate:
        belief = self.inner(z, t, **cond)
        centre, half = self._centre.to(belief.x), self._half.to(belief.x)
        beyond = (belief.x - centre) / half
        if self.quantile is None:
            inside = beyond.clamp(-1, 1)
        else:
            s = broadcast(_quantile(beyond.abs().flatten(1), self.quantile).clamp_min(1), beyond)
            inside = beyond.clamp(-s, s) / s
        return belief.moved(torch.where(inside == beyond, belief.x, centre + half * inside))


def _quantile(values: Tensor, share: float) -> Tensor:
    """The quantile of each row, linear between ranks, without the limit of `torch.quantile` on the size."""
    place = share * (values.shape[1] - 1)
    ordered = values.sort(1).values
    low = int(place)
    high = min(low + 1, values.shape[1] - 1)
    return ordered[:, low] + (place - low) * (ordered[:, high] - ordered[:, low])
