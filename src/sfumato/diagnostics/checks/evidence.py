"""What a check may look at. Every part may be absent: a run that is under way, data that were moved, a file alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.data import DataSpec, Normaliser
from sfumato.data.rows import Samples
from sfumato.diagnostics.answers import Answers
from sfumato.diagnostics.checks.finding import Finding
from sfumato.diagnostics.information import Information

ROWS = 1024  # samples that the data are judged by, at most
READ = 256  # where they have to be read for it
VALUES = 1 << 21  # numbers in them, at most
SURE = 3.0  # standard errors, from which on what draws say is sure


@final
@dataclasses.dataclass(frozen=True)
class Sample:
    """Some samples as they come: x (n, *shape) in the user's units, labels int64 (n,) or None.

    spec: the contract that the model normalises them by, None where they are normalised already, with deviation
    `scale`.
    """

    x: Tensor
    labels: Tensor | None = None
    spec: DataSpec | None = None
    scale: float = 1.0

    @property
    def normalised(self) -> Tensor:
        """As the model sees them, in deviations of what it knows, float64 (n, *shape)."""
        z = self.x.double() / self.scale if self.spec is None else self.spec.normalise(self.x).double()
        return z

    @property
    def by_channel(self) -> Tensor:
        """`normalised` as (C, n prod(spatial))."""
        return self.normalised.transpose(0, 1).flatten(1)

    @property
    def field(self) -> bool:
        """Whether a sample has places beside its channels."""
        return self.x.ndim > 2


@final
@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters by name: at the start, now, and of their moving average where there is one. settled: parts of the
    initial weights are known to be those of the run."""

    initial: dict[str, Tensor] | None
    now: dict[str, Tensor]
    average: dict[str, Tensor] | None
    steps: int


@final
@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that is known of a run or a model.

    log: lines of metrics.jsonl; settings: those of `TrainConfig`, as a dict; incidents: entries of incident.json;
    recorded: what was found while it trained. broken: values of each tensor of the model that are NaN or infinite, by
    its name; empty where all are finite. deaf: conditions that the network cannot hear. told: how much each
    condition says, by name, late in a run. absent: part -> why it is not there.
    """

    log: list[dict[str, Any]] | None = None
    settings: dict[str, Any] | None = None
    sample: Sample | None = None
    weights: Weights | None = None
    answers: Answers | None = None
    incidents: list[dict[str, Any]] | None = None
    recorded: tuple[Finding, ...] = ()
    broken: dict[str, int] | None = None
    deaf: tuple[str, ...] | None = None
    told: Information | None = None
    absent: dict[str, str] = dataclasses.field(default_factory=dict)


def draw(
    x: Samples, rows: Tensor, labels: Tensor | None, spec: DataSpec | None, seed: int, scale: float = 1.0
) -> Sample:
    """Up to ROWS of these rows of x (N, *shape), chosen by the seed, of VALUES numbers at most (or 8 rows); what is not
    finite is left out. labels: one a row of `rows`."""
    most = ROWS if isinstance(x, Tensor) else READ
    count = min(len(rows), most, max(8, VALUES // max(1, math.prod(x.shape[1:]))))
    chosen = noise.permutation(seed, 0, len(rows))[:count].sort().values
    found = x[rows[chosen]].cpu()
    whole = found.isfinite().flatten(1).all(1) if found.is_floating_point() else torch.ones(count, dtype=torch.bool)
    return Sample(found[whole], None if labels is None else labels[chosen][whole], _in_deviations(spec), scale)


def _in_deviations(spec: DataSpec | None) -> DataSpec | None:
    """The contract of symbols, which leaves them as they are, as one by which they are judged like other data."""
    if spec is None or set(spec.normaliser.mean) != {0.0} or set(spec.normaliser.std) != {1.0}:
        return spec
    return dataclasses.replace(spec, normaliser=Normaliser.of(spec.statistics))
