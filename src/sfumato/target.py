"""Prediction targets as rows (a, b): y = a x + b eps together with z = alpha x + sigma eps determines x and eps.

    [alpha sigma] [x  ]   [z]                        det = b alpha - a sigma
    [a     b    ] [eps] = [y]        x = (b z - sigma y) / det,   eps = (alpha y - a z) / det
                                     |dy|^2 = (det / sigma)^2 |dx|^2 = (det / alpha)^2 |deps|^2

At sigma = 0 the state is the data: x = z/alpha, and E[eps | z] = 0. At alpha = 0 a row with a = 0 (eps, score) carries
no information on x and raises SfumatoError.
Sources: Salimans and Ho 2022 (2202.00512) for v; Karras et al. 2022 (2206.00364), Eq. 7-8, for F.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato import registry
from sfumato.errors import SfumatoError
from sfumato.registry import register
from sfumato.schedule import Schedule, Time, as_time

NAMES = registry.names("target")  # the built-in targets


class Row(NamedTuple):
    """y = a x + b eps; float64 tensors of one shape."""

    a: Tensor
    b: Tensor


class Solution(NamedTuple):
    """x = xz z + xy y and eps = ez z + ey y."""

    xz: Tensor
    xy: Tensor
    ez: Tensor
    ey: Tensor


def row(name: str, schedule: Schedule, t: Time, sigma_data: float | Tensor = 1.0) -> Row:
    """The row (a, b) of a named target at times t: one of those registered below, or a user's own."""
    return registry.get("target", name)(schedule, as_time(t), sigma_data)


@register("target", "x")
def clean(schedule: Schedule, t: Tensor, sigma_data: float) -> Row:
    """(1, 0)."""
    sigma = schedule.sigma(t)
    return Row(torch.ones_like(sigma), torch.zeros_like(sigma))


@register("target", "eps")
def noise(schedule: Schedule, t: Tensor, sigma_data: float) -> Row:
    """(0, 1)."""
    sigma = schedule.sigma(t)
    return Row(torch.zeros_like(sigma), torch.ones_like(sigma))


@register("target", "score")
def score(schedule: Schedule, t: Tensor, sigma_data: float) -> Row:
    """(0, -1/sigma)."""
    sigma = schedule.sigma(t)
    return Row(torch.zeros_like(sigma), -1 / sigma)


@register("target", "v")
def v(schedule: Schedule, t: Tensor, sigma_data: float) -> Row:
    """(-sigma, alpha)."""
    alpha, sigma = schedule(t)
    return Row(-sigma, alpha)


@register("target", "velocity")
def velocity(schedule: Schedule, t: Tensor, sigma_data: float) -> Row:
    """(alpha', sigma') = dz/dt."""
    return Row(*schedule.rates(t))


@register("target", "F")
def raw(schedule: Schedule, t: Tensor, sigma_data: float) -> Row:
    """(sigma/sd, -alpha sd) / sqrt(sigma^2 + alpha^2 sd^2): EDM's raw network output for any schedule."""
    alpha, sigma = schedule(t)
    norm = torch.sqrt(sigma**2 + alpha**2 * sigma_data**2)
    return Row(sigma / sigma_data / norm, -alpha * sigma_data / norm)


def solve(row: Row, alpha: Tensor, sigma: Tensor) -> Solution:
    """The coefficients of (x, eps) in terms of (z, y). Raises SfumatoError if x is undetermined (alpha = a = 0)."""
    a, b = row
    det = b * alpha - a * sigma
    clean = sigma == 0
    if not det.is_meta and bool(((det == 0) & ~clean).any()):
        raise SfumatoError("This target cannot determine x at alpha = 0 (zero signal): use x, v, velocity or F.")
    inverse = 1 / torch.where(clean, 1.0, det)
    # at sigma = 0: x = z / alpha and eps = 0, whatever the row
    return Solution(
        torch.where(clean, 1 / alpha, b * inverse),
        torch.where(clean, 0.0, -sigma * inverse),
        torch.where(clean, 0.0, -a * inverse),
        torch.where(clean, 0.0, alpha * inverse),
    )


def check(name: str, schedule: Schedule) -> None:
    """Raise SfumatoError if the target does not determine x, or is infinite, at the schedule's noise end."""
    at_noise = row(name, schedule, 1.0).a
    if float(schedule.alpha(1.0)) == 0 and float(at_noise) == 0:
        raise SfumatoError(
            f"Target {name!r} cannot be read at zero signal, and {type(schedule).__name__} has alpha(1) = 0: "
            "use target='v', 'x', 'velocity' or 'F', or a schedule with alpha(1) > 0, such as VE or EDM."
        )
    if not bool(at_noise.isfinite()):
        raise SfumatoError(
            f"Target {name!r} is infinite at t = 1 of {type(schedule).__name__}, where alpha goes to 0 like a square "
            "root: use target='v', 'x' or 'F'."
        )


def error_scale(row: Row, alpha: Tensor, sigma: Tensor) -> Tensor:
    """c with |deps|^2 = c |dy|^2 for two beliefs about the same z: c = (alpha / det)^2."""
    return (alpha / (row.b * alpha - row.a * sigma)) ** 2
