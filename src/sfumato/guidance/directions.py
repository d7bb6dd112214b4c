"""Guidance that changes the length or the direction of the step away from the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.belief import Estimate, broadcast
from sfumato.conditions import absent
from sfumato.errors import SfumatoError
from sfumato.guidance.guided import GuidedNumbers, Scale
from sfumato.model import Model
from sfumato.registry import register
from sfumato.target import NAMES

Negative = Mapping[str, Any] | None
Interval = tuple[float, float] | None


@register("model", "Rescaled")
class Rescaled(GuidedNumbers):
    """y' = (share std(y_c) / std(y) + 1 - share) y,   y = y_u + scale (y_c - y_u): each sample keeps its contrast.

    std: over the numbers of one sample. Space: `row`, which matters: y is v by default, as in the paper (Lin et al.
    2023, 2305.08891, Sect. 3.4), which is well conditioned at both ends; "eps" or "x" are other methods. Law on
    Gaussians: none, since the factor depends on each sample, and varies much where it has few numbers. Raises
    SfumatoError for samples of one number, which have no contrast.
    """

    def __init__(
        self, inner: Model, scale: Scale = 1.0, interval: Interval = None, negative: Negative = None,
        share: float = 0.7, row: str = "v",
    ) -> None:  # fmt: skip
        super().__init__(inner, scale, interval, negative)
        self.share, self.row = float(share), _row(row)
        if not 0 <= self.share <= 1:
            raise SfumatoError(f"Rescaled takes a share from 0 to 1, got {share!r}.")

    def combined(self, base: Estimate, conditional: Estimate, scale: Tensor) -> Estimate:
        y, y_c = base.lerp(conditional, scale).target(self.row), conditional.target(self.row)
        if y[0].numel() < 2:
            raise SfumatoError("Rescaled guidance needs samples of two numbers or more: one has no contrast.")
        ratio = y_c.flatten(1).std(1) / y.flatten(1).std(1)
        return _read(broadcast(self.share * ratio + 1 - self.share, y) * y, self.row, conditional)


@register("model", "CFGZero")
class CFGZero(GuidedNumbers):
    """y = (1 - scale) s y_u + scale y_c,   s = <y_c, y_u> / |y_u|^2, of each sample.

    Space: `row`, by default the velocity of the model's own schedule (Fan et al. 2025, 2503.18886, of flows): under
    another schedule, or in another row, it is another method. Law on Gaussians: none. The paper's zeroed first steps
    are left out.
    """

    def __init__(
        self, inner: Model, scale: Scale = 1.0, interval: Interval = None, negative: Negative = None,
        row: str = "velocity",
    ) -> None:  # fmt: skip
        super().__init__(inner, scale, interval, negative)
        self.row = _row(row)

    def combined(self, base: Estimate, conditional: Estimate, scale: Tensor) -> Estimate:
        y_u, y_c = base.target(self.row), conditional.target(self.row)
        best = broadcast(_share(y_c, y_u), y_u) * y_u
        return _read(best + broadcast(scale, y_u) * (y_c - best), self.row, conditional)


@register("model", "APG")
class APG(GuidedNumbers):
    """x = x_c + (scale - 1)(d_perp + parallel d_par),   d = (x_c - x_u) min(1, radius / |x_c - x_u|).

    d_par is the part of d along x_c, which saturates, d_perp the rest; radius None leaves the length of d. Space: x in
    the model's normalised units, whose origin is the mean of the data: with another origin it is another method. Law on
    Gaussians: none. Source: Sadat et al. 2024 (2410.02416), Algorithm 1, without its momentum.
    """

    def __init__(
        self, inner: Model, scale: Scale = 1.0, interval: Interval = None, negative: Negative = None,
        parallel: float = 0.0, radius: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(inner, scale, interval, negative)
        self.parallel, self.radius = float(parallel), None if radius is None else float(radius)
        if self.radius is not None and not self.radius > 0:
            raise SfumatoError(f"APG takes a radius above 0, or None, got {radius!r}.")

    def combined(self, base: Estimate, conditional: Estimate, scale: Tensor) -> Estimate:
        x, d = conditional.x, conditional.x - base.x
        if self.radius is not None:
            length = d.flatten(1).norm(dim=1)
            d = broadcast(self.radius / length.clamp_min(self.radius), d) * d
        along = broadcast(_share(d, x), x) * x
        return conditional.moved(x + broadcast(scale - 1, x) * (d - (1 - self.parallel) * along))


@register("model", "PerpNeg")
class PerpNeg(GuidedNumbers):
    """belief = c + (scale - 1)(d - weight d_perp),   d = c - u,   d_perp = n - u less its part along d.

    c, u, n: the beliefs under the conditions, none and `negative`. What of the negative is the same as what is asked
    for is not led away from. Space: any row, since differences of beliefs about one z are proportional in all of them.
    Law on Gaussians: none. Source: Armandpour et al. 2023 (2304.04968), Perp-Neg, with weight (scale - 1) / scale of
    its own.
    """

    def __init__(
        self, inner: Model, scale: Scale = 1.0, interval: Interval = None, negative: Negative = None,
        weight: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(inner, scale, interval, negative)
        self.weight = float(weight)
        if self.negative is None:
            raise SfumatoError('PerpNeg leads away from a condition: pass negative={"label": ..}.')

    def pair(self, z: Tensor, t: Tensor, cond: Mapping[str, Any]) -> tuple[Estimate, Estimate]:
        """(u + weight d_perp, c): what the plain formula leads away from."""
        negative, told = self._told(cond, len(z), z.device)
        null = {name: value if name in self._kept else absent(value) for name, value in told.items()}
        u, n, c = self._beliefs(z, t, [null, negative, told])
        d, other = c.x - u.x, n.x - u.x
        return u.moved(u.x + self.weight * (other - broadcast(_share(other, d), d) * d)), c


def _share(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> / |b|^2 of each row, (B,); 0 where b is 0."""
    a, b = a.flatten(1), b.flatten(1)
    square = b.square().sum(1)
    return torch.where(square == 0, 0.0, (a * b).sum(1) / torch.where(square == 0, 1.0, square))


def _row(name: str) -> str:
    if name not in NAMES:
        raise SfumatoError(f"A row is one of {', '.join(NAMES)}, not {name!r}.")
    return name


def _read(y: Tensor, row: str, like: Estimate) -> Estimate:
    """The belief that predicts y in this row, about the state of another belief."""
    return Estimate(
        like.z, like.t, like.schedule, y=y, named=row, sigma_data=like.sigma_data, variance_share=like.variance_share,
        carried=like.carried,
    )  # fmt: skip
