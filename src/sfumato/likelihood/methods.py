"""log p(x) of any model, in the user's units: units, dequantisation and batches are those of all methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import resolve
from sfumato.errors import SfumatoError, suggest, whole
from sfumato.likelihood.bound import elbo, path_bound
from sfumato.likelihood.flow import DEFAULT_STEPS, ode
from sfumato.likelihood.importance import importance
from sfumato.likelihood.measured import DEQUANTISATIONS, Measured, gather
from sfumato.model import Model
from sfumato.noised import evaluating
from sfumato.objectives.decoder import cells_of
from sfumato.probability_flow import data_scale
from sfumato.process import Gaussian, Symbols
from sfumato.sampling import refuse_arguments
from sfumato.schedule import NODE_LIMIT
from sfumato.state import State, first_leaf, map_state, rows_of, samples

METHODS = ("ode", "elbo", "importance")
_BATCH, _ROWS = 1 << 18, 4096  # numbers and samples in a batch, at most
_CELL = 1 << 17  # the stream of the dequantisation under the role of the probes


def log_prob(
    model: Model,
    x: Any,
    method: str | None = None,
    steps: int = DEFAULT_STEPS,
    trace: str = "auto",
    probes: int = 8,
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    sigma_min: float | None = None,
    batch: int | None = None,
    dequantisation: str = "auto",
    particles: int = 16,
    **cond: Any,
) -> Measured:
    """log p(x) for x (B, *shape) in user units -> Measured, nats per sample in user units.

    ode         log p(x) = log N(z_1; 0, sigma_1^2) + int div(dz/dt) dt          (2011.13456, Eq. 39; `flow`)
    elbo        log p(x) >= -(L_T + 1/2 int E|eps - eps_hat|^2 dlogsnr + L_0)    (2107.00630, Eq. 11-15; `bound`)
    importance  log p(x) >= E log mean_k p(x, z^k) / q(z^k | x), K trajectories  (1509.00519, Eq. 8; `importance`)

    steps: of the ODE (an even number; half as many run beside them for `solver_error`), noise levels a replicate of the
    bound, or steps of each trajectory. probes: of the trace, or replicates of a bound. All draws are fixed for each
    sample as a function of (seed, its number in `index`), 0, 1, .. by default, whatever the batch.
    trace, of the ODE: exact | rademacher | gaussian | deflated (see `trace`), or auto: exact for laws of `sf.exact` and
    up to 128 numbers a sample, else rademacher. particles: K of the importance-weighted bound.
    sigma_min: the least sigma/alpha, by default exp(-6) of the data's size, half a cell of whole numbers where cells
    are decoded, or the schedule's own, whichever is larger.
    dequantisation of whole numbers, so that -log2 p bounds the bits of their code: uniform, u ~ U(-1/2, 1/2) in each
    entry, or discretised, the probability of each cell (bounds alone); auto is uniform for the ODE, else discretised.
    label=... as in `sample`. A guided model is a model as any other: pass `sf.guide(model, scale)`.
    Symbols, and states with symbols in them, have the bound alone: it is their default, as the ODE is that of real
    numbers. Its value is in nats of a probability, or of a density times one.
    """
    refuse_arguments(log_prob, model, cond)
    method = _method(model.process, method)
    steps, probes = whole("steps", steps), whole("probes", probes)
    batch = None if batch is None else whole("batch", batch)
    spec = getattr(model, "spec", None)
    how = _dequantisation(model.process, spec, dequantisation, method)
    x, numbers = _clean(model, x, index, how, seed)
    leaf, conditions = first_leaf(x), resolve(model, cond, len(numbers))
    cells = cells_of(spec) if how == "discretised" else None
    if cells is not None and sigma_min is None:
        # finer noise would charge for decimals that the cells do not hold
        sigma_min = max(float(cells.half.min()), data_scale(model) * math.exp(-NODE_LIMIT / 2))
    measure: Any = {
        "ode": partial(ode, trace=trace),
        "elbo": partial(elbo, cells=cells),
        "importance": partial(importance, cells=cells, particles=particles),
        "path": path_bound,
    }[method]
    found, device = [], getattr(model, "device", leaf.device)
    for part in torch.arange(len(numbers)).split(batch or min(_ROWS, max(1, _BATCH // leaf[0].numel()))):
        some, given = map_state(lambda v: v.to(device), rows_of(x, part)), conditions.rows(part).to(device)
        with evaluating(model):
            one = measure(model, some, numbers[part], given, steps, probes=probes, seed=seed, sigma_min=sigma_min)
        found.append(one)
    result = gather(found, how)
    return result if spec is None or how == "discretised" else result.shifted(spec.log_jacobian)


def _method(process: Any, asked: str | None) -> str:
    """The method asked for, or the default of the process; "path" is the bound of symbols."""
    if asked is not None and asked not in METHODS:
        raise SfumatoError(f"Unknown method {asked!r} of log_prob: {suggest(asked, METHODS)}")
    if isinstance(process, Gaussian):
        return asked or "ode"
    if asked not in (None, "elbo"):
        raise SfumatoError(
            f"A {type(process).__name__} process has no {asked!r} likelihood, that of real numbers alone: take "
            "method='elbo', its bound."
        )
    return "path"


def _clean(
    model: Any, x: Any, index: Sequence[int] | Tensor | None, how: str | None, seed: int
) -> tuple[State, Tensor]:  # fmt: skip
    """Clean states in the model's units, real numbers as float64 and dequantised where asked, and their numbers."""
    spec, real = getattr(model, "spec", None), isinstance(model.process, Gaussian)
    x = x if isinstance(x, Mapping) else samples(x, "log_prob")
    if spec is not None:
        spec.check(x)
    count = len(first_leaf(x))
    numbers = torch.arange(count) if index is None else torch.as_tensor(index, dtype=torch.int64)
    if len(numbers) != count:
        raise SfumatoError(f"log_prob needs a number for each of {count} samples, and got {len(numbers)}.")
    x = x.to(torch.float64) if real else x
    if how == "uniform":  # rounding to the nearest whole number undoes it
        x = x + noise.uniform(seed, numbers, x.shape[1:], noise.PROBE, _CELL, dtype=torch.float64) - 0.5
    x = x if spec is None else spec.normalise(x)
    return model.process.data(x.to(torch.float64) if real else x), numbers


def _dequantisation(process: Any, spec: Any, asked: str, method: str) -> str | None:
    """How whole numbers are taken, None for real-valued data."""
    if method == "path":
        return "symbols" if isinstance(process, Symbols) else None
    known = ("auto", *DEQUANTISATIONS)
    if asked not in known:
        raise SfumatoError(f"The dequantisation cannot be {asked!r}: {suggest(asked, known)}")
    if spec is None or not spec.discrete:
        if asked != "auto":
            raise SfumatoError("Only data declared discrete (whole-number dtype) is dequantised: leave it out.")
        return None
    if asked == "discretised" and method == "ode":
        raise SfumatoError("The ODE gives a density and no probability of a cell: use dequantisation='uniform'.")
    return asked if asked != "auto" else "uniform" if method == "ode" else "discretised"
