"""What a run will take, from what its parts took once: a sum, for the middle and for the ends of an interval.

    seconds = start + first steps + (n - first) step + sum over events of count * cost + end,   n steps

A budget in minutes is the same sum solved for n. No torch here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from sfumato.training import occasions
from sfumato.training.config import TrainConfig

BASE64 = 4 / 3


class Interval(NamedTuple):
    """A figure, and what it would be if all steps took as long as the fastest tenth did or the slowest."""

    value: float
    low: float
    high: float


class Twice(NamedTuple):
    """Seconds of what is slower the first time, as caches and kernels are made for its shapes."""

    first: float
    later: float

    def times(self, count: int) -> float:
        return self.first + (count - 1) * self.later if count else 0.0


class Snapshots(NamedTuple):
    """Seconds of a snapshot that stands alone, of the first that says what changed, and of reading each before it.

    size: snapshots from one that stands alone to the next.
    """

    alone: float
    change: float
    reading: float
    size: int

    def times(self, count: int) -> float:
        places = (k % self.size for k in range(count))
        return math.fsum(self.change + (place - 1) * self.reading if place else self.alone for place in places)


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a calibration measured, in seconds, bytes and samples of work.

    start: from the start of the process to the first step. first: the first steps, which are slower; steps: the
    calibrated ones. losses, gradients: one validation of each kind (gradients: above the losses, at depth 1); work:
    what the loop counts for them. grid: one on the way; checkpoint: one on the way, which comes with model and
    report; end: all that follows the last step. disk: bytes of one file of each kind.
    """

    start: float
    first: list[float]
    steps: list[float]
    losses: Twice
    gradients: float
    work: tuple[float, float]
    grid: Twice
    snapshots: Snapshots
    checkpoint: float
    end: float
    disk: dict[str, int]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Costs:
        pairs: dict[str, Any] = {name: Twice(*values[name]) for name in ("losses", "grid")}
        pairs["snapshots"] = Snapshots(*values["snapshots"])
        return cls(**{**values, **pairs, "work": tuple(values["work"])})


def step_seconds(steps: list[float]) -> Interval:
    """The mean of the steps between the deciles, and the deciles: single steps that something held up do not count."""
    ordered = sorted(steps)
    cut = len(ordered) // 10
    middle = ordered[cut : len(ordered) - cut]
    return Interval(math.fsum(middle) / len(middle), middle[0], middle[-1])


def events(costs: Costs, config: TrainConfig, steps: int, seconds: float) -> dict[str, float]:
    """Seconds of what happens between the steps of a run of so many steps and seconds."""
    return {
        "validation": _validation(costs, config, steps),
        "grids": costs.grid.times(occasions.grids(config, steps)),
        "averages": costs.snapshots.times(occasions.snapshots(config, steps)),
        "checkpoints": costs.checkpoint * occasions.checkpoints(config, seconds),
    }


def _validation(costs: Costs, config: TrainConfig, steps: int) -> float:
    if not costs.work[0]:
        return 0.0
    often, seldom, depth = occasions.validations(*costs.work, float(steps * config.batch))
    return costs.losses.times(min(steps, max(1, often))) + min(steps, seldom) * depth * costs.gradients


def stepping(costs: Costs, steps: int, step: float) -> float:
    """Seconds of the steps alone."""
    warm = costs.first[:steps]
    return math.fsum(warm) + (steps - len(warm)) * step


def loop(costs: Costs, config: TrainConfig, steps: int, step: float) -> tuple[float, dict[str, float]]:
    """(seconds of the loop, its parts) of so many steps."""
    alone = stepping(costs, steps, step)
    parts = events(costs, config, steps, alone)
    parts = {"steps": alone, **parts}
    return math.fsum(parts.values()), parts


def steps_of(costs: Costs, config: TrainConfig, step: float) -> int:
    """Steps of the optimiser that the budget gives, the least number that uses it up."""
    if config.steps is not None:
        return config.steps
    budget = 60 * (config.minutes or 0.0)
    low, high = 1, max(1, math.ceil(budget / step))  # without events there would be as many as this
    while low < high:
        middle = (low + high) // 2
        if loop(costs, config, middle, step)[0] < budget:
            low = middle + 1
        else:
            high = middle
    return low


def disk(costs: Costs, config: TrainConfig, steps: int, seconds: float) -> dict[str, int]:
    """Bytes of the run folder by its parts, once the run has ended."""
    one, grids = costs.disk, occasions.grids(config, steps)
    often = 0
    if costs.work[0]:
        often = min(steps, max(1, occasions.validations(*costs.work, float(steps * config.batch))[0]))
    kept, averages = 1 + bool(occasions.checkpoints(config, seconds)), occasions.snapshots(config, steps)
    alone = math.ceil(averages / costs.snapshots.size)
    pictures = grids * one["grid"] + one["last_grid"]
    shown = pictures if grids < occasions.PICTURES else (occasions.PICTURES - 1) * one["grid"] + one["last_grid"]
    return {
        "checkpoints": kept * one["checkpoint"],
        "model": one["model"],
        "averages": alone * one["snapshot"] + (averages - alone) * one["change"],
        "samples": pictures + one["copies"],
        "log": math.ceil(steps / occasions.log_every(config)) * one["line"] + often * one["validation_line"],
        "report": one["report"] + round(BASE64 * shown),
        "settings": one["settings"],
    }
