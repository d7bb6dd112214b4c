"""The variable in which a row is interpolated by a polynomial, and the weights of its integral over the row's clock.

    w_i = int_{c_t}^{c_s} l_i(v(c)) dc = int l_i(v) (dc/dlam) dlam,   lam = logsnr / 2

l_i is the Lagrange basis on the known nodes, in v = c itself ('clock'), lam ('logsnr') or t. In the clock the integral
of the polynomial is exact; otherwise Gauss-Legendre quadrature over lam is used, in which every clock is smooth.
Sources: 2206.00927, Section 3.2 (lam); 2204.13902, Eq. 15 (DEIS: t and the clock).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import torch

from sfumato.errors import SfumatoError
from sfumato.schedule import Schedule
from sfumato.solvers.clocks import Clock, Point

VARIABLES = ("clock", "logsnr", "t")

_ROOTS, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_PIECE = 2.0  # in lam; the poles of the clocks lie pi / 2 from the real axis: an error of 1e-13 per piece
_FAR = 38.0  # exp(-38) is negligible next to 1 in double precision


class Place(NamedTuple):
    """A node on the axis: the row's clock, the variable of the polynomial, and lam = logsnr / 2."""

    clock: float
    variable: float
    lam: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.clock) and math.isfinite(self.variable)


def lagrange_basis(nodes: list[float]) -> list[list[float]]:
    """The coefficients, constant first, of the polynomials l_i with l_i(u_j) = (i == j)."""
    out = []
    for i, node in enumerate(nodes):
        basis = [1.0]
        for other in nodes[:i] + nodes[i + 1 :]:
            shifted = zip([0.0, *basis], [*basis, 0.0], strict=True)
            basis = [(up - other * here) / (node - other) for up, here in shifted]
        out.append(basis)
    return out


def lagrange_integrals(nodes: list[float], start: float, stop: float) -> list[float]:
    """int_start^stop of each Lagrange basis polynomial on the nodes."""
    # Scaled by the step, so that the monomials stay of order one.
    h = stop - start
    bases = lagrange_basis([(c - start) / h for c in nodes])
    return [h * sum(c / (p + 1) for p, c in enumerate(basis)) for basis in bases]


@dataclasses.dataclass(frozen=True)
class Axis:
    """A row's clock c and the variable v of its polynomial, on one schedule."""

    schedule: Schedule
    rule: Clock
    variable: str = "clock"

    def __post_init__(self) -> None:
        if self.variable not in VARIABLES:
            raise SfumatoError(f"Unknown solver variable {self.variable!r}: use one of {', '.join(VARIABLES)}.")

    def place(self, t: float, point: Point) -> Place:
        alpha, sigma = point
        c = self.rule.time(alpha, sigma)
        lam = -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha) - math.log(sigma)
        if self.variable == "t" and sigma == 0 and float(self.schedule.sigma(t)) > 0:
            t = -math.inf  # the clean signal beyond the end of the schedule has no time
        return Place(c, {"clock": c, "logsnr": lam, "t": t}[self.variable], lam)

    def time(self, v: float) -> float:
        """The time t at a value v of the variable."""
        if self.variable == "t":
            return v
        return float(self.schedule.time(2 * v if self.variable == "logsnr" else self.rule.logsnr(v)))

    def between(self, start: Place, end: Place, share: float) -> float:
        """t at a fraction `share` of the step; 0 if that lies beyond the end of the schedule."""
        return self.time(start.variable + share * (end.variable - start.variable))

    def reaches(self, end: Place) -> bool:
        """Whether the polynomial can be integrated up to `end`: in lam it can even if lam is infinite there."""
        return math.isfinite(end.clock) and (self.variable == "logsnr" or math.isfinite(end.variable))

    def weights(self, known: list[Place], start: Place, end: Place) -> list[float]:
        """The weights w_i of the values at the known places, for the step from start to end."""
        if len(known) == 1:
            return [end.clock - start.clock]
        if self.variable == "clock":
            return lagrange_integrals([place.clock for place in known], start.clock, end.clock)
        lam, measure = self._quadrature(start.lam, end.lam)
        # relative to the start of the step, to avoid cancellation in short steps
        if self.variable == "logsnr":
            v = lam - start.lam
        else:
            v = self.schedule.time(torch.from_numpy(2 * lam)).numpy() - start.variable
        nodes = [place.variable - start.variable for place in known]
        return [float(measure @ np.prod([(v - b) / (a - b) for b in nodes[:i] + nodes[i + 1 :]], axis=0))
                for i, a in enumerate(nodes)]  # fmt: skip

    def _quadrature(self, start: float, stop: float) -> tuple[np.ndarray, np.ndarray]:
        """Quadrature nodes in lam from start to stop, and weights that include dc/dlam."""
        low = start if math.isfinite(start) else math.copysign(_FAR, start)
        high = stop if math.isfinite(stop) else low + math.copysign(_FAR, stop)
        edges = np.linspace(low, high, max(1, math.ceil(abs(high - low) / _PIECE)) + 1)
        half = np.diff(edges)[:, None] / 2
        lam = (edges[:-1, None] + half * (1 + _ROOTS)).ravel()
        return lam, (half * _WEIGHTS).ravel() * self.rule.rate(lam)
