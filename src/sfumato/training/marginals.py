"""At the end of a run of a table that asks for it, before its model is written, fits the map of its numbers."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from sfumato.calibration import DRAWS, LEAST, Calibration, draws, fitted
from sfumato.columns import with_map
from sfumato.metrics.tables import Kolmogorov, Rows
from sfumato.noise import permutation
from sfumato.noised import evaluating
from sfumato.solver_selection import usual_steps
from sfumato.training.session import Hook, Session

_SHARE = 0.15  # of the run's work if a call is a third of a training step; 6 % of the time as it is


class Marginals(Hook):
    """Calibrates the numbers of a table by half as many draws twice, of which each half also judges the other's map."""

    def finish(self, session: Session) -> None:
        best, table, begun = session.state.best, session.source.table, time.monotonic()
        session.calibration = None
        if table is None or not table.numbers or not session.config.calibrate:
            return
        afford = int(3 * _SHARE * session.total / usual_steps(best))
        half = 1 << min(DRAWS, afford).bit_length() - 2 if afford >= 2 * LEAST else 0  # of Sobol's, powers of two
        if half < LEAST:
            session.console.note(
                "The marginals were not calibrated: the run was too short for its draws (sf.calibrate)."
            )
            return
        with session.state.spending("calibration"), evaluating(best):
            drawn = [draws(best, half, session.config.seed + i, session.world) for i in range(2)]
            x = session.source.x[session.train]
            knots = fitted(table, torch.cat(drawn), x)
            held = session.source.x[session.holdout]
            judged = self._judged(session, drawn, x, held) if len(held) >= LEAST else None
        session.calibration = Calibration(knots, 2 * half, round(time.monotonic() - begun, 2), len(held), judged)

    def _judged(
        self, session: Session, drawn: list[Tensor], x: Tensor, held: Tensor
    ) -> tuple[float, float, float]:  # fmt: skip
        """The mean KS distance to held-out rows without a map, with the one fitted to the other half, and of training
        rows."""
        table, best = session.source.table, session.state.best
        assert table is not None
        real, plain = Rows(table, held), torch.cat(drawn)
        maps = [with_map(best, fitted(table, other, x)).spec for other in reversed(drawn)]
        mapped = torch.cat([m.denormalise(best.spec.normalise(each)) for m, each in zip(maps, drawn, strict=True)])
        as_many = x[permutation(session.config.seed, 0, len(x))[: len(plain)]]
        found = [Kolmogorov()(Rows(table, each), real).value for each in (plain, mapped, as_many)]
        return found[0], found[1], found[2]
