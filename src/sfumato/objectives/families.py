"""Find the nearest weight among parametric families, by a pattern search."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from sfumato.errors import SfumatoError
from sfumato.objectives import weights
from sfumato.objectives.weights import Weight

FAMILIES: dict[str, tuple[Callable[..., Weight], dict[str, float]]] = {
    "sigmoid": (weights.sigmoid, {"bias": 0.0}),
    "p2": (weights.p2, {"gamma": 1.0}),
    "min-snr": (weights.min_snr, {"gamma": 5.0}),
    "soft-min-snr": (weights.soft_min_snr, {"gamma": 4.0}),
    "sd3-logit-normal": (weights.sd3_logit_normal, {"mean": 0.0, "std": 1.0}),
    "sd3-mode": (weights.sd3_mode, {"s": 0.79}),
}
_SHORTEST, _TRIES = 2.0**-8, 100


def nearest(distance: Callable[[Weight], float]) -> tuple[str, Weight, float]:
    """(name, weight, distance) of the nearest member of any family, such as "sigmoid(bias=-2)"."""
    best: tuple[str, Weight, float] | None = None
    for name, (make, start) in FAMILIES.items():
        parameters, least = _search(partial(_distance, make, distance), start)
        if best is None or least < best[2]:
            inside = ", ".join(f"{key}={value:.4g}" for key, value in parameters.items())
            best = f"{name}({inside})", make(**parameters), least
    assert best is not None
    return best


def _distance(make: Callable[..., Weight], distance: Callable[[Weight], float], values: dict[str, float]) -> float:
    try:
        return distance(make(**values))
    except SfumatoError:  # outside the family's range
        return math.inf


def _search(f: Callable[[dict[str, float]], float], start: dict[str, float]) -> tuple[dict[str, float], float]:
    """(arguments, value) near a minimum: steps along each axis, halved when none helps; finally try rounded numbers."""
    at, least, step = dict(start), f(start), 1.0
    for _ in range(_TRIES):
        if step < _SHORTEST or least < 1e-9:
            break
        tried = [{**at, key: at[key] + sign * step} for key in at for sign in (1, -1)]
        value, place = min((f(values), i) for i, values in enumerate(tried))
        if value < least:
            at, least = tried[place], value
        else:
            step /= 2
    for digits in (2, 1):
        plain = {key: round(value, digits) for key, value in at.items()}
        value = f(plain)
        if value < max(least, 1e-9):
            at, least = plain, value
    return at, least
