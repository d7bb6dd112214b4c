"""Evidence of a model and of data in memory, as a run that is under way and `sf.doctor` both need it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import Conditions, of_data
from sfumato.data import Source
from sfumato.diagnostics.answers import LEVELS, Answers, ask, deaf, draws_for, levels
from sfumato.diagnostics.checks.evidence import Weights
from sfumato.diagnostics.information import Information, measured
from sfumato.diagnostics.samples import seen
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError
from sfumato.process import Gaussian

TRAINED = 100  # steps before which a network has hardly learned, and is asked nothing
POINTS = 512  # samples that answers are asked about, at most
SPOKEN = 2048  # samples that conditions are measured on, at most


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
    x, cond = asked(model, source, rows)
    count = draws or draws_for(len(x), x[0].numel())
    return ask(model, x, cond, levels(times, model.process.schedule), count, seed, held=held)


def asked(model: Any, source: Source, rows: Tensor, most: int = POINTS) -> tuple[Tensor, Conditions]:
    """At most so many of these rows, evenly spread, as the model sees them, and their conditions."""
    chosen = rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]
    return seen(model, source, chosen, judged=False), of_data(model, source, chosen)


def unheard(model: Any, source: Source, rows: Tensor) -> tuple[str, ...] | None:
    """The conditions that a network cannot hear; None where it cannot be asked."""
    if not isinstance(getattr(model, "process", None), Gaussian):
        return None
    try:
        x, cond = asked(model, source, rows, 8)
        return deaf(model, x.to(model.device), cond) if cond and len(x) > 1 else None
    except (SfumatoError, RuntimeError):  # a network of the user's that takes other samples is none of our business
        return None


def told(
    model: Any, source: Source, rows: Tensor, seed: int = 0, draws: int | None = None, world: World = ALONE
) -> Information | None:
    """What each condition says of these rows; None without conditions, or for a model that is no Gaussian denoiser."""
    if not len(rows) or not isinstance(model.process, Gaussian):
        return None
    x, cond = asked(model, source, rows, SPOKEN)
    if not cond:
        return None
    count = draws or min(2 * SPOKEN, 4 * LEVELS * draws_for(len(x), x[0].numel()))
    return measured(model, x.to(model.device), cond.to(model.device), count, seed, world=world)


def labels(source: Source, rows: Tensor, spec: Any) -> Tensor | None:
    """The labels of some rows in the model's numbering, by name; None where either has no classes."""
    cond = of_data(spec, source, rows) if spec is not None else {}
    found = cond.get("label")
    return found if isinstance(found, Tensor) else None


def weights(model: Any, average: Any, initial: dict[str, Tensor] | None, steps: int) -> Weights:
    """Parameters of the raw network, of its average and of the start, by the network's own names."""
    return Weights(initial, parameters(model), None if average is None else parameters(average), steps)


def broken(*models: Any) -> dict[str, int]:
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
