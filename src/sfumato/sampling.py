"""Sampling: prior -> plan -> belief -> user units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.compose import NULL, guide
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.solvers import Plan, Solver, State, default

DEFAULT_STEPS = 20


def make_plan(
    model: Model, steps: int | None, solver: Solver | Plan | None, t_start: float = 1.0, t_stop: float = 0.0
) -> Plan:
    """The plan that `sample` runs: a given Plan as it is, a stored one of this many steps, or a solver's."""
    if isinstance(solver, Plan):
        if steps is not None and steps != solver.steps:
            raise SfumatoError(f"The plan has {solver.steps} steps and cannot run with {steps}: leave steps out.")
        return solver
    steps = DEFAULT_STEPS if steps is None else steps
    return (solver or default()).plan(model.process.schedule, steps, t_start, t_stop)


def _conditions(model: Model, cond: dict[str, Any], n: int) -> dict[str, Tensor]:
    """Labels as int64 (n,): names or numbers as a user spells them, or a tensor of indices; -1 is the null class."""
    out = {}
    for name, value in cond.items():
        if value is None:
            continue
        if isinstance(value, Tensor):
            labels = _checked(model, value.reshape(-1))
        else:
            many = not isinstance(value, str) and (isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0)
            labels = torch.tensor([_index_of(model, v) for v in (value if many else [value])])
        if len(labels) not in (1, n):
            raise SfumatoError(
                f"The condition {name!r} has {len(labels)} values for {n} samples: give one, or one each."
            )
        out[name] = labels.expand(n).clone()
    return out


def _index_of(model: Model, value: Any) -> int:
    spec = getattr(model, "spec", None)
    return int(value) if spec is None or value == NULL else spec.class_index(value)


def _checked(model: Model, labels: Tensor) -> Tensor:
    spec = getattr(model, "spec", None)
    if spec is not None and bool(((labels < NULL) | (labels >= len(spec.classes))).any()):
        raise SfumatoError(f"A tensor of labels holds indices from {NULL} (none) to {len(spec.classes) - 1}.")
    return labels.long()


def trajectory(
    model: Model,
    n: int | None = None,
    steps: int | None = None,
    solver: Solver | Plan | None = None,
    seed: int = 0,
    z: Tensor | None = None,
    index: Sequence[int] | Tensor | None = None,
    t_start: float = 1.0,
    t_stop: float = 0.0,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    **cond: Any,
) -> Iterator[State]:
    """The states of one batch on their way, in normalised units: State(z, t, belief); the last has no belief.

    z: the state to start from at t_start, or drawn from the prior. index: sample numbers, 0..n-1 by default; sample i
    of a seed starts from the same noise whatever the batch. guidance and its interval (logsnr) are `compose.guide`'s;
    label=... takes names or numbers as a user spells them, or a tensor of indices. Gradients flow where enabled.
    """
    plan = make_plan(model, steps, solver, t_start, t_stop)
    if index is None:
        count = n if n is not None else len(z) if z is not None else 1
        index = torch.arange(count)
    index = torch.as_tensor(index, dtype=torch.int64)
    device = z.device if z is not None else getattr(model, "device", torch.device("cpu"))
    if z is None:
        if plan.times[0] != 1.0:
            raise SfumatoError(f"Sampling that starts at t = {plan.times[0]:g} needs a state z to start from.")
        shape = getattr(model, "shape", None)
        if shape is None:
            raise SfumatoError("The model does not know the shape of a sample: pass a start state z.")
        z = model.process.prior(noise.normal(seed, index, shape, noise.PRIOR, device=device))
    if len(z) != len(index):
        raise SfumatoError(f"{len(z)} start states for {len(index)} samples.")
    labels = {k: v.to(device) for k, v in _conditions(model, cond, len(index)).items()}
    walker: Model = model if guidance is None else guide(model, guidance, interval)

    def fresh(call: int, like: Tensor) -> Tensor:
        return noise.normal(seed, index, tuple(like.shape[1:]), noise.STEP, call, like.device, like.dtype)

    yield from plan.run(walker, z, fresh, **labels)


def sample(
    model: Model,
    n: int = 1,
    steps: int | None = None,
    solver: Solver | Plan | None = None,
    seed: int = 0,
    z: Tensor | None = None,
    index: Sequence[int] | Tensor | None = None,
    t_start: float = 1.0,
    t_stop: float = 0.0,
    batch: int = 256,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    normalised: bool = False,
    **cond: Any,
) -> Tensor:
    """n samples, (n, *shape), in user units and dtype where the model carries a data spec.

    Runs in batches of `batch`; sample i of a seed does not depend on them. normalised=True keeps the model's units,
    which is also what stopping at t_stop > 0 returns (a noisy state has no user units). See `trajectory` for the rest.
    """
    if z is not None:
        n = len(z)
    if index is not None:
        n = len(index)
    if n < 1 or batch < 1:
        raise SfumatoError(f"The number of samples and the batch must be at least 1, got {n} and {batch}.")
    numbers = torch.arange(n) if index is None else torch.as_tensor(index)
    labels = _conditions(model, cond, n)
    plan = make_plan(model, steps, solver, t_start, t_stop)
    spec = None if normalised or plan.stop > 0 else getattr(model, "spec", None)
    out = []
    with torch.no_grad():
        for part in torch.arange(n).split(math.ceil(n / math.ceil(n / batch))):
            start = None if z is None else z[part]
            chosen = {k: v[part] for k, v in labels.items()}
            walk = trajectory(
                model, None, None, plan, seed, start, numbers[part], t_start, t_stop, guidance, interval, **chosen
            )
            *_, last = walk
            out.append(last.z.cpu() if spec is None else spec.denormalise(last.z.cpu()))
    return torch.cat(out)
