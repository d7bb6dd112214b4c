"""Rows of a table that are nearer to its training rows than those of the model, by weights.

    q(x) = p(x) w(x) / Z,  w(x) = r(x) prod_c f_c(interval of x_c),  r near p_data / p      P_q(interval) = P_data

r is the ratio of the densities, by trees (`boosting`); were it exact, q would be the law of the data, and whatever it
is, the factors f_c give every column its marginal: of the laws that have them q is the nearest to p r in KL
(Csiszar 1975, I-projection; Deming and Stephan 1940, the fit). Rejection by a ratio is that of Azadi et al. 2018
(1810.06758). Weights above a bound of 1.25 are cut, so that of a model that is near more than half of the rows are
accepted; the factors make up for what this does to the marginals. All is fitted once, after training, to draws of p,
and becomes a part of the data spec (`data.row_weights`), by which `sample` accepts rows. It is for the default solver
and steps; with others it corrects less. Rows of which some cells are known, and the likelihood of rows, are of the
model without it (`columns.Known`).
"""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.boosting import boosted
from sfumato.columns import NUMBERS, uncalibrated, with_weights
from sfumato.data import frames
from sfumato.data.row_weights import LIMIT, RowWeights, Tree, answered, intervals, ratio, sizes
from sfumato.data.table_schema import TableSchema
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError, whole
from sfumato.imputation import table_of
from sfumato.intervals import Interval
from sfumato.machine import default_cpu
from sfumato.noise import PRIOR, Noise
from sfumato.progress import CountBar, counting, reporting_to
from sfumato.sampling import affordable, in_order, sample
from sfumato.state import numbers, rows_of

DRAWS, LEAST = 65536, 256  # of the model, half of them for trees; the fewest, and the fewest rows of training
INTERVALS, EACH, NUMBERS_EACH = 12, 30, 64  # of a column; the draws for each factor, the numbers in each interval
LEVEL_EACH = 512  # draws of a level of a category with a factor of its own: its share is known to 4 % of itself
MOST = 1 << 16  # rows of training that are looked at
_PART = 4096  # rows that are drawn between two counts
ROUNDS = 50  # of fitting
LOST, HIGHEST = 0.005, 1.25  # the weight that the bound leaves out, and the highest bound


class Calibration(NamedTuple):
    """Weights that were fitted at the end of a run: the draws that they took, what they changed.

    accepted: the share of draws that they accept. kolmogorov: the mean KS distance of the numbers from `rows` held-out
    rows, without the weights, with them, and of training rows, with intervals; None if too few rows are held out, or
    without numbers.
    """

    weights: RowWeights
    draws: int
    seconds: float
    rows: int
    accepted: float
    kolmogorov: tuple[Interval, Interval, Interval] | None

    def to_dict(self) -> dict[str, Any]:
        found = {"draws": self.draws, "seconds": self.seconds, "rows": self.rows, "accepted": self.accepted}
        found |= {"trees": len(self.weights.trees), "numbers": len(self.weights.edges)}
        judged = (each.to_dict() for each in self.kolmogorov or ())
        return found | dict(zip(("before", "after", "real"), judged, strict=False))


@default_cpu()
def calibrate(
    model: Any, data: Any, n: int = DRAWS, seed: int = 0, world: World = ALONE, progress: bool = True
) -> Any:  # fmt: skip
    """The model of a table whose rows are nearer to those of `data`, by n draws of it; parameters are shared.

        a row x is accepted with probability min(w(x), b) / b, else drawn again, at most 32 times

    w is the ratio of the densities of `data` and the model as boosted trees have it, times a factor for each column, by
    the twelfth of its training rows that a number is in, by its empty cell, or by the level of a category that is drawn
    often enough, such that accepted rows have the marginals of `data`; b is from 1 to 1.25. Fewer draws have fewer
    factors, and fewer trees.
    data: the rows of the training, a frame or the path of a file, or vectors (N, D) of the model's table.
    progress: whether stderr shows how far it is, if it takes longer than two seconds. `uncalibrated` takes it back.

    Where no tree and no factor is found it is the model as it is. Raises SfumatoError for a model of no table, and
    fewer than 256 rows or draws.
    """
    table = table_of(model, "calibrate")
    x = data if isinstance(data, Tensor) else table.encode(frames.columns_of(frames.arrow_of(data), table))
    width = math.prod(model.spec.shape)
    if x.ndim != 2 or len(x) < LEAST or x.shape[1] != width:
        raise SfumatoError(
            f"calibrate needs rows (N, {width}) of the model's table, N >= {LEAST}, not {tuple(x.shape)}."
        )
    if not bool(x.isfinite().all()):
        raise SfumatoError("calibrate needs finite numbers in the rows: an empty cell is a symbol of its column.")
    for place, (states, name, _) in enumerate(table.symbols, table.numbers):
        if bool(((x[:, place] != x[:, place].round()) | (x[:, place] < 0) | (x[:, place] >= states)).any()):
            raise SfumatoError(f"calibrate needs symbols from 0 to {states - 1} of the column {name!r} in the rows.")
    half, seed = whole("n, the number of draws,", n, LEAST) // 2, whole("seed", seed, least=None)
    affordable(2 * half, dict(model.process.shapes))
    with reporting_to(CountBar(sys.stderr)) if progress and world.leads else nullcontext():
        seen, others = (draws(model, half, seed + i, world) for i in range(2))
        found = fitted(table, seen, others, x)
    return with_weights(model, None if found.even else found)


@torch.no_grad()
def draws(model: Any, n: int, seed: int = 0, world: World = ALONE) -> Tensor:
    """n rows of the model without weights, as vectors (n, D). The numbers start from a scrambled Sobol sequence, whose
    means of smooth functions are several times nearer than those of as many independent draws."""
    plain, index, process = uncalibrated(model), torch.arange(n), model.process
    source = Noise(seed, index, PRIOR).fold("calibration")
    noise: Any = numbers(source, dict(process.shapes), model.device)
    if NUMBERS in process.shapes:
        width = process.shapes[NUMBERS][0]
        points = torch.quasirandom.SobolEngine(width, True, source.seed % 2**31).draw(n, dtype=torch.float64)
        noise[NUMBERS] = torch.special.ndtri(points.clamp(1e-9, 1 - 1e-9)).to(noise[NUMBERS])
    prior, found = process.prior(noise), []
    with counting("Drawing rows to fit weights to", n) as count:
        for part in in_order(plain, n, _PART * world.size):
            z = sample(plain, z=rows_of(prior, part), index=part, seed=source.seed, normalised=True, world=world)
            found.append(plain.spec.denormalise(process.table(z)))
            count(len(part))
    return torch.cat(found)


def fitted(table: TableSchema, seen: Tensor, others: Tensor, x: Tensor) -> RowWeights:
    """The weights by which rows of a model are nearer to rows x, with their marginals; all are vectors (N, D).

    seen: rows of the model for the trees; others: for the factors, since of those they have seen trees say too much.
    """
    return projected(table, others, x, trees_of(table, seen, x), seen)


def trees_of(table: TableSchema, drawn: Tensor, x: Tensor) -> tuple[Tree, ...]:
    """The log ratio of the densities of rows x and rows `drawn` of a model, as trees."""
    return boosted(answered(table, _some(x)), answered(table, drawn))


def projected(
    table: TableSchema, drawn: Tensor, x: Tensor, trees: tuple[Tree, ...] = (), seen: Tensor | None = None,
    highest: float = HIGHEST,
) -> RowWeights:  # fmt: skip
    """Weights of these trees, and the factors by which rows `drawn` that are accepted have the marginals of rows x.

    seen: more rows of the model, those of the trees. Rows `drawn` are first weighted to the marginals of both; highest:
    the highest bound, where weights are cut.
    """
    x, every = _some(x), drawn if seen is None else torch.cat((seen, drawn))
    edges = _edges(table, drawn, x)
    own, all_own, real = (intervals(table, edges, rows) for rows in (drawn, every, x))
    groups = _groups(table, edges, own)
    own, all_own, real = (_within(groups, at) for at in (own, all_own, real))
    several = [int(group.max()) + 1 for group in groups]
    even, _ = _raked(own, torch.ones(len(drawn), dtype=torch.float64), _shares(all_own, several), math.inf)
    w, logs = _raked(own, even * ratio(trees, table, drawn).exp(), _shares(real, several), highest)
    w /= even
    mean = float((w * even).sum() / even.sum())
    high, order = (w / mean).sort(descending=True)
    weight = even[order] / even.sum()
    above = (high * weight).cumsum(0) - high * weight.cumsum(0)  # E (w - b)+ at b = high
    bound = float(high[int((above <= LOST).sum()) - 1].clamp(1.0, highest))
    own_logs = tuple(tuple(log[group].tolist()) for log, group in zip(logs, groups, strict=True))
    return RowWeights(edges, own_logs, bound, trees, mean)


def _groups(table: TableSchema, edges: Any, own: Tensor) -> list[Tensor]:
    """The number of each interval of a column among those that have a factor of their own; levels of a category that
    are seldom among rows in the intervals `own` share one."""
    found, most = [], len(own) // (EACH * len(table.fields))
    for column, size in enumerate(sizes(table, edges)):
        group, counts = torch.arange(size), torch.bincount(own[:, column], minlength=size)
        if column >= table.numbers:
            often = (counts >= LEVEL_EACH) & (counts.argsort(descending=True, stable=True).argsort() < most)
            group = torch.where(often, often.cumsum(0) - int(often.all()), 0)
        found.append(group)
    return found


def _within(groups: list[Tensor], at: Tensor) -> Tensor:
    """Intervals `at` (N, C) as their groups."""
    return torch.stack([group[at[:, column]] for column, group in enumerate(groups)], 1)


def _raked(at: Tensor, w: Tensor, targets: list[Tensor], highest: float) -> tuple[Tensor, list[Tensor]]:
    """Weights of rows (N,) times a factor for each interval, by which the intervals `at` (N, C) have the shares
    `targets` where weights above `highest` of their mean are cut there, and the logs of the factors."""
    logs = [torch.zeros(len(target), dtype=torch.float64) for target in targets]
    several = [(column, target) for column, target in enumerate(targets) if len(target) > 1]
    for _ in range(ROUNDS if several else 0):
        moved = 0.0
        for column, target in several:
            found = _share(at[:, column], w.clamp_max(highest * w.mean()), len(target))
            after = (logs[column] + (target / found).log()).clamp(-LIMIT, LIMIT)
            moved = max(moved, float((after - logs[column]).abs().max()))
            w = w * (after - logs[column]).exp()[at[:, column]]
            logs[column] = after
        if moved < 1e-6:
            break
    return w, logs


def _some(x: Tensor) -> Tensor:
    return x[torch.linspace(0, len(x) - 1, min(len(x), MOST)).long()]


def _edges(table: TableSchema, drawn: Tensor, x: Tensor) -> tuple[tuple[float, ...], ...]:
    """The quantiles of rows x between the intervals of each column of numbers."""
    found, afford = [], min(INTERVALS, len(drawn) // (EACH * max(1, table.numbers)))
    for field in (field for field in table.fields if field.numeric):
        place, *symbol = table.places(field.name)
        own, real = (rows[rows[:, symbol[0]] == 0] if symbol else rows for rows in (drawn, x))
        count = max(1, min(afford, len(own) // NUMBERS_EACH, len(real) // NUMBERS_EACH))
        at = torch.arange(1, count, dtype=torch.float64) / count
        found.append(tuple(real[:, place].double().quantile(at).tolist()) if count > 1 else ())
    return tuple(found)


def _shares(at: Tensor, sizes: list[int]) -> list[Tensor]:
    """The share of each interval of each column among rows in the intervals `at` (N, C)."""
    even = torch.ones(len(at), dtype=torch.float64)
    return [_share(at[:, column], even, size) for column, size in enumerate(sizes)]


def _share(at: Tensor, w: Tensor, size: int) -> Tensor:
    """The share of each interval, never 0, of rows in the intervals `at` with weights w (N,)."""
    found = torch.bincount(at, w, size) / w.sum() + 0.5 / len(w)
    return found / found.sum()
