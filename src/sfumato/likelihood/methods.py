"""log p(x) of any model in the user's units; handles units, dequantisation and batches for all methods."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.autoregressive import Autoregressive
from sfumato.conditions import Conditions, resolve, without_gaps
from sfumato.coupling_flow import CouplingFlow
from sfumato.errors import SfumatoError, SfumatoWarning, suggest, whole
from sfumato.latent_diffusion import latent_of, require_data_space
from sfumato.likelihood import orders, spectral
from sfumato.likelihood.bound import count_bound, elbo, path_bound
from sfumato.likelihood.flow import DEFAULT_STEPS, ode
from sfumato.likelihood.importance import importance
from sfumato.likelihood.known import known
from sfumato.likelihood.latent_bound import latent_bound
from sfumato.likelihood.measured import DEQUANTISATIONS, Measured, gather
from sfumato.likelihood.of_maps import change_of_variables
from sfumato.likelihood.present import Present, require_ode
from sfumato.likelihood.rows import are_rows, row_log_prob
from sfumato.machine import default_cpu, outside_inference
from sfumato.model import Model, compute_dtype
from sfumato.noised import evaluating
from sfumato.objectives.decoder import Cells, cells_of
from sfumato.probability_flow import data_scale
from sfumato.process import Discrete, Embedded, Gaussian, Interpolant, Masked, RectifiedFlow, Spectral, require_flow
from sfumato.sampling import refuse_arguments
from sfumato.schedule import NODE_LIMIT
from sfumato.state import State, first_leaf, map_state, rows_of, samples

METHODS = ("ode", "elbo", "importance", "order", "map")
_BATCH, _ROWS = 1 << 18, 4096  # most numbers and most samples in a batch
_CELL = 1 << 17  # the stream of the dequantisation noise, under the role PROBE


@default_cpu()
@outside_inference
def log_prob(
    model: Model,
    x: Any,
    method: str | None = None,
    steps: int | None = None,
    trace: str = "auto",
    probes: int = 8,
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    sigma_min: float | None = None,
    batch: int | None = None,
    dequantisation: str = "auto",
    particles: int = 16,
    **cond: Any,
) -> Any:
    """log p(x) for x (B, *shape) in user units -> Measured, nats per sample in user units; for rows of a table, a frame
    or the path of a file of them -> `RowLikelihood`, nats by row and column (`rows`).

    ode         log p(x) = log N(z_1; 0, sigma_1^2) + int div(dz/dt) dt          (2011.13456, Eq. 39; `flow`)
    elbo        log p(x) >= -(L_T + 1/2 int E|eps - eps_hat|^2 dlogsnr + L_0)    (2107.00630, Eq. 11-15; `bound`)
    importance  log p(x) >= E log mean_k p(x, z^k) / q(z^k | x), K trajectories  (1509.00519, Eq. 8; `importance`),
                or K orders of masked symbols (`orders`)
    order       log p(x) = sum_i log p(x_i | x_1 .. x_{i-1}) of masked symbols revealed left to right, exact (`orders`)

    map         log p(x) = log N(z; 0, sigma_1^2) - log|det dX/dz|, X(z) = x, of a flow map (1605.08803; `of_maps`)

    steps: of the ODE (an even number; half as many are also run for `solver_error`), noise levels per replicate of the
    bound, steps of a trajectory, calls of a map; 64 by default, a table 16, a map its own. probes: of trace or bound.
    The draws for a sample depend only on (seed, its number in `index`), 0, 1, .. by default, not on the batch.
    trace, for the ODE: exact | rademacher | gaussian | deflated (see `trace`), or auto: exact for models of `sf.exact`
    and up to 128 numbers per sample, else rademacher. particles: K of the importance-weighted bound.
    sigma_min: the smallest sigma/alpha; by default the largest of exp(-6) data standard deviations, half a cell of
    integer data if cells are decoded, and the schedule's own.
    dequantisation of integer data, so that -log2 p bounds their code length: uniform adds u ~ U(-1/2, 1/2) to each
    element, discretised takes the probability of each cell (bounds only); auto is uniform for the ODE, else
    discretised. label=... as in `sample`. For guidance pass `sf.guide(model, scale)`, which is a model like any other.
    The default is the ODE; symbols and states that contain some have the bound, masks by exact counts; a latent model
    the bound alone, on request; an autoregressive model and a coupling flow their exact log p alone. Warns
    (`SfumatoWarning`) where an ODE is not to be trusted (`doubts`). Of sequences of several lengths (a list) it is
    log p(x | its length), and of samples with missing values (NaN) that of those that are there (`present`).
    """
    if isinstance(model, Autoregressive | CouplingFlow):
        return known(model, x, method, steps, cond)
    refuse_arguments(log_prob, model, cond)
    if latent_of(model) is not None or are_rows(model, x):
        return _of_its_own(model, x, method, index, seed, {"steps": steps, "probes": probes, "batch": batch, **cond})
    method = _method(model.process, method)
    steps, probes = whole("steps", _usual(model, method) if steps is None else steps), whole("probes", probes)
    batch, spec = None if batch is None else whole("batch", batch), getattr(model, "spec", None)
    how = _dequantisation(model.process, spec, dequantisation, method)
    x, numbers = _clean(model, x, index, how, seed)
    leaf, conditions, cells = first_leaf(x), resolve(model, cond, len(numbers)), _cells(spec, how)
    here = _here(x, spec, method)
    if here is not None:
        x, conditions = without_gaps(x, conditions)
    sigma_min = _least_noise(model, cells) if sigma_min is None else sigma_min
    measure = _measure(model.process, method, trace, cells, particles)
    args = {"steps": steps, "probes": probes, "seed": seed, "sigma_min": sigma_min}
    batches = _in_batches(model, x, numbers, conditions, here, measure, args, batch)
    return _reported(gather(batches, how), spec, leaf)


def _in_batches(
    model: Any, x: State, numbers: Tensor, cond: Conditions, here: Tensor | None, measure: Any, how: dict[str, Any],
    batch: int | None,
) -> list[Measured]:  # fmt: skip
    """The measurements of clean states x, batch by batch. here: where values are present, None if all are."""
    batches, device = [], getattr(model, "device", first_leaf(x).device)
    for part in torch.arange(len(numbers)).split(batch or min(_ROWS, max(1, _BATCH // first_leaf(x)[0].numel()))):
        some, own = map_state(lambda v: v.to(device), rows_of(x, part)), cond.rows(part).to(device)
        apart = None if here is None else Present(model, here[part].to(device), how["seed"], numbers[part])
        with evaluating(model):
            one = measure(apart or model, some, numbers[part], own, **how)
        batches.append(one if apart is None else apart.alone(one))
    return batches


def _here(x: Any, spec: Any, method: str) -> Tensor | None:
    """Where the values of normalised samples x are present, bool like x; None if all are."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not bool((gaps := x.isnan()).any()):
        return None
    require_ode(method, spec)
    return ~gaps


def _usual(model: Any, method: str) -> int:
    """The usual number of steps of a method."""
    own: int = getattr(model, "default_steps", 1)
    return own if method == "map" else DEFAULT_STEPS


def _cells(spec: Any, how: str | None) -> Cells | None:
    """The cells of whole numbers whose probabilities are taken, if they are."""
    return cells_of(spec) if how == "discretised" else None


def _least_noise(model: Any, cells: Cells | None) -> float | None:
    """The least sigma/alpha where cells are decoded: finer noise would encode decimals that they do not have."""
    return None if cells is None else max(float(cells.half.min()), data_scale(model) * math.exp(-NODE_LIMIT / 2))


def _of_its_own(model: Any, x: Any, method: str | None, index: Any, seed: int, how: dict[str, Any]) -> Any:
    """The likelihood of rows of a table, and the bound of a latent model, which has no other."""
    if are_rows(model, x):
        return row_log_prob(model, x, how["steps"], how["batch"], method)
    if method != "elbo":
        require_data_space(model, "log p(x)", "take the bound, method='elbo' (--method elbo)")
    rows = samples(x, "log_prob")
    numbers = torch.arange(len(rows)) if index is None else torch.as_tensor(index, dtype=torch.int64)

    def density(inner: Any, y: Tensor) -> Measured:
        found: Measured = log_prob(inner, y, "elbo", seed=seed, index=numbers, **how)
        return found

    return latent_bound(model, rows, density, seed, numbers).measured


def _measure(process: Any, method: str, trace: str, cells: Cells | None, particles: int) -> Any:
    return {
        "ode": partial(spectral.ode if isinstance(process, Spectral) else ode, trace=trace),
        "elbo": partial(elbo, cells=cells),
        "importance": partial(importance, cells=cells, particles=particles),
        "map": change_of_variables,
        "path": path_bound,
        "counts": count_bound,
        "order": orders.left_to_right,
        "orders": partial(orders.importance, particles=particles),
    }[method]


def _reported(result: Measured, spec: Any, z: Tensor) -> Measured:
    """The result for normalised samples z in user units, with a warning for each of its doubts."""
    for doubt in result.doubts():
        warnings.warn(doubt, SfumatoWarning, stacklevel=3)
    whole = spec is None or result.dequantisation in ("discretised", "symbols")
    return result if whole else result.shifted(spec.log_jacobian(z.cpu()))


def _method(process: Any, name: str | None) -> str:
    """The named method, or the default of the process; "path" is the bound of symbols, "counts" and "orders" those of
    masks alone."""
    if name is not None and name not in METHODS:
        raise SfumatoError(f"Unknown method {name!r} of log_prob: {suggest(name, METHODS)}")
    if isinstance(process, Masked):
        own = {None: "counts", "elbo": "counts", "importance": "orders", "order": "order"}
        if name in own:
            return own[name]
    elif name == "order":
        raise SfumatoError("The likelihood in an order is one of masked symbols: use another method.")
    require_flow(process)
    if isinstance(process, RectifiedFlow | Interpolant):
        process.prior_kl(torch.empty(0))  # says why there is none
    if isinstance(process, Gaussian):
        return name or "ode"
    if isinstance(process, Spectral) and name in (None, "ode", "map"):
        return name or "ode"
    if name not in (None, "elbo"):
        raise SfumatoError(f"The {type(process).__name__} process has no {name!r} likelihood: use method='elbo'.")
    return "path"


def _clean(
    model: Any, x: Any, index: Sequence[int] | Tensor | None, how: str | None, seed: int
) -> tuple[State, Tensor]:  # fmt: skip
    """Clean states in the model's units (real numbers as float64, dequantised if `how` is uniform), sample numbers."""
    spec, real = getattr(model, "spec", None), isinstance(model.process, Gaussian | Spectral)
    x = spec.together(x) if spec is not None and getattr(spec, "lengths", None) else x
    gaps = spec is not None and bool(spec.missing) and isinstance(model.process, Gaussian)
    x = x if isinstance(x, Mapping) else samples(x, "log_prob", gaps)
    if spec is not None:
        spec.check(x, whole=not gaps)
        _require_values(x, spec)
    count = len(first_leaf(x))
    numbers = torch.arange(count) if index is None else torch.as_tensor(index, dtype=torch.int64)
    if len(numbers) != count:
        raise SfumatoError(f"index must have one number for each of {count} samples, got {len(numbers)}.")
    x = x.to(torch.float64) if real else x.to(compute_dtype(model)) if isinstance(model.process, Embedded) else x
    if how == "uniform":  # rounding to the nearest integer inverts it
        x = x + noise.uniform(seed, numbers, x.shape[1:], noise.PROBE, _CELL, dtype=torch.float64) - 0.5
    x = x if spec is None else spec.normalise(x)
    with torch.no_grad():  # vectors may be learned
        return model.process.data(x.to(torch.float64) if real else x), numbers


def _require_values(x: Any, spec: Any) -> None:
    """Raise SfumatoError for a sample without any value."""
    if spec.missing and isinstance(x, Tensor) and x.is_floating_point():
        empty = x.isnan().flatten(1).all(1)
        if bool(empty.any()):
            raise SfumatoError(
                f"sample {int(empty.nonzero()[0])} has no value, so there is no likelihood: leave it out"
            )


def _dequantisation(process: Any, spec: Any, choice: str, method: str) -> str | None:
    """The dequantisation of integer data for a method, None for real-valued data."""
    if method in ("path", "counts", "order", "orders") and not isinstance(process, Spectral):
        return "symbols" if isinstance(process, Discrete | Embedded) else None
    known = ("auto", *DEQUANTISATIONS)
    if choice not in known:
        raise SfumatoError(f"The dequantisation cannot be {choice!r}: {suggest(choice, known)}")
    if spec is None or not spec.discrete:
        if choice != "auto":
            raise SfumatoError("Only discrete data (integer dtype) are dequantised: leave out dequantisation.")
        return None
    density = method in ("ode", "path", "map")  # of coefficients, whose cells are no products
    if choice == "discretised" and density:
        raise SfumatoError("This method gives a density, not probabilities of cells: use dequantisation='uniform'.")
    return choice if choice != "auto" else "uniform" if density else "discretised"
