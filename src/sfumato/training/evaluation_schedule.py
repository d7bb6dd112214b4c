"""How often a run is validated and logged, and what share of its work everything besides its steps may take.

The loop uses it as it trains, `forecast` before. No torch here.
"""

from __future__ import annotations

import math

from sfumato.training.config import TrainConfig

LOG_LINES = 200  # at least, in a budget of this many steps or more

# largest share of the training work for each, about 5 % together: validations, gradients by noise level, the grid
# halfway and the last one, the search for copies at the end, or the bits of a text in its place, and the information of
# the conditions, if there are any
LOSSES, GRADIENTS, GRID, LAST_GRID, COPIES, TEXT, INFORMATION = 0.0125, 0.0075, 0.01, 0.0125, 0.0075, 0.03, 0.0025
TIMES = (20, 16, 12, 8, 4, 2, 1)  # allowed numbers of validations; from four on, one falls at three quarters of the run


def validations(losses: float, gradients: float, total: float) -> tuple[int, int, int]:
    """(number of validations in a run of `total` samples, how many of them measure gradients, depth of those).

    losses, gradients: the cost of one measurement of each, in samples of work; 0 if there is none.
    """
    many = int(LOSSES * total / losses) if losses else 0
    deep = int(GRADIENTS * total / gradients) if gradients else 0
    often = next((n for n in TIMES if n <= many), 0)
    seldom = next((n for n in range(min(often, deep), 0, -1) if often % n == 0), 0)
    return often, seldom, max(1, deep // max(1, seldom))


def triples(total: float, levels: int) -> int:
    """Number of fixed draws, a multiple of the levels: up to 14 per level if `total` samples can pay for four
    validations, up to 112 if for all of them. At least two per level, which an interval needs."""
    affordable = max(min(14 * levels, LOSSES * total / 4), min(112 * levels, LOSSES * total / TIMES[0]))
    return max(2 * levels, int(affordable) // levels * levels)


def due(count: int, before: float, after: float) -> bool:
    """Whether one of `count` evenly spaced times falls between two fractions of the budget."""
    return math.floor(after * count) > math.floor(before * count)


def log_every(config: TrainConfig) -> int:
    """Steps per line of the log."""
    return 10 if config.steps is None else min(10, max(1, config.steps // LOG_LINES))
