"""At the end of a run of a table, before its model is written, fits the weights of its rows."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from sfumato.calibration import DRAWS, LEAST, Calibration, draws, projected, trees_of
from sfumato.data.row_weights import Tree
from sfumato.data.table_schema import TableSchema
from sfumato.metrics.tables import Kolmogorov, Rows
from sfumato.noise import PROBE, permutation, uniform
from sfumato.noised import evaluating
from sfumato.solver_selection import usual_steps
from sfumato.training.session import Hook, Session

_SHARE = 0.95  # of the samples of the run, in calls for the draws of trees: a sixth of its time


class Marginals(Hook):
    """Fits weights of rows to draws of a table's model: trees, and the factors by half as many others, of which each
    half also judges those of the other."""

    def finish(self, session: Session) -> None:
        best, table, begun = session.state.best, session.source.table, time.monotonic()
        session.calibration = None
        if table is None or not session.config.calibrate:
            return
        afford = int(_SHARE * session.total / usual_steps(best))
        n = 1 << min(DRAWS, afford).bit_length() - 1 if afford >= LEAST else 0  # of Sobol's, powers of two
        if n < LEAST or len(session.train) < LEAST:
            session.console.note(
                "Rows have no weights: the run was too short for the draws that they are fitted to (sf.calibrate)."
            )
            return
        seed, x, held = session.config.seed, session.source.x[session.train], session.source.x[session.holdout]
        with session.state.spending("calibration"), evaluating(best):
            trees = trees_of(table, draws(best, n, seed, session.world), x)
            one, other = (draws(best, n // 4, seed + i, session.world) for i in (1, 2))
            weights = projected(table, torch.cat((one, other)), x, trees)
            kept = [_accepted(table, *two, x, trees, seed) for two in ((one, other), (other, one))]
            judge = table.numbers and len(held) >= LEAST
            judged = _judged(table, torch.cat((one, other)), torch.cat(kept), x, held, seed) if judge else None
        spent, share = round(time.monotonic() - begun, 2), round(sum(map(len, kept)) / len(one) / 2, 3)
        session.calibration = Calibration(weights, n + 2 * len(one), spent, len(held), share, judged)


def _accepted(
    table: TableSchema, drawn: Tensor, other: Tensor, x: Tensor, trees: tuple[Tree, ...], seed: int
) -> Tensor:  # fmt: skip
    """The rows drawn that are accepted by weights whose factors are fitted to others."""
    u = uniform(seed, torch.arange(len(drawn)), role=PROBE, dtype=torch.float64)
    return drawn[projected(table, other, x, trees).accepts(table, drawn, u)]


def _judged(
    table: TableSchema, drawn: Tensor, kept: Tensor, x: Tensor, held: Tensor, seed: int
) -> tuple[float, float, float]:  # fmt: skip
    """The mean KS distance to held-out rows of rows drawn, of those that are accepted, and of training rows."""
    real, as_many = Rows(table, held), x[permutation(seed, 0, len(x))[: len(drawn)]]
    found = [Kolmogorov()(Rows(table, each), real).value for each in (drawn, kept, as_many)]
    return found[0], found[1], found[2]
