"""Rows and clocks: choices of (S, c, y) that turn the probability-flow ODE into d(z / S)/dc = y, without a linear term.

    x:     S = sigma,                    c = alpha / sigma             y = x_hat
    eps:   S = alpha,                    c = sigma / alpha             y = eps_hat
    flow:  S = alpha + sigma,            c = sigma / (alpha + sigma)   y = eps_hat - x_hat
    F:     S = sqrt(alpha^2 + sigma^2),  c = arctan(sigma / alpha)     y = (alpha eps_hat - sigma x_hat) / S

A first-order step in any of the first three is DDIM. The clock of x is infinite at the data end, that of eps at pure
noise; flow and F are finite at both ends. Sources: 2206.00927 and 2211.01095 (x, eps), 2206.00364 (sigma clock).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sfumato.errors import SfumatoError

Point = tuple[float, float]  # (alpha, sigma)


class Clock(NamedTuple):
    """scale S and time c of (alpha, sigma); read: (p, q) with y = p z + q x_hat; logsnr at c; rate dc/dlam,
    lam = logsnr / 2."""

    scale: Callable[[float, float], float]
    time: Callable[[float, float], float]
    read: Callable[[float, float], tuple[float, float]]
    logsnr: Callable[[float], float]
    rate: Callable[[np.ndarray], np.ndarray]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _flow_read(a: float, s: float) -> tuple[float, float]:
    return (1 / s, -a / s - 1)


def _angle_read(a: float, s: float) -> tuple[float, float]:
    norm = math.hypot(a, s)
    return a / s / norm, -norm / s


def _flow_rate(lam: np.ndarray) -> np.ndarray:
    return -1 / (4 * np.cosh(lam / 2) ** 2)


CLOCKS: dict[str, Clock] = {
    "x": Clock(
        lambda a, s: s, lambda a, s: a / s if s else math.inf, lambda a, s: (0.0, 1.0), lambda c: 2 * _log(c), np.exp
    ),
    "eps": Clock(
        lambda a, s: a, lambda a, s: s / a if a else math.inf, lambda a, s: (1 / s, -a / s), lambda c: -2 * _log(c),
        lambda lam: -np.exp(-lam),
    ),
    "flow": Clock(
        lambda a, s: a + s, lambda a, s: s / (a + s), _flow_read, lambda c: 2 * (_log(1 - c) - _log(c)), _flow_rate
    ),
    "F": Clock(
        math.hypot, lambda a, s: math.atan2(s, a), _angle_read, lambda c: 2 * (_log(math.cos(c)) - _log(math.sin(c))),
        lambda lam: -1 / (2 * np.cosh(lam)),
    ),
}  # fmt: skip


def clock(row: str) -> Clock:
    if row not in CLOCKS:
        raise SfumatoError(f"Unknown solver row {row!r}: use one of {', '.join(CLOCKS)}.")
    return CLOCKS[row]
