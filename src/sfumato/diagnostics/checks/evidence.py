"""What checks look at, and how it is taken from a model and its data. Every part of it may be absent."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions, named, of_data
from sfumato.data import DataSpec, Normaliser, Source
from sfumato.diagnostics.answers import LEVELS, Answers, ask, deaf, draws_for, levels
from sfumato.diagnostics.checks.finding import Finding
from sfumato.diagnostics.information import Information, measured
from sfumato.diagnostics.path_answers import PathAnswers, ask_of_paths
from sfumato.diagnostics.samples import seen
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError
from sfumato.process import Gaussian, Paired

TRAINED = 100  # steps before which a network has hardly learned, and is asked nothing
ROWS = 1024  # samples that the data are judged by, at most
READ = 256  # the same where they are read from files
VALUES = 1 << 21  # numbers in them, at most
ASKED = 512  # samples that the network is asked about, at most
INFORMED = 2048  # samples that the information of conditions is measured on, at most


@final
@dataclasses.dataclass(frozen=True)
class Sample:
    """Some samples as they come: x (n, *shape) in the user's units, labels int64 (n,) or None, negative if missing.

    spec: the contract that the model normalises them by, None where they are normalised already, with deviation
    `scale`.
    """

    x: Tensor
    labels: Tensor | None = None
    spec: DataSpec | None = None
    scale: float = 1.0

    @property
    def normalised(self) -> Tensor:
        """As the model sees them, in deviations of its training data, float64 (n, *shape)."""
        return self.x.double() / self.scale if self.spec is None else self.spec.normalise(self.x).double()

    @property
    def field(self) -> bool:
        """Whether a sample has places beside its channels."""
        return self.x.ndim > 2


@final
@dataclasses.dataclass(frozen=True)
class Weights:
    """Parameters by name: before the first step, now, and of their moving average; the steps taken."""

    initial: dict[str, Tensor] | None
    now: dict[str, Tensor]
    average: dict[str, Tensor] | None
    steps: int


@final
@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that is known of a run or a model.

    log: lines of metrics.jsonl; settings: those of `TrainConfig`, as a dict; incidents: entries of incident.json;
    recorded: findings of the run itself. not_finite: tensor -> its values that are NaN or infinite, empty where all are
    finite. unheard: conditions that the network ignores. information: that of each condition about the samples, late in
    a run. paths: what a flow map says of paths. absent: part -> why it is not there.
    """

    log: list[dict[str, Any]] | None = None
    settings: dict[str, Any] | None = None
    sample: Sample | None = None
    weights: Weights | None = None
    answers: Answers | None = None
    incidents: list[dict[str, Any]] | None = None
    recorded: tuple[Finding, ...] = ()
    not_finite: dict[str, int] | None = None
    unheard: tuple[str, ...] | None = None
    information: Information | None = None
    paths: PathAnswers | None = None
    absent: dict[str, str] = dataclasses.field(default_factory=dict)


def draw(model: Any, source: Source, rows: Tensor, seed: int) -> Sample | None:
    """Up to ROWS of these rows, chosen by the seed, of VALUES numbers at most (or 8 rows); rows that are not finite are
    left out. Labels are in the model's numbering. None where most have missing values."""
    most = ROWS if isinstance(source.x, Tensor) else READ
    count = min(len(rows), most, max(8, VALUES // max(1, math.prod(source.shape))))
    chosen = rows[noise.permutation(seed, 0, len(rows))[:count].sort().values]
    x, spec = source.x[chosen].cpu(), getattr(model.spec, "data", model.spec)  # of a latent model, not that of codes
    whole = x.isfinite().flatten(1).all(1) if x.is_floating_point() else torch.ones(count, dtype=torch.bool)
    if source.missing and int(whole.sum()) < min(8, count):
        return None
    label = None if spec is None else of_data(spec, source, chosen).get("label")
    scale = float(getattr(model, "sigma_data", 1.0)) if spec is None else 1.0
    return Sample(x[whole], label[whole] if isinstance(label, Tensor) else None, _in_deviations(spec), scale)


def _in_deviations(spec: DataSpec | None) -> DataSpec | None:
    """A contract that leaves data as they are, such as that of symbols, as one that takes them in deviations."""
    own = None if spec is None else spec.normaliser
    if spec is None or own is None or own.kind != "affine" or {*own.mean} != {0.0} or {*own.std} != {1.0}:
        return spec
    return dataclasses.replace(spec, normaliser=Normaliser.of(spec.statistics))


def answers(
    model: Any,
    source: Source,
    rows: Tensor,
    times: str | None = None,
    seed: int = 0,
    draws: int | None = None,
    held: bool = True,
) -> Answers:
    """What a denoiser answers about these rows of a source; times: name of the density that it was trained under.

    draws: a level; without it, as many as suffice. SfumatoError where the samples have another shape.
    """
    x, cond = _asked(model, source, rows, ASKED)
    count = draws or draws_for(len(x), x[0].numel())
    return ask(model, x, cond, levels(times, model.process.schedule), count, seed, held=held)


def _asked(model: Any, source: Source, rows: Tensor, most: int) -> tuple[Tensor, Conditions]:
    """At most so many of these rows, evenly spread, as the model sees them, and their conditions."""
    chosen = rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]
    return seen(model, source, chosen, of_data(model, source, chosen), judged=False)


def unheard(model: Any, source: Source, rows: Tensor) -> tuple[str, ...] | None:
    """The conditions that a network ignores; None where it cannot be asked."""
    if not isinstance(getattr(model, "process", None), Gaussian):
        return None
    try:
        x, cond = _asked(model, source, rows, 8)
        return deaf(model, x.to(model.device), cond) if named(cond) and len(x) > 1 else None
    except (SfumatoError, RuntimeError):  # a user's network may take inputs that we do not know how to make
        return None


def information(
    model: Any, source: Source, rows: Tensor, seed: int = 0, draws: int | None = None, world: World = ALONE
) -> Information | None:
    """The information of each condition about these rows; None without any, or if the model is no Gaussian
    denoiser of x alone."""
    if not len(rows) or not isinstance(model.process, Gaussian) or isinstance(model.process, Paired):
        return None
    x, cond = _asked(model, source, rows, INFORMED)
    if not named(cond):
        return None
    count = draws or min(2 * INFORMED, 4 * LEVELS * draws_for(len(x), x[0].numel()))
    return measured(model, x.to(model.device), cond.to(model.device), count, seed, world=world)


def paths(model: Any, source: Source, rows: Tensor, seed: int = 0) -> PathAnswers | None:
    """What a flow map says of paths; None for other models."""
    if not getattr(model, "two_times", False):
        return None
    x, cond = _asked(model, source, rows, ASKED)
    return ask_of_paths(model, x, cond, seed)


def not_finite(*models: Any) -> dict[str, int]:
    """How many values of each parameter and buffer of these models are NaN or infinite, where any are."""
    found: dict[str, int] = {}
    for model in models:
        for name, value in model.net.state_dict().items() if model is not None else ():
            wrong = int((~value.isfinite()).sum()) if value.is_floating_point() else 0
            if wrong:
                found[name] = found.get(name, 0) + wrong
    return found


def parameters(model: Any) -> dict[str, Tensor]:
    """The network's parameters by name, without gradients."""
    return {name: p.detach() for name, p in model.net.named_parameters()}
