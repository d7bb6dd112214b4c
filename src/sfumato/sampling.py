"""Sampling: prior -> plan -> belief -> user units."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato import noise
from sfumato.compose import Scale, Unrolled, guide
from sfumato.conditions import resolve
from sfumato.errors import SfumatoError
from sfumato.machine.kept import kept_memory
from sfumato.machine.parts import in_parts
from sfumato.machine.threads import Threads, threads
from sfumato.model import Model
from sfumato.plans import AnySolver, make_plan
from sfumato.solvers import Plan, State
from sfumato.solvers.brownian import along
from sfumato.state import State as AnyState
from sfumato.state import cat_states, first_leaf, map_state, numbers, rows_of
from sfumato.world import ALONE, World


def trajectory(
    model: Model,
    n: int | None = None,
    steps: int | None = None,
    solver: AnySolver | None = None,
    seed: int = 0,
    z: Tensor | None = None,
    index: Sequence[int] | Tensor | None = None,
    t_start: float = 1.0,
    t_stop: float = 0.0,
    guidance: Scale | None = None,
    interval: tuple[float, float] | None = None,
    brownian: bool = False,
    grad_calls: int | Literal["all"] | None = None,
    checkpoint: bool = True,
    **cond: Any,
) -> Iterator[State]:
    """The states of one batch on their way, in normalised units: State(z, t, belief); the last has no belief.

    z: the state to start from at t_start, or drawn from the prior. index: sample numbers, 0..n-1 by default; sample i
    of a seed starts from the same noise whatever the batch. guidance and its interval (logsnr) are `compose.guide`'s.
    A condition is given by its name, label="cat", temperature=300.0, in the user's spelling and units, one value or one
    a sample (`conditions.resolve`), or in cond={...} where its name is that of an argument. brownian=True draws the
    noise of a stochastic solver from one Brownian path of time a sample, so that with more steps a seed tends to one
    picture.
    Gradients flow where enabled; grad_calls and checkpoint are those of `sample`.
    """
    plan = make_plan(model, steps, solver, t_start, t_stop, guidance, interval)
    if index is None:
        count = n if n is not None else len(first_leaf(z)) if z is not None else 1
        index = torch.arange(count)
    index = torch.as_tensor(index, dtype=torch.int64)
    device = first_leaf(z).device if z is not None else getattr(model, "device", torch.device("cpu"))
    if z is None:
        if plan.times[0] != 1.0:
            raise SfumatoError(f"Sampling that starts at t = {plan.times[0]:g} needs a state z to start from.")
        shape = getattr(model, "shape", None)
        if shape is None:
            raise SfumatoError("The model does not know the shape of a sample: pass a start state z.")
        z = model.process.prior(numbers(noise.Noise(seed, index, noise.PRIOR), shape, device))
    if len(first_leaf(z)) != len(index):
        raise SfumatoError(f"{len(first_leaf(z))} start states for {len(index)} samples.")
    conditions = resolve(model, cond, len(index)).to(device)
    walker: Model = model if guidance is None else guide(model, guidance, interval)
    if grad_calls is not None:
        skip = _skipped(plan, grad_calls)
        walker, z = Unrolled(walker, skip, checkpoint), z.detach() if skip else z
    draws = along(plan, seed, index) if brownian else noise.Noise(seed, index, noise.STEP)
    yield from plan.run(walker, z, draws, **conditions)


def sample(
    model: Model,
    n: int = 1,
    steps: int | None = None,
    solver: AnySolver | None = None,
    seed: int = 0,
    z: Tensor | None = None,
    index: Sequence[int] | Tensor | None = None,
    t_start: float = 1.0,
    t_stop: float = 0.0,
    batch: int = 256,
    guidance: Scale | None = None,
    interval: tuple[float, float] | None = None,
    normalised: bool = False,
    brownian: bool = False,
    grad_calls: int | Literal["all"] | None = None,
    checkpoint: bool = True,
    world: World = ALONE,
    **cond: Any,
) -> Tensor:
    """n samples, (n, *shape), in user units and dtype where the model carries a data spec.

    Runs in batches of `batch`, halved where memory does not suffice; sample i of a seed does not depend on them.
    normalised=True keeps the model's units, which is also what stopping at t_stop > 0 returns (a noisy state has no
    user units). See `trajectory` for the rest.

    Without grad_calls nothing is differentiated. grad_calls="all" gives gradients d(samples)/d(weights, z, ..) of the
    whole walk, grad_calls=K those of the last K calls of the denoiser, what came before being a constant (AlignProp,
    2310.03739; DRaFT-K, 2309.17400). checkpoint=True computes each call anew on the way back instead of keeping it.
    Samples with gradients are not rounded to whole numbers nor held to bounds.

    world: processes that share the samples (`sf.joined`), each of which calls this alike and gets them all: to rounding
    they are those of one.
    """
    if world.size > 1 and grad_calls is not None:
        raise SfumatoError("Samples of several processes have no gradients: leave out world or grad_calls.")
    n = next((len(first_leaf(given)) for given in (index, z) if given is not None), n)
    if n < 1 or batch < 1:
        raise SfumatoError(f"The number of samples and the batch must be at least 1, got {n} and {batch}.")
    samples = torch.arange(n) if index is None else torch.as_tensor(index)
    conditions = resolve(model, cond, n)
    plan = make_plan(model, steps, solver, t_start, t_stop, guidance, interval)
    spec = None if normalised or plan.stop > 0 else getattr(model, "spec", None)
    finish = _units(model, spec, grad_calls is not None)

    def one(part: Tensor) -> Tensor:
        start, chosen = None if z is None else rows_of(z, part), conditions.rows(part)
        walk = trajectory(
            model, None, None, plan, seed, start, samples[part], t_start, t_stop, guidance, interval,
            brownian, grad_calls, checkpoint, cond=chosen,
        )  # fmt: skip
        return finish(map_state(lambda leaf: leaf.cpu(), _end(walk, follower)))

    def own(rows: Tensor) -> Tensor:
        most = math.ceil(len(rows) / math.ceil(len(rows) / batch))
        return cat_states(in_parts(one, rows, most, halve=world.size == 1))  # shards of a network are called in step

    keeping = kept_memory(getattr(model, "device", torch.device("cpu")))
    with torch.set_grad_enabled(grad_calls is not None), keeping, threads() as follower:
        return world.mapped(own, torch.arange(n))


ARGUMENTS = inspect.signature(sample).parameters


def apart(names: Iterable[str]) -> list[str]:
    """What is to be said of conditions whose names are arguments of `sample`."""
    return [
        f"The condition {name!r} has an argument's name: give it as cond={{{name!r}: ...}}, or --condition {name}=..."
        for name in names
        if name in ARGUMENTS
    ]


def _end(walk: Iterator[State], follower: Threads) -> Tensor:
    """The last state; those on the way are not kept."""
    for state in walk:
        last = state.z
        follower.follow()
    return last


def _skipped(plan: Plan, grad_calls: int | str) -> int:
    """How many calls from the start of a plan are constants."""
    if grad_calls == "all":
        return 0
    if not isinstance(grad_calls, int) or grad_calls < 1:
        raise SfumatoError(f"grad_calls must be a number of calls, at least 1, or 'all', not {grad_calls!r}.")
    return max(0, plan.calls - grad_calls)


def _units(model: Any, spec: Any, smooth: bool) -> Callable[[AnyState], AnyState]:
    """From the model's units to the user's; `smooth` without rounding and bounds, which have no gradient."""
    if spec is None:
        return lambda z: z
    if smooth:
        return lambda z: spec.normaliser.denormalise(z).to(z.dtype)
    return lambda z: spec.denormalise(model.process.table(z))
