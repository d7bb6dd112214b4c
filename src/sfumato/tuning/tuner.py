"""Fit a plan of few steps to a model: `tune(denoiser, steps) -> Plan`.

    minimise over times, a, b:  mean_i rho(|z_N(times, a, b; z_0i) - Phi(z_0i)|^2)

Phi is a fine solve of the probability-flow ODE; z_0i is noise from a stream of its own, part of it held out. The fit
starts from the best untuned plan. It returns a plan that does better on the held-out noise (smaller loss and median,
and a mean square not significantly larger), or else that untuned plan. For plans with noise see `fit`.
Source: Shaul et al. 2024 (2403.01329) fit all coefficients of a fixed-step solver.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sfumato.conditions import Given, Label, declared, resolve, unfolded
from sfumato.errors import SfumatoError, whole
from sfumato.guidance import Scale, guide
from sfumato.machine import default_cpu, outside_inference
from sfumato.model import Model
from sfumato.process import Embedded, Masked
from sfumato.process.gaussian import require_numbers
from sfumato.sampling import refuse_arguments
from sfumato.solver_selection import guidance_of
from sfumato.solvers import Plan
from sfumato.tuning import masks
from sfumato.tuning.search import Range
from sfumato.tuning.study import Study, TuneProgress, shape_of

_NUMBERS, _MOST, _LEAST = 1 << 16, 4096, 64  # numbers in all fitted points, and the most and fewest points
_LEAST_NOISY = 128  # a law needs more points than a path


@default_cpu()
@outside_inference
def tune(
    model: Model,
    steps: int,
    *,
    noise: float = 0.0,
    guidance: Scale | None = None,
    interval: tuple[float, float] | None = None,
    points: int | None = None,
    rounds: int = 40,
    batch: int = 256,
    seed: int = 0,
    t_start: float = 1.0,
    t_stop: float = 0.0,
    progress: Callable[[TuneProgress], None] | None = None,
    **cond: Any,
) -> Plan:
    """Fit a plan of `steps` calls to a model, its guidance and its conditions.

    noise: 0 fits the times and coefficients of a deterministic plan to the ODE; above 0 fits the coefficients,
    including those of the noise, of a stochastic plan to the reverse SDE with this amount of noise (`SASolver`'s tau; 1
    is Anderson's), along shared Brownian paths, and to the law of its end points (`fit`). points: how many noise points
    to fit; half as many more are held out (with noise, as many). By default 65,536 numbers in all, at least 64 (with
    noise 128) and at most 4,096 points. rounds: most rounds of the fit, each about ten runs of the plan. guidance,
    interval and conditions: as for `sample`; a condition may have several values, which the points use in turn, and by
    default a model with classes uses all of them. If t_start < 1, the fine solve leads there. progress: per round.

    Of masked symbols the plan is how many to reveal at each call (`masks`), from `points` samples, by default 64.

    `plan.tuned` says what was fitted and both errors on held-out noise. `sample(model, solver=plan)` uses the plan;
    `model.plans["6"] = plan` stores it for `sample(model, steps=6)` with the same guidance, and `save` keeps it.
    """
    refuse_arguments(tune, model, cond)
    if isinstance(getattr(model, "process", None), Masked):
        masks.require_whole(noise, t_start, t_stop)
        return masks.tune(model, steps, guidance, interval, points, batch, seed, in_turn(model, cond))
    _require_noise(model)
    steps, batch, rounds = whole("steps", steps), whole("batch", batch), whole("rounds", rounds, 0)
    points, seed = None if points is None else whole("points", points, 8), whole("seed", seed, None)
    if not 0 <= noise < math.inf:
        raise SfumatoError(f"tune needs noise >= 0 (0: the ODE, 1: the reverse SDE), got {noise:g}.")
    wanted = guidance_of(model, guidance, interval)
    walker = model if guidance is None else guide(model, guidance, interval)
    start = 1.0 if math.isclose(t_start, 1.0, rel_tol=1e-12) else float(t_start)  # nothing lies between it and 1
    reach = Range(model.process.schedule, start, float(t_stop))
    few = _LEAST_NOISY if noise else _LEAST
    points = points or max(few, min(_MOST, _NUMBERS // math.prod(shape_of(model))))
    study = Study(walker, reach, steps, batch, progress or (lambda _: None), float(noise))
    fitted, held = study.pairs(seed, points, in_turn(model, cond))
    base = study.best_untuned(fitted, held)
    plan, error, before = study.improve(base, fitted, held, rounds, seed)
    record = {
        "guidance": wanted[0],
        "interval": None if wanted[1] is None else list(wanted[1]),
        "points": points,
        "seed": seed,
        "noise": float(noise),
        "error": error,
        "untuned": {"name": base.name, **before},
    }
    return dataclasses.replace(plan, tuned=record)


def _require_noise(model: Model) -> None:
    """Raise SfumatoError unless noise leads to samples by an ODE: to numbers, or to the vectors of symbols, in steps
    that are not learned already."""
    if getattr(model, "two_times", False):
        raise SfumatoError("No plan is fitted to a flow map, whose steps are learned: sample it with steps=1, 2 or 4.")
    if not isinstance(getattr(model, "process", None), Embedded):
        require_numbers(model, "The fit of a plan", "sample it in as many steps as there is time for")


def in_turn(model: Model, cond: Mapping[str, Any]) -> dict[str, Given]:
    """The conditions that the points use in turn: the caller's, or by default all classes of the model."""
    given = {name: value for name, value in unfolded(cond).items() if value is not None}
    label = (declared(model) or {}).get("label")
    if not given and isinstance(label, Label):
        return {"label": Given.of(torch.arange(len(label.classes)))}
    found: dict[str, Given] = {}
    for name, value in given.items():
        rows = len(value) if isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0 else 1
        found |= {name: resolve(model, {name: value}, rows).given(name)}
    return found
