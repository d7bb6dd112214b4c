"""`sf.board`: measure a model on data, noise level by noise level."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from sfumato import serialization
from sfumato.diagnostics import gradients as of_gradients
from sfumato.diagnostics.bins import make
from sfumato.diagnostics.board_figures import Board
from sfumato.diagnostics.draws import Draws
from sfumato.diagnostics.samples import evaluation_set, trivial
from sfumato.errors import SfumatoError, whole
from sfumato.machine import default_cpu, outside_inference
from sfumato.objectives import times as densities
from sfumato.objectives import weights
from sfumato.objectives.compiler import Objective
from sfumato.objectives.times import TimeDensity, UniformTime
from sfumato.objectives.weights import Weight
from sfumato.process.gaussian import require_numbers

PLAIN = "plain"  # no weight: the squared error of the target
_PER_CALL = 8  # largest micro-batch


@default_cpu()
@outside_inference
def board(
    model: Any,
    data: Any,
    *,
    ema: Any = None,
    bins: int | Sequence[float] = 8,
    samples: int = 64,
    gradients: int = 8,
    times: TimeDensity | str | None = None,
    weight: Weight | str | None = None,
    labels: Any = None,
    conditional: bool | None = None,
    seed: int = 0,
    batch: int = 256,
    device: str | torch.device = "cpu",
) -> Board:
    """The loss of a model at each noise level, next to the trivial predictor's and to the floor of a known law.

    loss = E|eps - eps_hat|^2 / d,   contribution = int w loss dlogsnr   (2303.00848, Eq. 6, times 2 / d)

    model: a denoiser, or the path of a model file or run folder, whose raw weights and moving average are both judged.
    ema: the moving average of `model`, or another denoiser to compare. data: whatever `sf.data.open` takes, in the
    units of the model's data (with `labels`), or a law of `sf.exact` in those units. bins: a number of bins of equal
    mass under the time density, or their edges in logsnr. samples: draws per bin. gradients: micro-batches per bin for
    gradient and noise scale (1812.06162), at least 2, or 3 for error bars; 0 for none. times, weight: objects or names,
    "plain" for the squared error of the target; by default those of the training, if recorded, else uniform in t and
    plain. conditional: whether to use the samples' classes; by default if data set and model have some, but not for a
    law. device: where a model file is loaded.

    Levels that the density rarely draws are estimated from few draws, as in training. If the data are the model's
    training data, only the held-out samples are used. The model is not changed. Raises SfumatoError for data, bins,
    names or numbers that cannot be used.
    """
    _check(samples, gradients, batch)
    models, notes = _models(model, ema, device)
    of, first = next(iter(models.items()))
    require_numbers(first, "The board", _instead(first))
    density, w, words = _dials(getattr(first, "provenance", None) or {}, times, weight, notes)
    schedule, target = first.process.schedule, getattr(first, "target", "v")
    objective = Objective(schedule, target, density, w, float(getattr(first, "sigma_data", 1.0)))
    cut = make(bins, density, schedule)
    found = evaluation_set(first, data, labels, conditional, samples * len(cut), seed, notes)
    draws = Draws(found.x, found.cond, first.process, cut, samples, seed, batch)
    losses = {name: draws.losses(one) for name, one in {**models, "trivial": trivial(first, found)}.items()}
    if found.law is not None:
        losses["floor"] = found.law.floor(draws)
    factor, size = draws.factor(objective), min(_PER_CALL, samples // max(1, gradients))
    return Board(
        objective=objective,
        bins=cut,
        count=samples,
        models=tuple(models),
        loss={name: draws.by_level(value) for name, value in losses.items()},
        contribution={name: draws.by_level(value * factor).times(cut.mass) for name, value in losses.items()},
        excess={} if found.law is None else {name: found.law.excess(draws, one) for name, one in models.items()},
        gradients=of_gradients.measure(first, draws, factor, gradients, size) if gradients else None,
        of=of,
        words=f"{target} under {type(schedule).__name__}, {words}",
        notes=tuple(notes),
    )


def _check(samples: int, gradients: int, batch: int) -> None:
    whole("samples, the draws per bin,", samples, 2)
    whole("batch, the draws at once,", batch)
    if whole("gradients, the micro-batches per bin,", gradients, 0) == 1 or gradients > samples:
        raise SfumatoError(
            f"gradients, the micro-batches per bin, must be 0 or from 2 to its {samples} draws, not {gradients}."
        )


def _models(model: Any, ema: Any, device: str | torch.device) -> tuple[dict[str, Any], list[str]]:
    """The models by name; for a model file, the raw weights and their moving average."""
    if not isinstance(model, str | os.PathLike):
        _is_model(model)
        if ema is None:
            return {"model": model}, []
        _is_model(ema)
        return {"raw": model, "ema": ema}, []
    if ema is not None:
        raise SfumatoError("A model file has its own moving average: pass ema only with a denoiser.")
    average = serialization.load_sampler(model, device=device)
    if not serialization.read_contract(model)["raw"]:
        return {"model": average}, []
    return {"raw": serialization.load_sampler(model, "raw", device), "ema": average}, []


def _instead(model: Any) -> str:
    if getattr(getattr(model, "spec", None), "table", None) is not None:
        return "sf.log_prob(model, rows).bits gives bits by column"
    return "sf.log_prob(...).by_level gives the loss of a bound at each level"


def _is_model(model: Any) -> None:
    if not callable(model) or getattr(model, "process", None) is None:
        raise SfumatoError(f"A board needs a denoiser, a model file or a run folder, not {type(model).__name__}.")


def _dials(
    made: dict[str, Any], times: TimeDensity | str | None, weight: Weight | str | None, notes: list[str]
) -> tuple[TimeDensity, Weight | None, str]:
    """Time density and weight, those of the caller or else of the training, and a description of both."""
    for name, given, kept in (("times", times, made.get("times")), ("weight", weight, made.get("weight"))):
        if given is None and kept is None:
            notes.append(
                f"The model does not record the {name} of its training: "
                f"{'uniform in t' if name == 'times' else 'the plain squared error of its target'} is used."
            )
    chosen = times if times is not None else made.get("times") or UniformTime()
    density = densities.named(chosen)
    if density.moves:
        notes.append("The time density learns from the losses; its untrained form is used here.")
    picked = weight if weight is not None else made.get("weight", PLAIN)
    w = weights.chosen(picked)
    shown = [chosen if isinstance(chosen, str) else repr(density), picked if isinstance(picked, str) else "own"]
    return density, w, f"times {shown[0]}, weight {shown[1]}"
