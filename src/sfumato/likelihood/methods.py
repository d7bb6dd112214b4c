"""log p(x) of any model by each of the methods, in the user's units: what they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import resolve
from sfumato.errors import SfumatoError, suggest
from sfumato.likelihood.elbo import elbo
from sfumato.likelihood.flow import DEFAULT_STEPS, ode
from sfumato.likelihood.importance import importance
from sfumato.likelihood.measured import DEQUANTISATIONS, Measured, gather
from sfumato.likelihood.path import path_bound
from sfumato.model import Model
from sfumato.objectives.decoder import cells_of
from sfumato.probability_flow import data_scale
from sfumato.process import Gaussian, Symbols
from sfumato.sampling import refuse_arguments
from sfumato.schedule import NODE_LIMIT
from sfumato.state import first_leaf, map_state, samples

METHODS = ("ode", "elbo", "importance")
_BATCH = 1 << 18  # numbers in a batch
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
    elbo        log p(x) >= -(L_T + 1/2 int E|eps - eps_hat|^2 dlogsnr + L_0)    (2107.00630, Eq. 11-15; `elbo`)
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
    Symbols, and states with symbols in them, have the bound alone (`path`): it is their default, as the ODE is that of
    real numbers. Its value is in nats of a probability, or of a density times one.
    """
    refuse_arguments(log_prob, model, cond)
    method = _method(model.process, method)
    if method == "path":
        return _of_path(model, x, index, batch, cond, steps=steps, probes=probes, seed=seed)
    spec = getattr(model, "spec", None)
    how = _dequantisation(spec, dequantisation, method)
    x, numbers = _normalised(spec, x, index, how, seed)
    conditions, device = resolve(model, cond, len(x)), getattr(model, "device", x.device)
    cells = cells_of(spec) if how == "discretised" else None
    if cells is not None and sigma_min is None:
        # finer noise would charge for decimals that the cells do not hold
        sigma_min = max(float(cells.half.min()), data_scale(model) * math.exp(-NODE_LIMIT / 2))
    options: dict[str, Any] = {"steps": steps, "probes": probes, "seed": seed, "sigma_min": sigma_min}
    measure: Any = {
        "ode": partial(ode, trace=trace),
        "elbo": partial(elbo, cells=cells),
        "importance": partial(importance, cells=cells, particles=particles),
    }[method]
    found = []
    for part in torch.arange(len(x)).split(batch or max(1, _BATCH // x[0].numel())):
        chosen = conditions.rows(part).to(device)
        found.append(measure(model, x[part].to(device), numbers[part], chosen, **options))
    result = gather(found, how)
    return result if spec is None or how == "discretised" else result.shifted(spec.log_jacobian)


def _method(process: Any, asked: str | None) -> str:
    """The method by which it is measured: as asked, or the process's own; "path" is the bound of symbols."""
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


def _of_path(model: Any, x: Any, index: Any, batch: int | None, cond: dict[str, Any], **options: Any) -> Measured:
    """The bound of a process with symbols, for x in user units, or for clean states of a model without units."""
    spec = getattr(model, "spec", None)
    if spec is not None:
        spec.check(x)
        x = spec.normalise(torch.as_tensor(x))
    clean = model.process.data(x if isinstance(x, Mapping) else torch.as_tensor(x))
    count = len(first_leaf(clean))
    numbers = torch.arange(count) if index is None else torch.as_tensor(index, dtype=torch.int64)
    if not count or len(numbers) != count:
        raise SfumatoError(f"log_prob needs samples and a number for each, got {count} and {len(numbers)}.")
    conditions, device = resolve(model, cond, count), getattr(model, "device", torch.device("cpu"))
    found = []
    for part in torch.arange(count).split(batch or 256):
        some = map_state(lambda leaf: leaf[part].to(device), clean)  # noqa: B023
        found.append(path_bound(model, some, numbers[part], conditions.rows(part).to(device), **options))
    result = gather(found, "symbols" if isinstance(model.process, Symbols) else None)
    return result if spec is None else result.shifted(spec.log_jacobian)


def _normalised(
    spec: Any, x: Any, index: Sequence[int] | Tensor | None, how: str | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Samples in the model's units, float64, dequantised where that is asked for, and their numbers."""
    if spec is not None:
        spec.check(x)
    x = samples(x, "log_prob")
    numbers = torch.arange(len(x)) if index is None else torch.as_tensor(index, dtype=torch.int64)
    if len(numbers) != len(x):
        raise SfumatoError(f"log_prob needs a number for each of {len(x)} samples, and got {len(numbers)}.")
    x = x.to(torch.float64) + (_cells(x, seed, numbers) if how == "uniform" else 0.0)
    return (x if spec is None else spec.normalise(x).to(torch.float64)), numbers


def _dequantisation(spec: Any, asked: str, method: str) -> str | None:
    """How whole numbers are taken, None for real-valued data."""
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


def _cells(x: Tensor, seed: int, index: Tensor) -> Tensor:
    """u ~ U(-1/2, 1/2) in each entry: rounding to the nearest whole number undoes it."""
    return noise.uniform(seed, index, x.shape[1:], noise.PROBE, _CELL, dtype=torch.float64) - 0.5
