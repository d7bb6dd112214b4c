"""DDPM's ancestral sampling: one mean, and four choices of the variance of the step z_t -> z_s.

    mean        a sigma_s^2 / sigma_t^2 z_t + alpha_s c^2 / sigma_t^2 x
    with        a = alpha_t / alpha_s,   c^2 = sigma_t^2 - a^2 sigma_s^2
    posterior   c^2 sigma_s^2 / sigma_t^2        "beta tilde": exact if the data are a single point
    beta        c^2 S_s^2 / S_t^2                "beta": exact if the data are N(0, I);  S^2 = alpha^2 + sigma^2
    learned     exp(v log beta + (1 - v) log posterior)               v from the network, for each element
    optimal     posterior + (alpha_s c^2 / sigma_t^2)^2 Var[x|z]      exact to second order for any data

For S = 1 (variance-preserving) c^2 is DDPM's beta; the factors of S make the sampler the same under every schedule.
Sources: Ho et al. 2020 (2006.11239), Sec. 3.2; Nichol and Dhariwal 2021 (2102.09672), Eq. 15; Bao et al. 2022
(2201.06503, 2206.07309).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, final

from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.solvers import grids
from sfumato.solvers.build import Builder, Solver
from sfumato.solvers.clocks import Point
from sfumato.solvers.ddim import bridge
from sfumato.solvers.lines import Jump
from sfumato.solvers.plan import Plan
from sfumato.state import numbers_like

VARIANCES = ("posterior", "beta")


@register("solver", "ddpm")
@register("solver", "ddpm-beta", variance="beta")
@dataclasses.dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling with a fixed variance, 'posterior' or 'beta' (2006.11239, Eq. 7 and Sec. 3.2). Weak order 1.

    The last step, to the clean signal, draws no noise (Algorithm 2). variance='posterior' is DDIM with eta = 1.
    """

    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)
    variance: str = "posterior"

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise SfumatoError(
                f"DDPM has the variances {' and '.join(VARIANCES)}, not {self.variance!r}: for the model's own "
                "variance use LearnedDDPM or OptimalDDPM."
            )

    def build(self, b: Builder) -> Plan:
        for k, t, s in _steps(b):
            mean, std = bridge(t, s, k, eta=1.0)
            b.advance(mean, std if self.variance == "posterior" else _beta(t, s))
        return b.plan("DDPM" if self.variance == "posterior" else "DDPM(beta)", 1)


def _beta(t: Point, s: Point) -> float:
    """c S_s / S_t, and 0 at the clean signal."""
    if s[1] == 0:
        return 0.0
    a = t[0] / s[0]
    return math.sqrt(max(t[1] ** 2 - (a * s[1]) ** 2, 0.0)) * math.hypot(*s) / math.hypot(*t)


@register("solver", "ddpm-learned")
@dataclasses.dataclass(frozen=True)
class LearnedDDPM(Solver):
    """Ancestral sampling with the variance learned by the network (`Denoiser(variance="learned")`).

    Sigma = exp(v log beta + (1 - v) log beta_tilde), v = `belief.variance_share`, for each element. Both limits scale
    with the step, so the learned v also applies with few steps (2102.09672, Sec. 4). The last step, to the clean
    signal, draws no noise.
    """

    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def build(self, b: Builder) -> Plan:
        for k, t, s in _steps(b):
            mean, std = bridge(t, s, k, eta=1.0)
            b.jump(LearnedStep(mean["z", k], mean["x", k], std, _beta(t, s)))
        return b.plan("LearnedDDPM", 1)


@dataclasses.dataclass(frozen=True)
class OptimalDDPM(Solver):
    """Ancestral sampling with the optimal variance, for models that provide Var[x|z] (`belief.variance`).

    std^2 = posterior + (coefficient of x)^2 Var[x|z] is the exact variance of z_s given z_t for each element, so
    Gaussian data with independent elements are sampled exactly in any number of steps, even one. The last step draws
    noise too, of variance Var[x|z]. Source: 2201.06503, Theorem 1; 2206.07309, per element.
    """

    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def build(self, b: Builder) -> Plan:
        for k, t, s in _steps(b):
            mean, std = bridge(t, s, k, eta=1.0)
            b.jump(OptimalStep(mean["z", k], mean["x", k], std))
        return b.plan("OptimalDDPM", 1)


def _steps(b: Builder) -> Iterator[tuple[int, Point, Point]]:
    """Add a call at each node; yields (call, its (alpha, sigma), the (alpha, sigma) it steps to)."""
    for i, t in enumerate(b.nodes[:-1]):
        k = b.call(t)
        yield k, b.path[k], b.node(i + 1)


@final
@dataclasses.dataclass(frozen=True)
class LearnedStep(Jump):
    """a z + b x plus noise of a standard deviation from `low` to `high`, chosen by `belief.variance_share`."""

    a: float
    b: float
    low: float
    high: float

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return self.low > 0

    def __call__(self, z: Tensor, belief: Any, s: Tensor | float, noise: Any) -> Tensor:
        share = belief.variance_share
        if share is None:
            raise SfumatoError("LearnedDDPM needs a model with a learned variance, which this one lacks: use DDPM.")
        mean: Tensor = self.a * z + self.b * belief.x
        if not self.draws:
            return mean
        low, high = math.log(self.low), math.log(self.high)
        return mean + (low + share * (high - low)).exp() * numbers_like(noise, z)


@final
@dataclasses.dataclass(frozen=True)
class OptimalStep(Jump):
    """a z + b x plus noise of variance std^2 + b^2 Var[x|z]."""

    a: float
    b: float
    std: float

    def __call__(self, z: Tensor, belief: Any, s: Tensor | float, noise: Any) -> Tensor:
        if belief.variance is None:
            raise SfumatoError("OptimalDDPM needs a model that provides Var[x|z], which this one does not: use DDPM.")
        std = (belief.variance * self.b**2 + self.std**2).sqrt()
        mean: Tensor = self.a * z + self.b * belief.x
        return mean + std * numbers_like(noise, z)
