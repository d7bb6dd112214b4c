"""How often a run is validated and logged, and what share of its work each thing beside its steps may take.

The loop asks as it goes; a forecast (`forecast`) asks before. No torch here.
"""

from __future__ import annotations

import math

from sfumato.training.config import TrainConfig

LOG_LINES = 200  # at least, in a budget of so many steps or more

# of the work of training that each costs at most, 5 % together: validations, gradients by noise level, the grid on the
# way and the last one, the search for copies at the end; and what the conditions say, where there are some
LOSSES, GRADIENTS, GRID, LAST_GRID, COPIES, SAID = 0.0125, 0.0075, 0.01, 0.0125, 0.0075, 0.0025
TIMES = (20, 16, 12, 8, 4, 2, 1)  # validations of a run: where there are four, one is at three quarters


def validations(losses: float, gradients: float, total: float) -> tuple[int, int, int]:
    """(validations of a run of `total` samples, those of them with gradients, depth of these).

    losses, gradients: the cost of each, in samples of work; 0 where there are none.
    """
    many = int(LOSSES * total / losses) if losses else 0
    deep = int(GRADIENTS * total / gradients) if gradients else 0
    often = next((n for n in TIMES if n <= many), 0)
    seldom = next((n for n in range(min(often, deep), 0, -1) if often % n == 0), 0)
    return often, seldom, max(1, deep // max(1, seldom))


def triples(total: float, levels: int) -> int:
    """Fixed draws, a multiple of the levels: up to 14 a level if `total` samples can pay for four validations, up to
    112 if for all of them. At least two a level, without which there is no interval."""
    affordable = max(min(14 * levels, LOSSES * total / 4), min(112 * levels, LOSSES * total / TIMES[0]))
    return max(2 * levels, int(affordable) // levels * levels)


def due(count: int, before: float, after: float) -> bool:
    """Whether one of `count` evenly spaced times falls between two fractions of the budget."""
    return math.floor(after * count) > math.floor(before * count)


def log_every(config: TrainConfig) -> int:
    """Steps between two lines of the log."""
    return 10 if config.steps is None else min(10, max(1, config.steps // LOG_LINES))
