"""Guidance that changes the length or the direction of the step away from the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.belief import Estimate, broadcast
from sfumato.conditions import CARRIED, absent, uncarried
from sfumato.errors import SfumatoError, finite
from sfumato.guidance.guided import GuidedNumbers, Scale
from sfumato.model import Model
from sfumato.process import Basis
from sfumato.registry import register
from sfumato.schedule import Time, as_time
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
        self.share, self.row = finite("share", share), _row(row)
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

    zeroed: y = 0 at t > 1 - zeroed, the paper's zeroed first steps (its 4 % are 0.04): of the velocity of a flow, the
    state then waits, and meets the model at t = 1 - zeroed as pure noise. Space: `row`, by default the velocity of the
    model's own schedule (Fan et al. 2025, 2503.18886, of flows): under another schedule, or in another row, it is
    another method. Law on Gaussians: none.
    """

    def __init__(
        self, inner: Model, scale: Scale = 1.0, interval: Interval = None, negative: Negative = None,
        row: str = "velocity", zeroed: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(inner, scale, interval, negative)
        self.row, self.zeroed = _row(row), float(zeroed)
        if not 0 <= self.zeroed < 1:
            raise SfumatoError(f"CFGZero takes a share of the time to zero from 0 to below 1, got {zeroed!r}.")

    def combined(self, base: Estimate, conditional: Estimate, scale: Tensor) -> Estimate:
        y_u, y_c = base.target(self.row), conditional.target(self.row)
        best = broadcast(_share(y_c, y_u), y_u) * y_u
        kept = torch.where((scale != 1) & (base.t > 1 - self.zeroed), 0.0, 1.0)
        return _read(broadcast(kept, y_u) * (best + broadcast(scale, y_u) * (y_c - best)), self.row, conditional)


@register("model", "APG")
class APG(GuidedNumbers):
    """x = x_c + (scale - 1)(d_perp + parallel d_par),   d = D min(1, radius / |D|),   D = x_c - x_u + momentum D'.

    d_par is the part of d along x_c, which saturates, d_perp the rest; radius None leaves the length of d. D' is the D
    of the call before in a walk that guided its sample, 0 at first: a negative momentum, the paper's -0.75 to -0.25,
    pushes where the last call did not. A solver carries it; a likelihood asks without. Space: x in the model's
    normalised units, whose origin is the mean of the data: with another origin it is another method. Law on Gaussians:
    none. Source: Sadat et al. 2024 (2410.02416), Algorithm 1.
    """

    def __init__(
        self, inner: Model, scale: Scale = 1.0, interval: Interval = None, negative: Negative = None,
        parallel: float = 0.0, radius: float | None = None, momentum: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(inner, scale, interval, negative)
        self.parallel, self.radius = finite("parallel", parallel), None if radius is None else finite("radius", radius)
        self.momentum = finite("momentum", momentum)
        if self.radius is not None and not self.radius > 0:
            raise SfumatoError(f"APG takes a radius above 0, or None, got {radius!r}.")
        if not -1 < self.momentum < 1:
            raise SfumatoError(f"APG takes a momentum between -1 and 1, got {momentum!r}.")
        if self.momentum and getattr(inner, "carries", False):
            raise SfumatoError("The network carries latents from call to call, in the place of APG's momentum: set 0.")

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate:
        alone = self.momentum and bool((self._scales(as_time(t)) == 1).all())
        found: Estimate = super().__call__(z, t, **(uncarried(cond) if alone else cond))  # no model knows of D'
        return found

    def pair(self, z: Tensor, t: Tensor, cond: Mapping[str, Any]) -> tuple[Estimate, Estimate]:
        """The beliefs (base, conditional), of which the second carries D' until `combined` makes it D."""
        if not self.momentum:
            return super().pair(z, t, cond)
        base, conditional = super().pair(z, t, uncarried(cond))
        before = cond.get(CARRIED)
        conditional.carried = torch.zeros_like(z) if before is None else before.values.to(z)
        return base, conditional

    def combined(self, base: Estimate, conditional: Estimate, scale: Tensor) -> Estimate:
        x, d = conditional.x, conditional.x - base.x
        before = conditional.carried
        if self.momentum and before is not None:
            d = d + self.momentum * before
            conditional.carried = torch.where(broadcast(scale, d) == 1, before, d)
        if self.radius is not None:
            length = d.flatten(1).norm(dim=1)
            d = broadcast(self.radius / length.clamp_min(self.radius), d) * d
        along = broadcast(_share(d, x), x) * x
        return conditional.moved(x + broadcast(scale - 1, x) * (d - (1 - self.parallel) * along))


@register("model", "FrequencyDecoupled")
class FrequencyDecoupled(GuidedNumbers):
    """belief = c + (g(f) - 1)(c - u)_f,   g(f) = 1 + (scale - 1)(1 - (1 - low) exp(-(f / cutoff)^2)), of each frequency
    f: the scale for details, the share `low` of its excess over 1 for what is coarse.

    f: in cycles per place, of the cosine transform along the axes behind the channels (along the only one of vectors).
    Coarse differences at a large scale cost colours and variety, fine ones sharpen. Space: any row, since differences
    of beliefs about one z are proportional in all of them. Law on Gaussian fields with the spectra v_c(f) and v_u(f):
    the ODE samples v_c^g(f) / v_u^(g(f) - 1). Source: Sadat et al. 2025 (2506.19713), with a Gaussian in frequency for
    its Laplacian pyramid.
    """

    def __init__(
        self, inner: Model, scale: Scale = 1.0, interval: Interval = None, negative: Negative = None,
        low: float = 0.25, cutoff: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__(inner, scale, interval, negative)
        self.low, self.cutoff = finite("low of FrequencyDecoupled", low), finite("cutoff of FrequencyDecoupled", cutoff)
        if self.cutoff <= 0:
            raise SfumatoError(f"FrequencyDecoupled takes a cutoff above 0, got {cutoff!r}.")

    def combined(self, base: Estimate, conditional: Estimate, scale: Tensor) -> Estimate:
        d = conditional.x - base.x
        basis = Basis(tuple(d.shape[1:]))
        share = 1 - (1 - self.low) * torch.exp(-((basis.frequency / self.cutoff) ** 2))
        d = basis.synthesise(share.to(d) * basis.analyse(d))
        return conditional.moved(conditional.x + broadcast(scale - 1, d) * d)


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
        self.weight = finite("weight of PerpNeg", weight)
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
