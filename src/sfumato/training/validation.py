"""When a run is validated, and on what: triples of held-out samples, and as many of training samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions
from sfumato.data.rows import Samples
from sfumato.diagnostics.validation import BINS, Validation, Validator, validator_for
from sfumato.distributed import World
from sfumato.training.config import TrainConfig
from sfumato.training.evaluation_schedule import due, triples, validations
from sfumato.training.state import State

_KNOWN = 0.05  # of a budget in minutes: what is used until its pace says how many samples it comes to


class Labelled(NamedTuple):
    """Samples (N, *shape) in the user's units, and their conditions."""

    x: Samples
    cond: Conditions


class Judge:
    """Validates a run when it is time; a budget in minutes is first looked at, so that it is not overspent."""

    def __init__(self, state: State, config: TrainConfig, train: Labelled, holdout: Labelled) -> None:
        self.state, self.config, self.train, self.holdout = state, config, train, holdout
        self._measure: Validator | None = None

    def at(self, before: float, fraction: float, world: World) -> Validation | None:
        """What is found at a step that led from one fraction of the budget to another; None at most of them."""
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
    train: Labelled | None = None,
    total: float | None = None,
) -> Validator:
    """What measures a run on held-out samples x: as many fixed draws as `total` samples of training bear.

    train: training samples to put beside them, one for each. A run goes on with as many draws as it began with.
    """
    if not state.triples:
        known = config.steps * config.batch if config.steps is not None else total
        state.triples = triples(math.inf if known is None else known, BINS)
    model, count = state.denoiser, state.triples

    def prepared(part: Labelled, most: int, seed: int) -> tuple[Tensor, Conditions]:
        # folders are sorted by class: the first samples are none to judge by
        rows = noise.permutation(seed, 0, len(part.x))[:most]
        found = part.x[rows]
        found = (found if model.spec is None else model.spec.normalise(found)).to(state.dtype).to(model.device)
        return found, Conditions.of(part.cond).rows(rows).to(model.device)

    held = prepared(Labelled(x, Conditions.of(cond)), count, config.seed)
    beside = None if train is None else prepared(train, len(held[0]), config.seed)
    return validator_for(state.loss, model, *held, count, min(config.batch, state.micro), beside, config.seed)
