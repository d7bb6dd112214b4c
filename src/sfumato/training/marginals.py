"""At the end of a run of a table, before its model is written, fits the weights of its rows."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from sfumato.calibration import DRAWS, LEAST, Calibration, draws, fitted
from sfumato.data.table_schema import TableSchema
from sfumato.metrics.tables import Kolmogorov, Rows
from sfumato.noise import PROBE, permutation, uniform
from sfumato.noised import evaluating
from sfumato.solver_selection import usual_steps
from sfumato.training.session import Hook, Session

_SHARE = 0.15  # of the run's work if a call is a third of a training step; 6 % of the time as it is


class Marginals(Hook):
    """Calibrates the numbers of a table by half as many draws twice, of which each half also judges the other's
    weights."""

    def finish(self, session: Session) -> None:
        best, table, begun = session.state.best, session.source.table, time.monotonic()
        session.calibration = None
        if table is None or not table.numbers or not session.config.calibrate:
            return
        afford = int(3 * _SHARE * session.total / usual_steps(best))
        half = 1 << min(DRAWS, afford).bit_length() - 2 if afford >= 2 * LEAST else 0  # of Sobol's, powers of two
        if half < LEAST or len(session.train) < LEAST:
            session.console.note(
                "The marginals were not calibrated: the run was too short for its draws (sf.calibrate)."
            )
            return
        seed, x, held = session.config.seed, session.source.x[session.train], session.source.x[session.holdout]
        with session.state.spending("calibration"), evaluating(best):
            drawn = [draws(best, half, seed + i, session.world) for i in range(2)]
            weights = fitted(table, torch.cat(drawn), x)
            one, other = drawn
            kept = torch.cat((_accepted(table, one, other, x, seed), _accepted(table, other, one, x, seed)))
            judged = _judged(table, drawn, kept, x, held, seed) if len(held) >= LEAST else None
        spent, share = round(time.monotonic() - begun, 2), round(len(kept) / (2 * half), 3)
        session.calibration = Calibration(weights, 2 * half, spent, len(held), share, judged)


def _accepted(table: TableSchema, drawn: Tensor, other: Tensor, x: Tensor, seed: int) -> Tensor:
    """The rows drawn that the weights accept which are fitted to other draws."""
    u = uniform(seed, torch.arange(len(drawn)), role=PROBE, dtype=torch.float64)
    return drawn[fitted(table, other, x).accepts(table, drawn, u)]


def _judged(
    table: TableSchema, drawn: list[Tensor], kept: Tensor, x: Tensor, held: Tensor, seed: int
) -> tuple[float, float, float]:  # fmt: skip
    """The mean KS distance to held-out rows of rows drawn, of those that are accepted, and of training rows."""
    plain, real = torch.cat(drawn), Rows(table, held)
    as_many = x[permutation(seed, 0, len(x))[: len(plain)]]
    found = [Kolmogorov()(Rows(table, each), real).value for each in (plain, kept, as_many)]
    return found[0], found[1], found[2]
