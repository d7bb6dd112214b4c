"""`sf.board`: a model and data -> a Board."""

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
from sfumato.diagnostics.samples import Rows, rows, trivial
from sfumato.errors import SfumatoError
from sfumato.objectives import times as densities
from sfumato.objectives import weights
from sfumato.objectives.compiler import Objective
from sfumato.objectives.times import TimeDensity, UniformTime
from sfumato.objectives.weights import Weight
from sfumato.process.gaussian import require_numbers

PLAIN = "plain"  # the name of no weight at all: the squared error of the target
_PER_CALL = 8  # samples of a micro-batch, at most


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
    """What a model loses at each noise level on some data, against the trivial guess and, on a known law, the floor.

    loss = E|eps - eps_hat|^2 / d,   contribution = int w loss dlogsnr   (2303.00848, Eq. 6, times 2 / d)

    model: a denoiser, or the path of a model file or run folder, whose raw weights and moving average are both judged.
    ema: another denoiser to put beside it, as its moving average. data: whatever `sf.data.open` takes, in the units of
    the model's data (with `labels`), or a law of `sf.exact` in those units. bins: a number of equal mass under the time
    density, or edges in logsnr. samples: draws a bin. gradients: micro-batches a bin for gradient and noise scale
    (1812.06162), at least 2, 3 for their errors; 0 leaves them out. times, weight: objects or names of
    `sf.times.NAMED` and `sf.weights.NAMED`, "plain" for the squared error of the target; by default those that the
    model was trained with, else uniform in t and plain. conditional: whether samples are judged under their own class;
    by default where data set and model have classes. A law is judged without. device: where a file is loaded.

    What a density hardly draws is hardly seen, here as in training: its part of the objective is then known badly.
    Where the data are those that the model was trained on, only what training held out is looked at. Nothing of the
    model is changed. Raises SfumatoError for data, bins, names or numbers that cannot be used.
    """
    _check(samples, gradients, batch)
    models, notes = _models(model, ema, device)
    first = next(iter(models.values()))
    require_numbers(first, "The board", "log_prob(...).by_level says what a bound loses at each level")
    density, w, words = _dials(getattr(first, "provenance", None) or {}, times, weight, notes)
    schedule, target = first.process.schedule, getattr(first, "target", "v")
    objective = Objective(schedule, target, density, w, float(getattr(first, "sigma_data", 1.0)))
    cut = make(bins, density, schedule)
    found = rows(first, data, labels, conditional, samples * len(cut), seed, notes)
    draws = Draws(found.x, found.cond, first.process, cut, samples, seed, batch)
    said = f"{target} under {type(schedule).__name__}, {words}"
    return _board(models, draws, found, objective, gradients, said, notes)


def _board(
    models: dict[str, Any], draws: Draws, found: Rows, objective: Objective, micro: int, words: str, notes: list[str]
) -> Board:
    """All that is measured on the draws."""
    of, first = next(iter(models.items()))
    losses = {name: draws.losses(one) for name, one in {**models, "trivial": trivial(first, found)}.items()}
    excess = {}
    if found.law is not None:
        losses["floor"] = found.law.floor(draws)
        excess = {name: found.law.excess(draws, one) for name, one in models.items()}
    factor = draws.factor(objective)
    size = min(_PER_CALL, draws.count // max(1, micro))
    return Board(
        objective=objective,
        bins=draws.bins,
        count=draws.count,
        models=tuple(models),
        loss={name: draws.by_level(value) for name, value in losses.items()},
        contribution={name: draws.by_level(value * factor).times(draws.bins.mass) for name, value in losses.items()},
        excess=excess,
        gradients=of_gradients.measure(first, draws, factor, micro, size) if micro else None,
        of=of,
        words=words,
        notes=tuple(notes),
    )


def _check(samples: int, gradients: int, batch: int) -> None:
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise SfumatoError(f"samples, the draws of a bin, must be a whole number from 2 up, not {samples!r}.")
    if isinstance(gradients, bool) or not isinstance(gradients, int) or gradients == 1 or not 0 <= gradients <= samples:
        raise SfumatoError(
            f"gradients, the micro-batches of a bin, must be 0 or from 2 to its {samples} draws, not {gradients!r}."
        )
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise SfumatoError(f"batch must be a whole number from 1 up, not {batch!r}.")


def _models(model: Any, ema: Any, device: str | torch.device) -> tuple[dict[str, Any], list[str]]:
    """The models by name; of a file the raw weights and their average."""
    if not isinstance(model, str | os.PathLike):
        _is_model(model)
        if ema is None:
            return {"model": model}, []
        _is_model(ema)
        return {"raw": model, "ema": ema}, []
    if ema is not None:
        raise SfumatoError("A model file brings its own moving average: give ema with a denoiser alone.")
    average = serialization.load_sampler(model, device=device)
    if not serialization.read_contract(model)["raw"]:
        return {"model": average}, []
    return {"raw": serialization.load_sampler(model, "raw", device), "ema": average}, []


def _is_model(model: Any) -> None:
    if not callable(model) or getattr(model, "process", None) is None:
        raise SfumatoError(
            f"A board is of a denoiser, a model file or a run folder, and {type(model).__name__} is none of them."
        )


def _dials(
    made: dict[str, Any], times: TimeDensity | str | None, weight: Weight | str | None, notes: list[str]
) -> tuple[TimeDensity, Weight | None, str]:
    """Time density and weight, as given or as trained, and both in words."""
    for name, given, kept in (("times", times, made.get("times")), ("weight", weight, made.get("weight"))):
        if given is None and kept is None:
            notes.append(
                f"The model does not say the {name} that it was trained with: "
                f"{'uniform in t' if name == 'times' else 'the plain squared error of its target'} is taken."
            )
    chosen = times if times is not None else made.get("times")
    density: TimeDensity = UniformTime()
    if isinstance(chosen, str):
        density = densities.named(chosen)
    elif chosen is not None:
        density = chosen
    if density.moves:
        notes.append("The time density learns from the losses; here it is what it was before it had seen any.")
    picked = weight if weight is not None else made.get("weight", PLAIN)
    w: Weight | None = None
    if isinstance(picked, str):
        w = None if picked == PLAIN else weights.named(picked)
    elif picked is not None:
        w = picked
    said = [chosen if isinstance(chosen, str) else repr(density), picked if isinstance(picked, str) else "own"]
    return density, w, f"times {said[0]}, weight {said[1]}"
