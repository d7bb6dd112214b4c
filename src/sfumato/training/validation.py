"""When a run is validated, and on which draws: triples of held-out samples, and as many of training samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions
from sfumato.data.rows import Samples
from sfumato.diagnostics.draws import Draws
from sfumato.diagnostics.validation import BINS, Validation, Validator, taken, validator_for
from sfumato.distributed import World
from sfumato.intervals import Interval
from sfumato.metrics.shared_noise import OnSharedNoise
from sfumato.objectives.flow_maps import MapLoss
from sfumato.training.codes import normalised
from sfumato.training.config import TrainConfig
from sfumato.training.evaluation_schedule import due, triples, validations
from sfumato.training.state import State

_KNOWN = 0.05  # fraction of a budget in minutes after which the pace predicts its number of samples
Given = tuple[Samples, Mapping[str, Any] | Tensor | None]  # samples (N, *shape) in the user's units, their conditions


class Judge:
    """Validates a run when due. With a budget in minutes it first measures the pace, so as not to overspend."""

    def __init__(self, state: State, config: TrainConfig, train: Given, holdout: Given) -> None:
        self.state, self.config, self.train, self.holdout = state, config, train, holdout
        self._measure: Validator | None = None

    def at(self, before: float, fraction: float, world: World) -> Validation | None:
        """The validation due after a step between two fractions of the budget; None if none is due."""
        state, done = self.state, fraction >= 1
        total = state.samples / max(fraction, 1e-9)
        if self._measure is None:
            if self.config.steps is None and fraction < _KNOWN and not state.triples:
                return None
            self._measure = judge(state, self.config, *self.holdout, self.train, total)
        often, seldom, depth = validations(*self._measure.cost, total)
        deep = due(seldom, before, fraction)
        if not (done or deep or due(often, before, fraction)):
            return None
        average = state.ema.denoiser if state.ema else None
        with state.spending("validation"):
            return self._measure.measure(state.denoiser, average, state.samples if deep else None, depth, world)


def judge(
    state: State,
    config: TrainConfig,
    x: Samples,
    cond: Mapping[str, Any] | Tensor | None,
    train: Given | None = None,
    total: float | None = None,
) -> Validator:
    """The validator of a run on held-out samples x, with as many fixed draws as `total` training samples can pay for.

    train: training samples for comparison, as many as are held out. A resumed run keeps its number of draws.
    """
    if not state.triples:
        known = config.steps * config.batch if config.steps is not None else total
        state.triples = triples(math.inf if known is None else known, BINS)
    model, count = state.denoiser, state.triples

    def prepared(x: Samples, cond: Mapping[str, Any] | Tensor | None, most: int) -> tuple[Tensor, Conditions]:
        rows = noise.permutation(config.seed, 0, len(x))[:most]  # not the first ones: folders are sorted by class
        draws = noise.Noise(config.seed, rows, noise.VALID_NOISE)
        found = normalised(x, x[rows], model.spec, draws).to(state.dtype).to(model.device)
        known = Conditions.of(cond).rows(rows).to(model.device)
        return (found, known) if model.spec is None else model.spec.apart(found, known)

    held = prepared(x, cond, count)
    beside = None if train is None else prepared(*train, len(held[0]))
    made = validator_for(state.loss, model, *held, count, min(config.batch, state.micro), beside, config.seed)
    if isinstance(state.loss, MapLoss) and state.loss.teacher is not None:
        made.further = BesideTeacher(state.loss, made.draws, getattr(model, "spec", None))
    return made


@final
class BesideTeacher:
    """The metric of held-out samples of a student beside its teacher's, whose features are computed once.

    By its name, in the first number of calls, and by kid_2 or mmd_2 .. in the others.
    """

    def __init__(self, loss: MapLoss, draws: Draws, spec: Any) -> None:
        self.loss, self.draws, self.compare = loss, draws, OnSharedNoise(spec)
        self._theirs: Tensor | None = None

    def __call__(self, model: Any, world: World) -> dict[str, Interval]:
        def seen(part: Tensor) -> dict[str, Tensor]:
            batch = taken(self.draws, part)
            found = {str(calls): x for calls, x in self.loss.drawn(model, batch).items()}
            found |= {"theirs": self.loss.taught(model, batch)} if self._theirs is None else {}
            return {name: self.compare.seen(x) for name, x in found.items()}

        rows = dict(self.draws.table(model, seen, world))
        theirs = self._theirs = rows.pop("theirs") if self._theirs is None else self._theirs
        found = {f"{self.compare.name}_{calls}": self.compare(x, theirs) for calls, x in rows.items()}
        first, *others = found.items()
        return {name: value for name, value in ((self.compare.name, first[1]), *others) if value is not None}
