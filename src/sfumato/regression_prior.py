"""A prior of embeddings in closed form: kernel ridge regression on a caption, and the normal law of what it misses.

    e | y ~ N(m(y), T^2 S),   m(y) = E e + k(y)^T (K + r)^-1 (e_i - E e)_i,   k(a, b) = exp((cos(a, b) - 1) / w)
    E[e | z, y] = m + alpha T^2 S (alpha^2 T^2 S + sigma^2)^-1 (z - alpha m)

cos: of the vectors of captions less their mean. S: the covariance of the leave-one-out errors of the captions in
training, e_i - m_(-i)(y_i) = ((K + r)^-1 (e - E e))_i / ((K + r)^-1)_ii, of which w and r have the least. Without a
caption m = E e, and S is the covariance of e. T, the temperature, is 1 for the law and 0 for its mean. Of a Gaussian
process it is the mean, with one covariance for all captions. Source: Rasmussen and Williams 2006, Eq. 2.25 and 5.12.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.belief import Estimate, broadcast
from sfumato.conditions import Given
from sfumato.errors import SfumatoError
from sfumato.machine import default_cpu
from sfumato.process import Gaussian
from sfumato.registry import register
from sfumato.schedule import Time

MOST = 2000  # captions that a regression is of, since its cost is cubic in them
WIDTHS, NOISES = (0.2, 0.3, 0.45, 0.7), (0.03, 0.1, 0.3, 1.0)


@register("model", "RegressionPrior")
@final
class RegressionPrior(nn.Module):
    """prior(z, t, caption=..) -> the exact belief of the law above, in normalised embeddings; `fit` makes one.

    name: the condition, of vectors (B, d) or of texts that were embedded, (B, 1 + L, d), the first of which is that of
    the whole text; rows: how many captions it knows; width: w; temperature: T, which may be changed at any time.
    """

    exact = True
    middle: Tensor
    directions: Tensor
    weights: Tensor
    mean: Tensor
    axes: Tensor
    variances: Tensor
    all_axes: Tensor
    all_variances: Tensor

    def __init__(
        self, process: Gaussian, name: str, rows: int, inputs: int, size: int, width: float, spec: Any = None,
        temperature: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.process, self.spec = process, spec
        self.name, self.rows, self.inputs, self.size = name, rows, inputs, size
        self.width, self.temperature = float(width), float(temperature)
        if not 0 <= self.temperature < float("inf"):
            raise SfumatoError(f"The temperature of a prior is a finite number of at least 0, not {temperature!r:.60}.")
        self.shape = (size,)
        shapes = {
            "middle": (inputs,), "directions": (rows, inputs), "weights": (rows, size), "mean": (size,),
            "axes": (size, size), "variances": (size,), "all_axes": (size, size), "all_variances": (size,),
        }  # fmt: skip
        for buffer, shape in shapes.items():
            self.register_buffer(buffer, torch.zeros(shape))
        self.provenance: dict[str, Any] = {}
        self.plans: dict[str, Any] = {}
        self.compute_dtype: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        return self.weights.device

    @classmethod
    @default_cpu()
    def fit(cls, y: Tensor, e: Tensor, process: Gaussian, name: str = "caption", spec: Any = None) -> RegressionPrior:
        """From the vectors of captions y (N, d) and normalised embeddings e (N, k), of which at most 2,000 are taken.

        spec: the data spec of the embeddings, by whose deviations errors are weighed. Raises SfumatoError for fewer
        than two different captions.
        """
        y, e = y[:MOST].double(), e[:MOST].double()
        middle, mean = y.mean(0), e.mean(0)
        a = F.normalize(y - middle)
        if len(y) != len(e) or not bool(y.isfinite().all() and e.isfinite().all()):
            raise SfumatoError("A regression needs as many vectors of captions as embeddings, all of them finite.")
        if len(y) < 2 or not bool((y != y[:1]).any()):
            raise SfumatoError("A regression needs two different captions at least: give the samples captions.")
        units = torch.ones(e.shape[1]) if spec is None else torch.tensor(spec.normaliser.std)
        best = None
        for width in WIDTHS:
            values, vectors = torch.linalg.eigh(((a @ a.T - 1) / width).exp())
            turned = vectors.T @ (e - mean)
            for noise in NOISES:
                inverse = 1 / (values.clamp_min(0) + noise)
                weights, own = vectors @ (inverse[:, None] * turned), vectors.square() @ inverse
                errors = weights / own[:, None]
                loss = float((errors * units).square().mean())
                if best is None or loss < best[0]:
                    best = (loss, width, weights, errors)
        assert best is not None
        _, width, weights, errors = best
        made = cls(process, name, len(y), y.shape[1], e.shape[1], width, spec)
        (variances, axes), (all_variances, all_axes) = (
            torch.linalg.eigh(each.T @ each / len(each)) for each in (errors, e - mean)
        )
        found = {
            "middle": middle, "directions": a, "weights": weights, "mean": mean, "axes": axes, "variances": variances,
            "all_axes": all_axes, "all_variances": all_variances,
        }  # fmt: skip
        for buffer, value in found.items():
            getattr(made, buffer).copy_(value)
        return made.eval()

    def expected(self, y: Tensor) -> Tensor:
        """m(y) of the vectors of captions y (B, d), float64 (B, k)."""
        a = F.normalize(y.double() - self.middle.double())
        k = ((a @ self.directions.double().T - 1) / self.width).exp()
        return self.mean.double() + k @ self.weights.double()

    def forward(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate:
        schedule = self.process.schedule
        alpha, sigma = (broadcast(each, z.double()) for each in schedule(t))
        m, here = self.mean.double().expand(len(z), -1), torch.zeros(len(z), 1, dtype=torch.bool, device=z.device)
        if self.name in cond:
            values, here = Given.of(cond[self.name])
            m = torch.where(here[:, None], self.expected(values[:, 0] if values.ndim == 3 else values), m)
            here = here[:, None]
        off = z.double() - alpha * m

        def pulled(axes: Tensor, variances: Tensor) -> Tensor:
            spread = (self.temperature**2 * variances.double()).clamp_min(0)
            gain = alpha * spread / (alpha**2 * spread + sigma**2).clamp_min(1e-300)
            return (off @ axes.double() * gain) @ axes.double().T

        rest = torch.where(here, pulled(self.axes, self.variances), pulled(self.all_axes, self.all_variances))
        return Estimate(z, t, schedule, x=(m + rest).to(z))
