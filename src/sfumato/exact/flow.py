"""The probability-flow ODE of an exact model, solved to rounding.

    w = z / sqrt(alpha^2 + sigma^2),   theta = arctan(sigma / alpha)
    dw/dtheta = cos(theta) E[eps|z] - sin(theta) E[x|z]

The right-hand side depends on (alpha, sigma) only through theta, so one map covers every schedule. The clock is
u = log tan(theta / 2): logarithmic at sigma -> 0, where the data have fine structure, and regular at alpha = 0.
This is not a `Plan`: each row has its own adaptive steps.
Sources: Song et al. 2021 (2011.13456), Eq. 13; Gragg 1965 and Bulirsch and Stoer 1966 for the extrapolation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import SfumatoError

# (u, y, rows) -> dy/du; `rows` are the batch rows along y's last-but-one dimension
RightSide = Callable[[Tensor, Tensor, Tensor], Tensor]
# (z, alpha, sigma, rows) -> (E[x|z], E[eps|z])
Read = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

_COLUMNS = 6
_NEAR = 1e-10  # below this sigma / (alpha scale), (x, eps) are constant along the flow to within 1e-10 of the scale

# Step limits in the clock, where features have width 1: a longer step could miss one entirely, and the error estimate
# asks for a shorter one only where two components balance to rounding.
_SHORTEST, _LONGEST = 1e-5, 2.0
_LEAST_TOL = 1e-13


class Level(NamedTuple):
    """A noise level for each row: float64 (B,), or (B, D) where every number of a state has its own."""

    alpha: Tensor
    sigma: Tensor


def column(level: Tensor) -> Tensor:
    """A level (B,) or, for each number, (B, D), shaped to multiply states (B, D)."""
    return level[:, None] if level.ndim == 1 else level


def _weights(columns: int) -> list[float]:
    """Extrapolation weights for errors even in 1/n, n = 2, 4, ...: w_j = prod_{i != j} n_j^2 / (n_j^2 - n_i^2)."""
    n = range(1, columns + 1)
    return [math.prod(j * j / (j * j - i * i) for i in n if i != j) for j in n]


def _extrapolated_step(rhs: RightSide, u: Tensor, y: Tensor, h: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """One step of order 2 J by the extrapolated midpoint rule with n = 2, 4, .., 2 J substeps, in one batch.

    Returns y(u + h) (B, D) and an error estimate (B,): the difference to the scheme without the coarsest sequence.
    """
    counts = torch.arange(2, 2 * _COLUMNS + 1, 2, dtype=y.dtype, device=y.device)
    sub = h / counts[:, None]  # (J, B)
    old = y.expand(_COLUMNS, *y.shape).clone()
    new = old + sub[..., None] * rhs(u, y, rows)
    for m in range(1, 2 * _COLUMNS):
        live = int((counts <= m).sum())  # the first sequence with more than m substeps; it and later ones continue
        slope = rhs(u + m * sub[live:], new[live:], rows)
        old[live:], new[live:] = new[live:].clone(), old[live:] + 2 * sub[live:, :, None] * slope
    fine = torch.tensor(_weights(_COLUMNS), dtype=y.dtype, device=y.device)
    # without n_1, the weight of each other column is multiplied by (n_j^2 - n_1^2) / n_j^2
    coarse = fine * (1 - (counts[0] / counts) ** 2)
    result, other = torch.einsum("j,jbd->bd", fine, new), torch.einsum("j,jbd->bd", coarse, new)
    return result, (result - other).abs().amax(-1)


@torch.no_grad()
def integrate(
    rhs: RightSide,
    y: Tensor,
    start: Tensor,
    stop: Tensor,
    tol: float = 1e-13,
    shortest: float = 0.0,
    longest: float = math.inf,
) -> Tensor:
    """y(stop) of dy/du = rhs(u, y, rows), y(start) = y (B, D), with separate steps for each row; start and stop (B,).

    The estimated error of a step stays below tol (1 + max|y|) in each row. Steps of length `shortest` are accepted
    whatever their error (rounding may exceed tol); no step is longer than `longest`. No gradients.
    """
    if not tol >= _LEAST_TOL:
        raise SfumatoError(f"tol = {tol:g} is below rounding error: use {_LEAST_TOL:g} or more.")
    if not bool(y.isfinite().all()):
        raise SfumatoError("The probability flow starts from a state that is not finite: check z.")
    y, u, sign = y.clone(), start.clone(), torch.sign(stop - start)
    h = ((stop - start).abs() / 4).clamp(shortest, longest)
    least = torch.clamp(1e-9 * (stop - start).abs(), min=shortest)
    rows = torch.nonzero(sign)[:, 0]
    while len(rows):
        left = (stop[rows] - u[rows]).abs()
        step, last = torch.minimum(h[rows], left), h[rows] >= left
        new, error = _extrapolated_step(rhs, u[rows], y[rows], sign[rows] * step, rows)
        ratio = torch.nan_to_num(error / (tol * (1 + y[rows].abs().amax(-1))), nan=math.inf, posinf=math.inf)
        good = (ratio <= 1) | (ratio.isfinite() & (step <= shortest))
        if bool((~good & (step < least[rows])).any()):
            raise SfumatoError("The probability flow cannot be integrated within tol from here: use a larger tol.")
        y[rows] = torch.where(good[:, None], new, y[rows])
        u[rows] = torch.where(good, u[rows] + sign[rows] * step, u[rows])
        growth = (0.9 * ratio.clamp_min(1e-30) ** (-1 / (2 * _COLUMNS - 1))).clamp(0.1, 5.0)
        h[rows] = (step * growth).clamp(shortest, longest)
        rows = rows[~(good & last)]
    return y


def _clock(level: Level) -> Tensor:
    """u = log tan(theta / 2) = log(sigma / (sqrt(alpha^2 + sigma^2) + alpha)); -inf at sigma = 0, 0 at alpha = 0."""
    return torch.log(level.sigma / (torch.hypot(level.alpha, level.sigma) + level.alpha))


def follow(read: Read, z: Tensor, start: Level, stop: Level, centre: Tensor, scale: float, tol: float) -> Tensor:
    """The flow's state at `stop` from z (B, D) at `start`.

    `centre` (D,) and `scale` are the mean and spread of the data: the ODE is solved for (x - centre) / scale, so that
    the structure of the data is at theta of order 1 and below in any units.
    """
    all_rows = torch.arange(len(z), device=z.device)
    start, stop = Level(start.alpha * scale, start.sigma), Level(stop.alpha * scale, stop.sigma)

    def beliefs(w: Tensor, cos: Tensor, sin: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        alpha = cos / scale
        x, eps = read(w + alpha[..., None] * centre, alpha, sin, rows)
        return (x - centre) / scale, eps

    def rhs(u: Tensor, w: Tensor, rows: Tensor) -> Tensor:
        sin, cos = 1 / torch.cosh(u), -torch.tanh(u)
        x, eps = beliefs(w, cos, sin, rows)
        return (sin * cos)[..., None] * eps - (sin * sin)[..., None] * x

    def jump(w: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """One straight step from u to v, both below _NEAR."""
        x, eps = beliefs(w, -torch.tanh(u), 1 / torch.cosh(u), all_rows)
        return -torch.tanh(v)[:, None] * x + (1 / torch.cosh(v))[:, None] * eps

    u, v = _clock(start), _clock(stop)
    near = torch.full_like(u, math.log(_NEAR / 2))
    low_u, low_v = (u < near)[:, None], (v < near)[:, None]
    w = (z - (start.alpha / scale)[:, None] * centre) / torch.hypot(*start)[:, None]
    w = torch.where(low_u, jump(w, u, near), w) if bool(low_u.any()) else w
    w = integrate(rhs, w, torch.maximum(u, near), torch.maximum(v, near), tol, _SHORTEST, _LONGEST)
    w = torch.where(low_v, jump(w, near, v), w) if bool(low_v.any()) else w
    return w * torch.hypot(*stop)[:, None] + (stop.alpha / scale)[:, None] * centre
