"""How often a run does what is no step: validations, snapshots of averages, grids of samples, checkpoints.

The loop asks as it goes; a forecast (`forecast`) asks before. No torch here.
"""

from __future__ import annotations

import math

from sfumato.training.config import TrainConfig

LOG_LINES = 200  # at least, in a budget of so many steps or more
SHARE = 0.02  # of the work of training that validations cost at most, gradients by noise level being half of it
MOST = 20  # validations of a run
PICTURES = 12  # grids that report.html shows, evenly chosen


def validations(losses: float, gradients: float, total: float) -> tuple[int, int, int]:
    """(times that losses are measured, times with gradients among these, depth of these) in a run of `total` samples.

    losses, gradients: what each costs, in samples of work; 0 where there are none. Gradients fall on the times of
    losses, so that these are not measured more often than they may be.
    """
    many, deep = _borne(losses, total), _borne(gradients, total)
    seldom = min(MOST, deep)
    often = min(MOST, many) // max(1, seldom) * max(1, seldom)
    return often, seldom, max(1, deep // MOST)


def _borne(cost: float, total: float) -> int:
    """How often half of `SHARE` bears what costs `cost` samples of work, in a budget of `total` samples."""
    return int(SHARE / 2 * total / cost) if cost else 0


def due(count: int, before: float, after: float) -> bool:
    """Whether one of `count` evenly spaced times falls between two fractions of the budget."""
    return math.floor(after * count) > math.floor(before * count)


def log_every(config: TrainConfig) -> int:
    """Steps between two lines of the log."""
    return 10 if config.steps is None else min(10, max(1, config.steps // LOG_LINES))


def snapshots(config: TrainConfig, steps: int) -> int:
    """Snapshots of the averages in so many steps: at the fractions sqrt(k / count) of the budget."""
    count = config.snapshots
    return len({math.ceil(steps * math.sqrt(k / count) - 1e-6) for k in range(1, count + 1)})


def grids(config: TrainConfig, steps: int) -> int:
    """Grids of samples before the last one: one in the middle, or as often as the settings say."""
    if config.sample_every is None:
        return int(steps > 1)
    return (steps - 1) // config.sample_every if config.sample_every else 0


def checkpoints(config: TrainConfig, seconds: float) -> int:
    """Checkpoints between the first, which a run begins with, and the last, in so many seconds."""
    return int(seconds / (60 * config.checkpoint_every))
