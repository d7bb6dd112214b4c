"""Orders from errors: the slope of log error against log steps, on the range where it has settled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

SETTLED = 0.04  # two local slopes that differ by less belong to the asymptotic range


class Slope(NamedTuple):
    """order: the fitted slope, None where fewer than two errors lie above rounding; errors: (steps, error) as measured.

    settled: whether the local slopes had stopped changing, so that the fit is of the asymptotic range.
    """

    order: float | None
    errors: tuple[tuple[int, float], ...]
    settled: bool


def local(errors: list[tuple[float, float]]) -> list[float]:
    """The slope between neighbours."""
    return [
        math.log(e / f) / math.log(n / m) for (m, e), (n, f) in zip(errors, errors[1:], strict=False) if e > 0 and f > 0
    ]


def fit(errors: list[tuple[float, float]]) -> float:
    """-d log error / d log steps by least squares."""
    x = [math.log(n) for n, _ in errors]
    y = [math.log(e) for _, e in errors]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return -sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def refine(error: Callable[[int], float | None], counts: Iterable[int], floor: float) -> Slope:
    """Measure at growing numbers of steps until the local slope settles, the error is rounding, or counts end.

    error(n) is None where n steps cannot be taken. The fit is over the last three errors above the floor.
    """
    seen: list[tuple[int, float]] = []
    settled = False
    for n in counts:
        value = error(n)
        if value is None or not math.isfinite(value):
            continue
        seen.append((n, value))
        good = [(m, e) for m, e in seen if e > floor]
        slopes = local(list(good))
        settled = len(slopes) >= 3 and max(slopes[-2:]) - min(slopes[-2:]) < SETTLED
        if settled or value <= floor:
            break
    good = [(m, e) for m, e in seen if e > floor][-3:]
    return Slope(fit(list(good)) if len(good) >= 2 else None, tuple(seen), settled)
