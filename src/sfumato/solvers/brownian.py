"""Noise as a path of time: a plan's draws as increments of one Wiener process, whatever its steps.

    xi_k = (W(c_{k+1}) - W(c_k)) / sqrt(c_{k+1} - c_k)
    c = sigmoid(logsnr / 8) = alpha^(1/4) / (alpha^(1/4) + sigma^(1/4))

The clock c rises from 0 at pure noise to 1 at the clean signal for every schedule, so that with more steps the samples
of a seed tend to one picture, and to the same one under any schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.solvers.clocks import Point
from sfumato.solvers.plan import Noise, Plan
from sfumato.solvers.walk import Walk


def level_clock(point: Point) -> float:
    """c of (alpha, sigma), finite at both ends."""
    alpha, sigma = (value**0.25 for value in point)
    return alpha / (alpha + sigma)


def spans(name: str, path: Sequence[Point], noisy: Sequence[bool]) -> dict[int, tuple[float, float]]:
    """Of each call that draws: the clock from the end of the last draw to that of the state that the call makes."""
    found, start = {}, level_clock(path[0])
    for k, draws in enumerate(noisy):
        if draws:
            end = level_clock(path[k + 1])
            if end - start < noise.Brownian.FINEST:
                raise SfumatoError(
                    f"The solver {name} draws noise that no path of time has (call {k} does not lead to less noise, or "
                    "by too little): sample without brownian."
                )
            found[k], start = (start, end), end
    return found


def along(plan: Plan | Walk, seed: int, index: Tensor) -> Noise:
    """A source of noise for a plan or a walk with a `path`: row i follows the Wiener process of (seed, index_i)."""
    points: Sequence[Point] | None = getattr(plan, "path", None)
    if points is None:
        raise SfumatoError(f"The solver {plan.name} has no fixed times, so it follows no path: leave brownian out.")
    noisy = [line.noise != 0 for line in plan.lines] if isinstance(plan, Plan) else [True] * (len(points) - 1)
    steps = spans(plan.name, points, noisy)
    path = noise.Brownian(seed, index)

    def draw(call: int, like: Tensor) -> Tensor:
        start, end = steps[call]
        return path.between(start, end, like) / math.sqrt(end - start)

    return draw
