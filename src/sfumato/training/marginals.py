"""At the end of a run of a table, before its model is written, fits the weights of its rows."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from sfumato.calibration import DRAWS, LEAST, Calibration, draws, fitted, projected
from sfumato.data.table_schema import TableSchema
from sfumato.intervals import Interval
from sfumato.metrics.tables import Kolmogorov, Rows
from sfumato.noise import PROBE, permutation, uniform
from sfumato.noised import evaluating
from sfumato.progress import reporting_to
from sfumato.solver_selection import usual_steps
from sfumato.training.session import Hook, Session

_SHARE = 1.3  # calls of draws for each sample of the run: on the diamonds a seventh to a quarter of its time


class Marginals(Hook):
    """Fits weights of rows to draws of a table's model: trees to a half and factors to the other, of which each half
    also judges factors that are fitted to the other."""

    def finish(self, session: Session) -> None:
        best, table, begun = session.state.best, session.source.table, time.monotonic()
        session.calibration = None
        if table is None or not session.config.calibrate:
            return
        n = min(DRAWS, int(_SHARE * session.total / usual_steps(best))) // 4 * 4
        if n < LEAST or len(session.train) < LEAST:
            session.console.note(
                "Rows have no weights: the run was too short for the draws that they are fitted to (sf.calibrate)."
            )
            return
        session.console.note(
            f"Fitting weights of rows to {n:,} draws of the model, beyond the budget (--no-calibrate leaves them out)."
        )
        seed, x, held = session.config.seed, session.source.x[session.train], session.source.x[session.holdout]
        with session.state.spending("calibration"), evaluating(best), reporting_to(session.console.count):
            seen, others = (draws(best, n // 2, seed + i, session.world) for i in range(2))
            weights = fitted(table, seen, others, x)
            halves = others.chunk(2)
            judges = (projected(table, each, x, weights.trees, seen) for each in reversed(halves))
            u = uniform(seed, torch.arange(n // 4), role=PROBE, dtype=torch.float64)
            kept = [each[judge.accepts(table, each, u)] for each, judge in zip(halves, judges, strict=True)]
            enough = table.numbers and len(held) >= LEAST
            judged = _judged(table, others, torch.cat(kept), x, held, seed) if enough else None
        if weights.even:
            session.console.note("Rows have no weights: draws of the model cannot be told from its training rows.")
            return
        spent, share = round(time.monotonic() - begun, 2), round(sum(map(len, kept)) / len(others), 3)
        session.calibration = Calibration(weights, n, spent, len(held), share, judged)


def _judged(
    table: TableSchema, drawn: Tensor, kept: Tensor, x: Tensor, held: Tensor, seed: int
) -> tuple[Interval, Interval, Interval]:  # fmt: skip
    """The mean KS distance to held-out rows of rows drawn, of those that are accepted, and of training rows."""
    real, as_many = Rows(table, held), x[permutation(seed, 0, len(x))[: len(drawn)]]
    found = [Kolmogorov()(Rows(table, each), real) for each in (drawn, kept, as_many)]
    return found[0], found[1], found[2]
