"""How many masks to reveal at each call: the sizes that lose least, by a dynamic programme.

    E KL(model || samples) = sum_k n_k c(m_k) - sum_{m=1}^{D} c(m),    m_{k+1} = m_k - n_k, m_1 = D

for T calls that each reveal n_k of m_k masks, any of them: c(m) is the mean entropy of a masked symbol where m of D are
masked. It is a sum over the edges of a path D = m_1 > .. > m_{T+1} = 0, so the best one is found exactly.
Sources: Hoogeboom et al. 2021 (2110.02037), Sec. 3.2; 2511.04647 for the sum. Here c is that of the model itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sfumato.conditions import Conditions, Given
from sfumato.errors import SfumatoError, whole
from sfumato.guidance import Scale, guide
from sfumato.sampling import trajectory
from sfumato.solver_selection import guidance_of
from sfumato.solvers import Plan
from sfumato.solvers.reveal import Reveal

POINTS = 64  # samples that c is measured from
_MOST_CALLS = 256  # of the walk in which c is measured; between its numbers of masks c is interpolated


def require_whole(noise: float, t_start: float, t_stop: float) -> None:
    """Raise SfumatoError for what only plans of numbers have."""
    if noise or (t_start, t_stop) != (1, 0):
        raise SfumatoError("The plan of masks leads from t = 1 to 0, and has no noise: leave these out.")


def tune(
    model: Any, steps: int, guidance: Scale | None, interval: tuple[float, float] | None, points: int | None,
    batch: int, seed: int, turns: Mapping[str, Given],
) -> Plan:  # fmt: skip
    """The plan of `steps` calls with the sizes that lose least for this model, its guidance and conditions in turn."""
    shape = getattr(model, "shape", None)
    if not isinstance(shape, tuple):
        raise SfumatoError("A plan for masks needs a model that knows the shape of its samples, by a data spec.")
    size, n = math.prod(shape), points or POINTS
    steps = whole("steps", steps)
    if steps >= size:
        raise SfumatoError(
            f"In {steps} steps all {size} symbols are revealed one by one, which is exact: there is nothing to tune."
        )
    wanted = guidance_of(model, guidance, interval)
    walker = model if guidance is None else guide(model, guidance, interval)
    c = entropies(walker, size, n, seed, batch, turns)
    left, nats = best(c, steps)
    plan = Reveal(order="random", sizes=(size, *left)).plan(model.process, steps)
    usual = {"name": "Reveal(random)", "nats": max(0.0, loss(c, even(size, steps)))}
    record = {
        "guidance": wanted[0], "interval": None if wanted[1] is None else list(wanted[1]), "points": n, "seed": seed,
        "error": {"nats": max(0.0, nats)}, "untuned": usual,
    }  # fmt: skip
    return dataclasses.replace(plan, name="tuned Reveal(random)", tuned=record)


def entropies(
    model: Any, symbols: int, n: int, seed: int = 0, batch: int = 64, turns: Mapping[str, Given] | None = None
) -> np.ndarray:
    """c(m) in nats for m = 0 .. D, float64 (D + 1,): means over n samples of the model, revealed in random order.

    c(0) = 0. Few masks tell more of each other, so that c grows; what noise breaks of this is mended by the nearest
    sequence that grows. turns: conditions that the samples use in turn.
    """
    calls, cond = min(symbols, _MOST_CALLS), Conditions(turns)
    total, weight = np.zeros(symbols + 1), np.zeros(symbols + 1)
    for rows in torch.arange(n).split(batch):
        own = cond.rows(rows % len(next(iter(cond.values())).values)) if turns else cond
        with torch.no_grad():
            for state in trajectory(model, None, calls, Reveal(order="random"), seed, index=rows, cond=own):
                if state.belief is None:
                    continue
                masks = (state.z == model.process.mask).flatten(1)
                number = int(masks[0].sum())
                total[number] += float(state.belief.entropy.flatten(1)[masks].double().sum())
                weight[number] += float(masks.sum())
    known = weight.nonzero()[0]
    return np.interp(np.arange(symbols + 1), [0, *known], [0.0, *growing(total[known] / weight[known], weight[known])])


def growing(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The nearest sequence that does not fall, in the weighted mean square (pool adjacent violators)."""
    pools: list[list[float]] = []
    for value, share in zip(values.tolist(), weight.tolist(), strict=True):
        pools.append([value, share, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, v, i), (b, w, j) = pools[-2:]
            pools[-2:] = [[(a * v + b * w) / (v + w), v + w, i + j]]
    return np.repeat([value for value, *_ in pools], [int(count) for *_, count in pools])


def best(c: np.ndarray, calls: int) -> tuple[list[int], float]:
    """(masks left after each of the calls, the KL in nats) of the best sizes, given c(0) .. c(D)."""
    size = len(c) - 1
    calls = min(calls, size)
    # cost[m] of revealing the last m masks in so many calls, each of at least one
    m = np.arange(size + 1)
    step = np.where(m[None] < m[:, None], (m[:, None] - m[None]) * c[:, None], np.inf)  # from m to the smaller m'
    cost, after = np.where(m == 0, 0.0, np.inf), []
    for _ in range(calls):
        whole = step + cost[None]
        after.append(whole.argmin(1))
        cost = whole.min(1)
    path, at = [], size
    for choice in reversed(after):
        at = int(choice[at])
        path.append(at)
    return path, float(cost[size] - c[1:].sum())


def loss(c: np.ndarray, left: list[int]) -> float:
    """The KL in nats of revealing down to these numbers of masks, one after another."""
    before = np.array([len(c) - 1, *left[:-1]])
    return float(((before - np.array(left)) * c[before]).sum() - c[1:].sum())


def even(symbols: int, calls: int) -> list[int]:
    """Masks left after each call of `Reveal`'s equal sizes."""
    left, masks = [], symbols
    for call in range(calls):
        masks -= math.ceil(masks / (calls - call))
        left.append(masks)
    return left
