"""Numbers of a table with the marginals of its training rows, whatever the model's are.

    x = Q(G(x')),   G the distribution function of draws x' of the model, Q the quantiles of the rows it was trained on

for each column of numbers, in the units in which a table is normal. The map is monotone, so that ranks, and with them
most of what columns say of each other, stay the model's. It is fitted once, after training, with few knots, since noise
in the map of one column and not of another would widen what ties them, and only shifts what lies beyond its ends. It
becomes a part of the model's units (`Normaliser`), through which samples leave, and is that of the default solver and
steps; with others it corrects less. Rows of which some cells are known, and the likelihood of rows, are of the model
without it (`columns.Known`): what it says of a column given others is nearer to the data as it was learned.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato.columns import NUMBERS, Knots, uncalibrated, with_map
from sfumato.data import frames
from sfumato.data.table_schema import TableSchema
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError, whole
from sfumato.imputation import table_of
from sfumato.machine import default_cpu
from sfumato.noise import PRIOR, Noise
from sfumato.sampling import sample
from sfumato.state import numbers

DRAWS = 16384  # of the model
KNOTS, LEAST = 32, 256  # of a column's map; the fewest drawn numbers that it is fitted to
MOST = 1 << 16  # rows of training whose quantiles are taken
_RISE = 1e-4  # the least slope of a map, which so has an inverse


class Calibration(NamedTuple):
    """A map that was fitted at the end of a run: its knots, the draws that it took, what it changed.

    kolmogorov: the mean KS distance of the numbers from `rows` held-out rows, without the map, with it, and of training
    rows; None if too few rows are held out.
    """

    knots: Knots
    draws: int
    seconds: float
    rows: int
    kolmogorov: tuple[float, float, float] | None

    def to_dict(self) -> dict[str, Any]:
        found = {"draws": self.draws, "seconds": self.seconds, "rows": self.rows}
        return found | dict(zip(("before", "after", "real"), self.kolmogorov or (), strict=False))


@default_cpu()
def calibrate(model: Any, data: Any, n: int = DRAWS, seed: int = 0, world: World = ALONE) -> Any:
    """The model of a table whose numbers have the marginals of `data`, by n draws of it; weights are shared.

    data: the rows of the training, a frame or the path of a file, or vectors (N, D) of the model's table. A column with
    fewer than 256 numbers among them or among the draws stays as it is. `uncalibrated` takes it back.

    Raises SfumatoError for a model of no table, and for one of no numbers.
    """
    table = table_of(model, "calibrate")
    if not table.numbers:
        raise SfumatoError("calibrate corrects numbers, and this table has none: its samples stay as they are.")
    x = data if isinstance(data, Tensor) else table.encode(frames.columns_of(frames.arrow_of(data), table))
    width = math.prod(model.spec.shape)
    if x.ndim != 2 or not len(x) or x.shape[1] != width:
        raise SfumatoError(f"calibrate needs rows (N, {width}) of the model's table, not {tuple(x.shape)}.")
    return with_map(model, fitted(table, draws(model, whole("n, the number of draws,", n, LEAST), seed, world), x))


@torch.no_grad()
def draws(model: Any, n: int, seed: int = 0, world: World = ALONE) -> Tensor:
    """n rows of the model without a map, as vectors (n, D). The numbers start from a scrambled Sobol sequence, whose
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


def fitted(table: TableSchema, drawn: Tensor, x: Tensor) -> Knots:
    """The knots of each column's map: its values at the normal numbers Phi^-1((k + 1/2) / K)."""
    at = torch.special.ndtri((torch.arange(KNOTS, dtype=torch.float64) + 0.5) / KNOTS).numpy()
    some = x[torch.linspace(0, len(x) - 1, min(len(x), MOST)).long()]
    knots = []
    for field in (each for each in table.fields if each.numeric):
        place, *symbol = table.places(field.name)
        own, real = (rows[rows[:, symbol[0]] == 0] if symbol else rows for rows in (drawn, some))
        values = at
        if min(len(own), len(real)) >= LEAST:
            ordered = own[:, place].double().sort().values.numpy()
            below = (np.searchsorted(ordered, at, "left") + np.searchsorted(ordered, at, "right")) / 2
            share = (below / len(own)).clip(0.5 / len(own), 1 - 0.5 / len(own))
            values = np.quantile(real[:, place].double().numpy(), share)
            values = np.maximum.accumulate(values) + _RISE * at
        knots.append(tuple(values.tolist()))
    return tuple(knots)
