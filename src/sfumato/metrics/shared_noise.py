"""Samples of two models under the same noise, by the metric that suits their kind.

    M = mean_(i != j) [k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)]   (`kernels`, of pairs)

KID of pictures, in the features that `evaluate` takes for them, and MMD of all other numbers: what both need comes with
the package. Unlike the distance of x_i to y_i it does not ask where a sample lies, but whether the laws are one.
"""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from sfumato import features
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval
from sfumato.metrics.kernels import KID, MMD, Discrepancy
from sfumato.metrics.reference import units


@final
class OnSharedNoise:
    """`seen` turns samples of a model of this spec into rows, and a call compares those of pairs; name: kid or mmd."""

    def __init__(self, spec: Any) -> None:
        word = features.NUMBERS if spec is None else features.usual(spec.kind, spec.shape)
        self.spec, self.features = spec, None
        if word != features.NUMBERS:
            self.features = features.build(word, spec.shape, spec.bounds)
        self.metric: Discrepancy = MMD() if self.features is None else KID()
        self.name = "mmd" if self.features is None else "kid"

    def seen(self, x: Tensor) -> Tensor:
        """Normalised samples (B, *shape) as rows (B, F), float64 on the CPU."""
        if self.features is None:
            return x.detach().flatten(1).double().cpu()
        return features.applied(self.features, self.spec.denormalise(x.detach()).cpu())

    def __call__(self, x: Tensor, y: Tensor) -> Interval | None:
        """M of rows x (n, F) of samples and y (n, F) of what they should be; None where it says nothing: of less than
        three pairs, of samples that are not finite, and of y that are all the same."""
        if not bool(x.isfinite().all() & y.isfinite().all()):
            return None
        if getattr(self.features, "standardised", False):
            mean, std = units(y)
            x, y = (x - mean) / std, (y - mean) / std
        try:
            return self.metric.paired(x, y)
        except SfumatoError:
            return None
