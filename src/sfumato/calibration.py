"""Rows of a table whose numbers have the marginals of its training rows, whatever the model's are.

    q(x) = p(x) w(x) / Z,  w(x) = prod_c f_c(interval of x_c)      P_q(interval of x_c) = that of training rows

q is the law nearest to the model's, p, in KL(q || p) of those with the right marginals, so that KL(data || q) <=
KL(data || p): whole rows can only come nearer to the data (Csiszar 1975, I-projection). The factors are fitted once,
after training, to draws of p by iterative proportional fitting (Deming and Stephan 1940). They become a part of the
data spec (`data.row_weights`), by which `sample` accepts rows, and are those of the default solver and steps; with
others they correct less. Rows of which some cells are known, and the likelihood of rows, are of the model without them
(`columns.Known`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.columns import NUMBERS, uncalibrated, with_weights
from sfumato.data import frames
from sfumato.data.row_weights import RowWeights, intervals
from sfumato.data.table_schema import TableSchema
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError, whole
from sfumato.imputation import table_of
from sfumato.machine import default_cpu
from sfumato.noise import PRIOR, Noise
from sfumato.sampling import sample
from sfumato.state import numbers

DRAWS, LEAST = 16384, 256  # of the model; the fewest, and the fewest rows of training
INTERVALS, EACH, NUMBERS_EACH = 12, 30, 64  # of a column; the draws for each factor, the numbers in each interval
MOST = 1 << 16  # rows of training whose quantiles are taken
ROUNDS, LIMIT = 50, 2.0  # of fitting; of |log f|
LOST, HIGHEST = 0.005, 3.0  # the weight that the bound leaves out, and the highest bound


class Calibration(NamedTuple):
    """Weights that were fitted at the end of a run: the draws that they took, what they changed.

    accepted: the share of draws that they accept. kolmogorov: the mean KS distance of the numbers from `rows` held-out
    rows, without the weights, with them, and of training rows; None if too few rows are held out.
    """

    weights: RowWeights
    draws: int
    seconds: float
    rows: int
    accepted: float
    kolmogorov: tuple[float, float, float] | None

    def to_dict(self) -> dict[str, Any]:
        found = {"draws": self.draws, "seconds": self.seconds, "rows": self.rows, "accepted": self.accepted}
        return found | dict(zip(("before", "after", "real"), self.kolmogorov or (), strict=False))


@default_cpu()
def calibrate(model: Any, data: Any, n: int = DRAWS, seed: int = 0, world: World = ALONE) -> Any:
    """The model of a table whose numbers have the marginals of `data`, by n draws of it; parameters are shared.

        a row x is accepted with probability min(w(x), b) / b, else drawn again, at most 32 times

    w is a product of a factor for each column of numbers, by the twelfth of its training rows that the number is in,
    and by its empty cells; b, from 1 to 3, leaves out half a per cent of the weight. Fewer draws have fewer intervals.
    data: the rows of the training, a frame or the path of a file, or vectors (N, D) of the model's table.
    `uncalibrated` takes it back.

    Raises SfumatoError for a model of no table, one of no numbers, and fewer than 256 rows or draws.
    """
    table = table_of(model, "calibrate")
    if not table.numbers:
        raise SfumatoError("calibrate corrects numbers, and this table has none: its samples stay as they are.")
    x = data if isinstance(data, Tensor) else table.encode(frames.columns_of(frames.arrow_of(data), table))
    width = math.prod(model.spec.shape)
    if x.ndim != 2 or len(x) < LEAST or x.shape[1] != width:
        raise SfumatoError(
            f"calibrate needs rows (N, {width}) of the model's table, N >= {LEAST}, not {tuple(x.shape)}."
        )
    if not bool(x.isfinite().all()):
        raise SfumatoError("calibrate needs finite numbers in the rows: an empty cell is a symbol of its column.")
    return with_weights(model, fitted(table, draws(model, whole("n, the number of draws,", n, LEAST), seed, world), x))


@torch.no_grad()
def draws(model: Any, n: int, seed: int = 0, world: World = ALONE) -> Tensor:
    """n rows of the model without weights, as vectors (n, D). The numbers start from a scrambled Sobol sequence, whose
    means of smooth functions are several times nearer than those of as many independent draws."""
    plain, index, process = uncalibrated(model), torch.arange(n), model.process
    source = Noise(seed, index, PRIOR).fold("calibration")
    noise: Any = numbers(source, dict(process.shapes), model.device)
    width = process.shapes[NUMBERS][0]
    points = torch.quasirandom.SobolEngine(width, True, source.seed % 2**31).draw(n, dtype=torch.float64)
    noise[NUMBERS] = torch.special.ndtri(points.clamp(1e-9, 1 - 1e-9)).to(noise[NUMBERS])
    z = sample(plain, z=process.prior(noise), seed=source.seed, normalised=True, world=world)
    rows: Tensor = plain.spec.denormalise(process.table(z))
    return rows


def fitted(table: TableSchema, drawn: Tensor, x: Tensor) -> RowWeights:
    """The weights by which rows `drawn` of a model have the marginals of rows x, both vectors (N, D)."""
    some = x[torch.linspace(0, len(x) - 1, min(len(x), MOST)).long()]
    edges = _edges(table, drawn, some)
    own, real = (intervals(table, edges, rows) for rows in (drawn, some))
    w, logs, targets = torch.ones(len(drawn), dtype=torch.float64), [], []
    for column, field in enumerate(field for field in table.fields if field.numeric):
        size = len(edges[column]) + (field.states[0] if field.states else 1)
        logs.append(torch.zeros(size, dtype=torch.float64))
        targets.append(_shares(real[:, column], torch.ones(len(some), dtype=torch.float64), size))
    for _ in range(ROUNDS):
        for column, target in enumerate(targets):
            ratio = target / _shares(own[:, column], w.clamp_max(HIGHEST * w.mean()), len(target))
            after = (logs[column] + ratio.log()).clamp(-LIMIT, LIMIT)
            w *= (after - logs[column]).exp()[own[:, column]]
            logs[column] = after
    logs[0] -= w.mean().log()
    return RowWeights(edges, tuple(tuple(each.tolist()) for each in logs), _bound(w / w.mean()))


def _edges(table: TableSchema, drawn: Tensor, x: Tensor) -> tuple[tuple[float, ...], ...]:
    """The quantiles of rows x between the intervals of each column of numbers."""
    found, afford = [], min(INTERVALS, len(drawn) // (EACH * table.numbers))
    for field in (field for field in table.fields if field.numeric):
        place, *symbol = table.places(field.name)
        own, real = (rows[rows[:, symbol[0]] == 0] if symbol else rows for rows in (drawn, x))
        count = max(1, min(afford, len(own) // NUMBERS_EACH, len(real) // NUMBERS_EACH))
        at = torch.arange(1, count, dtype=torch.float64) / count
        found.append(tuple(real[:, place].double().quantile(at).tolist()) if count > 1 else ())
    return tuple(found)


def _shares(at: Tensor, w: Tensor, size: int) -> Tensor:
    """The share of each interval, never 0, of rows in the intervals `at` with weights w (N,)."""
    found = torch.bincount(at, w, size) / w.sum() + 0.5 / len(w)
    return found / found.sum()


def _bound(w: Tensor) -> float:
    """The least b with E (w - b)+ <= LOST, of weights of mean 1."""
    high = w.sort(descending=True).values
    lost = (high.cumsum(0) - high * torch.arange(1, len(w) + 1)) / len(w)  # E (w - b)+ at b = high
    return float(high[int((lost <= LOST).sum()) - 1].clamp(1.0, HIGHEST))
