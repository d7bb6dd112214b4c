"""`sf.draws`: a table of a model's errors on fixed draws, one row per draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sfumato import target as targets
from sfumato.belief import broadcast
from sfumato.conditions import over_present, present
from sfumato.diagnostics import gradients as of_gradients
from sfumato.diagnostics.bins import make
from sfumato.diagnostics.draws import Draws
from sfumato.diagnostics.samples import trivial, with_conditions
from sfumato.errors import whole
from sfumato.machine import default_cpu
from sfumato.noised import NoisedBatch
from sfumato.objectives import times as densities
from sfumato.objectives.times import TimeDensity
from sfumato.process.gaussian import require_numbers


@default_cpu()
def draws(
    model: Any,
    x: Any,
    levels: int | Sequence[float] = 8,
    seed: int = 0,
    *,
    count: int = 64,
    times: TimeDensity | str = "uniform",
    gradients: bool = False,
    batch: int = 256,
    **cond: Any,
) -> dict[str, np.ndarray]:
    """A model's errors on noised samples z = alpha x + sigma eps, one row per draw: a dict of columns.

        loss = |eps - eps_hat(z)|^2 / d,   error = |y - y_hat(z)|^2 / d,   y = a x + b eps the model's own target

    x: samples (B, *shape) in user units with their conditions by keyword, as `sample` takes them; or whatever
    `sf.data.open` takes, with its own conditions; or a law of `sf.exact`. levels: a number of bins of equal mass under
    the time density `times`, or their edges in logsnr. count: draws per bin; samples are used in turn. seed: determines
    all draws, so that two models of the same data can be compared draw by draw.

    Columns: sample (row of x; for a data set or law, position among the samples drawn from it), bin (0 is the
    cleanest), logsnr, loss, error, trivial (loss of the best linear guess from the data's mean and variance), and with
    gradients=True also gradient, the norm of the gradient of `loss`, at the cost of one backward pass per draw. The
    model runs in evaluation mode and is not changed. `pandas.DataFrame(sf.draws(...))` turns the table into a frame.
    Raises SfumatoError for symbols, and for levels, counts or data that cannot be used.
    """
    require_numbers(model, "The table of draws", "log_prob(...).by_level gives the loss of a bound at each level")
    density = densities.named(times)
    bins = make(levels, density, model.process.schedule)
    count, seed = whole("count, the draws per bin,", count), whole("seed", seed, least=None)
    found = with_conditions(model, x, cond, count * len(bins), seed)
    fixed = Draws(found.x, found.cond, model.process, bins, count, seed, batch)
    table = {"sample": fixed.row, "bin": fixed.index % len(bins), "logsnr": fixed.logsnr}
    table |= fixed.table(model, lambda part: _errors(model, fixed.take(part)))
    table["trivial"] = fixed.losses(trivial(model, found))
    if gradients:
        table["gradient"] = of_gradients.norms(model, fixed)
    return {name: column.numpy() for name, column in table.items()}


def _errors(model: Any, drawn: NoisedBatch) -> dict[str, Tensor]:
    """|eps - eps_hat|^2 / d and |y - y_hat|^2 / d, (B,) each."""
    process, belief = model.process, model(drawn.z, drawn.t, **drawn.cond)
    row = targets.row(process.target, process.schedule, drawn.t, process.sigma_data)
    wanted = broadcast(row.a, drawn.x) * drawn.x + broadcast(row.b, drawn.x) * drawn.eps
    off = {"loss": belief.eps - drawn.eps, "error": belief.target(process.target) - wanted}
    here = present(drawn.cond)
    return {name: over_present(each.square(), here).flatten(1).mean(1) for name, each in off.items()}
