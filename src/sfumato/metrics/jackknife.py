"""Standard errors of any statistic of two sets, by leaving out a group of both at a time.

    stderr^2 = (G - 1) / G sum_g (s_(-g) - mean)^2

Source: Efron and Stein 1981, "The jackknife estimate of variance".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval, around

GROUPS = 20
_SEED = 0  # of the groups: part of the definition


def jackknife(statistic: Callable[[Tensor, Tensor], float], n: int, m: int, most: float = math.inf) -> Interval:
    """The statistic of all rows of two sets of n and m, and its interval within [0, most].

    statistic: (numbers of rows of the first set, of the second), int64 -> a number from 0 to `most`.
    """
    groups = min(GROUPS, n, m)
    if groups < 2:
        raise SfumatoError(f"A metric compares sets of at least 2 samples, not {n} with {m}.")
    first, second = (noise.permutation(_SEED, 0, size).argsort() % groups for size in (n, m))
    every = [torch.arange(size) for size in (n, m)]
    value = statistic(*every)
    left = torch.tensor(
        [statistic(every[0][first != g], every[1][second != g]) for g in range(groups)], dtype=torch.float64
    )
    square = (groups - 1) / groups * float((left - left.mean()).square().sum())
    found = around(value, math.sqrt(square), groups - 1)
    return found._replace(low=max(0.0, found.low), high=min(most, found.high))
