"""Solvers of the reverse-time SDE: Euler-Maruyama in t, and exponential stochastic Adams methods in logsnr.

    dz = [f z - (1 + tau^2)/2 g^2 score] dt + tau g dw     (same marginals for every tau: 0 the ODE, 1 Anderson's SDE)

With l = logsnr / 2, h = l_s - l_t > 0 and H = (1 + tau^2) h its solution from t to s is

    x:    z_s = sigma_s / sigma_t e^{-tau^2 h} z_t + alpha_s int_0^1 H e^{-H (1 - u)} x(l_t + u h) du
                + sigma_s sqrt(1 - e^{-2 tau^2 h}) xi
    eps:  z_s = alpha_s / alpha_t z_t - (1 + tau^2) sigma_s int_0^1 h e^{h (1 - u)} eps(l_t + u h) du
                + tau sigma_s sqrt(e^{2 h} - 1) xi

Both are exact; they differ in which signal is approximated by a polynomial. Sources: Song et al. 2021 (2011.13456), Eq.
6; Lu et al. 2022 (2211.01095), SDE-DPM-Solver and SDE-DPM-Solver++; Xue et al. 2023 (2309.05019), SA-Solver, Eq. 14 and
17.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.solvers import grids
from sfumato.solvers.axis import lagrange_basis
from sfumato.solvers.build import Builder, Form, Solver, add, ddim
from sfumato.solvers.clocks import Point, clock
from sfumato.solvers.plan import Plan

Weights = list[tuple[float, int]]  # (weight of the row's value, call)

PHI2 = ("exact", "B1", "B2")
ROWS = ("x", "eps")


@register("solver", "euler-maruyama")
@dataclasses.dataclass(frozen=True)
class EulerMaruyama(Solver):
    """z_s = z_t + (s - t) [f z - (1 + eta^2)/2 g^2 score] + eta g sqrt(t - s) xi. Weak order 1.

    eta = 1 is the reverse SDE (2011.13456, Eq. 6), 0 the probability-flow ODE; above 1 more noise is added and removed.
    The last step to the clean signal takes E[x|z], without noise; a step from a time where f or g is infinite is the
    exponential step of order 1.
    """

    eta: float = 1.0
    grid: grids.Grid = dataclasses.field(default_factory=grids.Uniform)

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise SfumatoError(f"EulerMaruyama needs eta >= 0, got {self.eta:g}.")

    def build(self, b: Builder) -> Plan:
        for i in range(len(b.nodes) - 1):
            t, s = b.nodes[i : i + 2]
            k, end = b.call(t), b.node(i + 1)
            f, g2 = float(b.schedule.drift(t)), float(b.schedule.diffusion(t))
            if end[1] == 0:
                b.advance(ddim(b.path[k], end, k))
            elif math.isfinite(f) and math.isfinite(g2):
                b.advance(self._change(b.path[k], k, s - t, f, g2), self.eta * math.sqrt(g2 * (t - s)))
            else:
                step = sde_step(b.path[k], end, self.eta)
                b.advance({("z", k): step.kept, ("x", k): step.gain}, step.std)
        return b.plan("EulerMaruyama" if self.eta == 1 else f"EulerMaruyama(eta={self.eta:g})", 1)

    def _change(self, at: Point, k: int, h: float, f: float, g2: float) -> Form:
        alpha, sigma = at
        pull = h * (1 + self.eta**2) / 2 * g2 / sigma**2  # factor of z - alpha x = -sigma^2 score
        return {("z", k): 1 + h * f + pull, ("x", k): -pull * alpha}


class Exponential(NamedTuple):
    """z_s = kept z_t + scale int H e^{-H (1 - u)} y du + std xi, exact for the row's y; `decay` is H, or -h for eps.

    If logsnr is infinite at an end, H is infinite and y is x, whatever the row.
    """

    kept: float
    scale: float
    std: float
    decay: float

    @property
    def gain(self) -> float:
        """The coefficient of a constant y."""
        return -self.scale * math.expm1(-self.decay)


def sde_step(t: Point, s: Point, tau: float, row: str = "x") -> Exponential:
    """The exact step of the SDE with this `tau` from (alpha, sigma) = t to the less noisy s."""
    if s[1] == 0:
        return Exponential(0.0, s[0], 0.0, math.inf)
    if t[0] == 0:
        kept = 0.0 if tau > 0 else s[1] / t[1]
        return Exponential(kept, s[0], s[1] if tau > 0 else 0.0, math.inf)
    h = half_logsnr(s) - half_logsnr(t)
    if row == "eps":
        return Exponential(s[0] / t[0], (1 + tau**2) * s[1], tau * s[1] * math.sqrt(math.expm1(2 * h)), -h)
    std = s[1] * math.sqrt(-math.expm1(-2 * tau**2 * h))
    return Exponential(s[1] / t[1] * math.exp(-(tau**2) * h), s[0], std, (1 + tau**2) * h)


def half_logsnr(point: Point) -> float:
    """l = log(alpha / sigma), infinite at the ends."""
    alpha, sigma = point
    return -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)


@register("solver", "sa-solver")
@dataclasses.dataclass(frozen=True)
class SASolver(Solver):
    """Stochastic Adams: a polynomial in logsnr through the last `predictor` values of the row; one call per step.

    corrector: the number of values, including the one at the end of the step, that correct the state afterwards
    (2309.05019, Algorithm 1; the same noise, no extra call); 0 for none. tau: the noise, 0 the ODE, 1 the reverse SDE;
    interval: add noise only if the logsnr at the start of the step lies in (lowest, highest). Weak order 2 with at
    least two values (1 with one); without noise up to 3, limited by the first step.

    row: the signal approximated by the polynomial, 'x' or 'eps'; steps from pure noise and to the clean signal use x.
    With noise only 'x' is exact for data of a single point, and 'eps' amplifies errors by e^h: use 'x' for long steps.
    phi2: the weight of the slope if the polynomial is a line, int H e^{-H (1 - u)} u du (for eps with -h as H):
    'exact'; 'B2', half of 1 - e^{-H} (2211.01095, SDE-DPM-Solver++(2M)); 'B1', half of H (the code of SA-Solver, for
    x).
    """

    predictor: int = 2
    corrector: int = 2
    tau: float = 1.0
    interval: tuple[float, float] | None = None
    phi2: str = "exact"
    row: str = "x"
    grid: grids.Grid = dataclasses.field(default_factory=grids.auto)

    def __post_init__(self) -> None:
        if self.predictor not in (1, 2, 3, 4) or self.corrector not in (0, 1, 2, 3, 4):
            raise SfumatoError(
                f"SASolver predicts with 1 to 4 estimates and corrects with 0 to 4, got {self.predictor} "
                f"and {self.corrector}."
            )
        if not 0 <= self.tau < math.inf:
            raise SfumatoError(f"SASolver needs tau >= 0, got {self.tau:g}.")
        if self.phi2 not in PHI2:
            raise SfumatoError(f"SASolver takes phi2 = {', '.join(PHI2)}, got {self.phi2!r}.")
        if self.row not in ROWS:
            raise SfumatoError(f"SASolver takes row = {' or '.join(ROWS)}, got {self.row!r}.")

    def build(self, b: Builder) -> Plan:
        past: list[int] = []  # calls that the polynomial may use, latest first
        change: Weights = []  # the correction of the state at the next call
        for i in range(len(b.nodes) - 1):
            k, end = b.call(b.nodes[i]), b.node(i + 1)
            state = add((1.0, {("z", k): 1.0}), *self._values(b, change))
            past = [k, *past] if math.isfinite(half_logsnr(b.path[k])) else []
            step = sde_step(b.path[k], end, self._noise(b.path[k]), self.row)
            change = []
            if not math.isfinite(step.decay):
                b.advance(add((step.kept, state), (step.gain, {("x", k): 1.0})), step.std)
                continue
            predicted = self._weights(b, past[: self.predictor], past[0], end, step)
            b.advance(add((step.kept, state), *self._values(b, predicted)), step.std)
            if self.corrector:
                known = [k + 1, *past][: self.corrector]
                corrected = self._weights(b, known, past[0], end, step)
                change = [*corrected, *((-w, j) for w, j in predicted)]
        return b.plan(self._name(), self._order())

    def _noise(self, at: Point) -> float:
        if self.interval is None:
            return self.tau
        low, high = self.interval
        return self.tau if low <= 2 * half_logsnr(at) <= high else 0.0

    def _values(self, b: Builder, weights: Weights) -> list[tuple[float, Form]]:
        return [(w, b.value(clock(self.row), j)) for w, j in weights]

    def _weights(self, b: Builder, calls: list[int], start: int, end: Point, step: Exponential) -> Weights:
        """The weights scale int H e^{-H (1 - u)} l_i(u) du of the calls, u = 0 at `start` and 1 at `end`."""
        low, high = half_logsnr(b.path[start]), half_logsnr(end)
        where = [1.0 if j > start else (half_logsnr(b.path[j]) - low) / (high - low) for j in calls]
        moments = decay_moments(step.decay, len(calls))
        if len(calls) == 2 and self.phi2 != "exact":
            moments[1] = (step.decay if self.phi2 == "B1" else moments[0]) / 2
        weights = [sum(c * m for c, m in zip(basis, moments, strict=True)) for basis in lagrange_basis(where)]
        return [(step.scale * w, j) for w, j in zip(weights, calls, strict=True)]

    def _order(self) -> int:
        reached = min(self.corrector, self.predictor + 1) if self.corrector else self.predictor
        starts = 3 if self.corrector > 1 else 2  # the first step predicts from one value, and corrects with two
        return min(reached, starts if self.tau == 0 else 2)

    def _name(self) -> str:
        row = "" if self.row == "x" else f", row={self.row}"
        return f"SASolver(predictor={self.predictor}, corrector={self.corrector}, tau={self.tau:g}{row})"


def decay_moments(decay: float, count: int) -> list[float]:
    """m_p = int_0^1 H e^{-H (1 - u)} u^p du for p < count and H of either sign."""
    if abs(decay) > 1:
        out = [-math.expm1(-decay)]
        for p in range(1, count):
            out.append(1 - p / decay * out[-1])
        return out
    # The recursion cancels for small H: sum a series with terms of one sign, of e^{H u}, or of e^{-H v} with v = 1 - u.
    if decay > 0:
        scale = decay * math.exp(-decay)
        return [scale * math.fsum(decay**j / math.factorial(j) / (j + p + 1) for j in range(20)) for p in range(count)]
    series = [[(-decay) ** j * math.factorial(p) / math.factorial(j + p + 1) for j in range(20)] for p in range(count)]
    return [decay * math.fsum(terms) for terms in series]


@register("solver", "sde-dpm++2m", order=2)
@register("solver", "sde-dpm++3m", order=3)
@register("solver", "sde-dpm2m", row="eps")
def SDEDPMSolver(order: int = 2, eta: float = 1.0, grid: grids.Grid | None = None, row: str = "x") -> SASolver:
    """SDE-DPM-Solver++ 1, 2M and 3M (2211.01095): stochastic Adams without a corrector, 2M with phi2 = B2.

    z_s = sigma_s / sigma_t e^{-eta^2 h} z_t + alpha_s (1 - e^{-H}) D + sigma_s sqrt(1 - e^{-2 eta^2 h}) xi, and for 2M
    D = x_t + h / (2 h_before) (x_t - x_before). 3M integrates its quadratic exactly. row='eps' is SDE-DPM-Solver, with
    z_s = alpha_s / alpha_t z_t - (1 + eta^2) sigma_s (e^h - 1) D + eta sigma_s sqrt(e^{2 h} - 1) xi, D the same of eps.
    """
    if order not in (1, 2, 3):
        raise SfumatoError(f"SDEDPMSolver has order 1 to 3, got {order}.")
    return SASolver(order, 0, eta, phi2="B2", row=row, grid=grid or grids.auto())
