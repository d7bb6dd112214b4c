"""Sampling: prior -> plan -> belief -> user units."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import machine
from sfumato.belief import Beliefs, Codes
from sfumato.cascade import Staged
from sfumato.columns import Known, weights_of
from sfumato.conditions import MISSING, Conditions, Given, declared, resolve, unfolded
from sfumato.coupling_flow import CouplingFlow
from sfumato.data import frames
from sfumato.data.lengths import Lengths, beyond
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError, SfumatoWarning, whole
from sfumato.guidance import SCALE
from sfumato.machine import default_cpu, in_parts
from sfumato.model import Model, usable
from sfumato.noise import PRIOR, STEP, Noise
from sfumato.process import Spectral, given
from sfumato.sample_checks import SampleCheck
from sfumato.solver_selection import AnySolver, make_plan
from sfumato.solvers import Plan, State
from sfumato.solvers.brownian import along
from sfumato.state import Shape, cat_states, first_leaf, map_state, numbered, numbers, rows_of

STATELESS = (Staged, CouplingFlow)  # models that draw samples without states to walk along
BATCH, ROWS, CACHED = 256, 4096, 1024  # samples at once; rows of a table; those whose activations a CPU's cache holds
TRIES, _POOL, _FULL = 32, 8, 256  # of a row with weights; batches whose rejected rows are drawn together; rows at least
_TRY = 1 << 48  # between the numbers of the tries of a row
_NEARLY_NOISE = 1 - 1e-4  # where rows of a table with known symbols start: at t = 1 no symbol is known


def trajectory(
    model: Model,
    n: int | None = None,
    steps: int | None = None,
    solver: AnySolver | None = None,
    seed: int = 0,
    z: Any = None,
    index: Sequence[int] | Tensor | None = None,
    t_start: float = 1.0,
    t_stop: float = 0.0,
    **cond: Any,
) -> Iterator[State]:
    """Yield the states of one batch during sampling, State(z, t, belief) in normalised units; the last has no belief.

    solver: a solver, its name ("heun", "dpm++2m"), or a plan. z: the start state at t_start, by default drawn from the
    prior. index: sample numbers, or a mask, 0..n-1 by default; sample i of a seed starts from the same noise in any
    batch.
    Conditions are keyword arguments, label="cat", temperature=300.0, in the user's labels and units, one value or one
    per sample (`conditions.resolve`); cond={...} passes those that share their name with an argument. Gradients flow if
    enabled.
    """
    refuse_arguments(trajectory, model, cond)
    seed = whole("seed", seed, least=None)
    if index is None:
        count = n if n is not None else len(first_leaf(z)) if z is not None else 1
        index = torch.arange(whole("n, the number of samples,", count), device="cpu")
    index = numbered(index, of="numbers of samples")
    device = getattr(model, "device", torch.device("cpu")) if z is None else first_leaf(z).device
    with default_cpu():
        plan = make_plan(model, steps, solver, t_start, t_stop)
        conditions = resolve(model, cond, len(index)).to(device)
        z = _start(model, plan, seed, index, conditions, device) if z is None else z
    if len(first_leaf(z)) != len(index):
        raise SfumatoError(f"z has {len(first_leaf(z))} start states for {len(index)} samples: pass one per sample.")
    draws = along(plan, seed, index) if plan.brownian else Noise(seed, index, STEP)
    walk = plan.run(model, z, draws, **conditions)
    while True:
        with default_cpu():  # while it computes, but not while the caller has the state
            state = next(walk, None)
        if state is None:
            return
        yield state


def sample(
    model: Model, n: int = 1, steps: int | None = None, solver: AnySolver | None = None, seed: int = 0, z: Any = None,
    index: Sequence[int] | Tensor | None = None, t_start: float = 1.0, t_stop: float = 0.0, batch: int | None = None,
    normalised: bool = False, given: Mapping[str, Any] | None = None, world: World = ALONE, stages: bool = False,
    length: Any = None, **cond: Any,
) -> Any:  # fmt: skip
    """n samples, (n, *shape), in user units and dtype if the model has a data spec.

    Runs in batches of `batch`, 256 or for rows of a table 1,024 (4,096 on a GPU), halved if memory runs out; sample i
    of a seed does not depend on the batches. Of a table they are a data frame of pandas, or of polars if the training
    data were, else a dict of arrays; given: its columns that are known, {"cut": "Ideal", "carat": 1.0}, None for an
    empty cell. normalised=True keeps the model's units, as does t_stop > 0 (noisy states have no user units). Other
    arguments: see `trajectory`; guidance: `sf.guide`; samples that depend little on the steps: `solvers.Brownian`.
    Whole rows of a table that start from noise are drawn again until its weights accept them (`calibrate`).
    Of sequences of several lengths they are a list of arrays, as long as `length` says (one number or one each) or as
    drawn from those of the training (normalised: NaN beyond). Only those of `sf.differentiable(model)` have gradients,
    and are neither rounded nor clipped. stages: return those of all stages of a `Cascade` or `UnCLIP`, whose first
    low_resolution= or embedding= replaces. world=sf.joined(): share the work between processes, which must all make
    this call and all get every sample, equal to those of a single process up to rounding.
    Warns (`SfumatoWarning`) if samples hold NaN, lie far outside the training data, or are all the same.
    """
    if isinstance(model, STATELESS):
        how = {"steps": steps, "solver": solver, "batch": batch, "normalised": normalised, "world": world}
        return _without_states(model, n, seed, index, cond, how, stages, (given, z, 1 - t_start, t_stop, length))
    (n, index), table = _asked(n, index, z), getattr(getattr(model, "spec", None), "table", None)
    length, cond = _of_condition(model, length, cond)
    batch = (BATCH if table is None else rows_at_once(model)) if batch is None else whole("batch", batch)
    refuse_arguments(sample, model, cond)
    affordable(n, getattr(model, "shape", None))
    with default_cpu():
        which = torch.arange(n) if index is None else index
        model, z, t_start = _around(model, given, n, seed, which, z, t_start)
        plan = make_plan(model, steps, solver, t_start, t_stop)
        conditions, ends = _ended(model, resolve(model, cond, n), length, seed, which)
    smooth, seen = _smooth(model, world), SampleCheck(getattr(model, "spec", None))
    finish, clean = _units(model, smooth, normalised or plan.stop > 0)

    def one(part: Tensor, index: Tensor) -> Any:
        start, own = None if z is None else rows_of(z, part), model.rows(part) if isinstance(model, Known) else model
        walk = trajectory(own, None, None, plan, seed, start, index, t_start, t_stop, cond=conditions.rows(part))
        end = _end(walk, Noise(seed, index, STEP, plan.calls), None if ends is None else ends.beyond[part])
        seen.look(clean(end))
        return finish(end)

    drawn = partial(_in_batches, one, batch, world)
    if weights_of(model) is not None and z is None and plan.stop == 0 and not smooth:
        drawn = partial(_accepted, drawn, model, seed, batch * world.size)
    with default_cpu(), torch.set_grad_enabled(smooth):
        samples = drawn(torch.arange(n), which)
    if plan.stop == 0:
        seen.warn()
    return samples if finish is clean and ends is None else _handed_over(samples, table, ends, finish is clean)


def rows_at_once(model: Any) -> int:
    """The usual number of rows of a table that are drawn together."""
    return CACHED if getattr(model, "device", torch.device("cpu")).type == "cpu" else ROWS


def in_order(model: Any, n: int, batch: int) -> tuple[Tensor, ...]:
    """The places 0 .. n - 1 in parts that `sample` draws one after the other, in batches of at most `batch` rows."""
    most = batch * (1 if weights_of(model) is None else _POOL)
    return torch.arange(n).split(math.ceil(n / math.ceil(n / most)))


def _accepted(
    drawn: Callable[[Tensor, Tensor], Any], model: Any, seed: int, batch: int, places: Tensor, which: Tensor
) -> Any:  # fmt: skip
    """Rows of a table that are accepted by their weights, of those that `drawn` makes at places of numbers.

    Row i of a seed is the first of its tries that is accepted, or the last; try k is the sample of the number
    i + 2^48 k, so that it depends on no other row.
    """

    def good(rows: Any, index: Tensor) -> Tensor:
        x = rows if isinstance(rows, Tensor) else model.spec.denormalise(model.process.table(rows))
        u = Noise(seed, index, PRIOR).fold("accepted").uniform(dtype=torch.float64)
        return model.spec.weights.accepts(model.spec.table, x, u)

    made, never = [], 0
    for part in in_order(model, len(places), batch):
        rows, tried = drawn(places[part], which[part]), 1
        left = torch.nonzero(~good(rows, which[part]))[:, 0]
        while len(left):
            several = min(max(1, _FULL // len(left)), TRIES - tried)
            index = (which[part[left], None] + _TRY * torch.arange(tried, tried + several)).flatten()
            found = drawn(places[part[left]].repeat_interleave(several), index)
            taken = good(found, index).view(-1, several)
            if tried + several == TRIES:
                never += int((~taken.any(1)).sum())
                taken[:, -1] = True
            some, first = taken.any(1), taken.int().argmax(1) + several * torch.arange(len(left))
            rows = map_state(partial(_put, left[some]), rows, rows_of(found, first[some]))
            left, tried = left[~some], tried + several
        made.append(rows)
    if never:
        words = f"{never:,} of {len(places):,} rows were accepted by none of their {TRIES} tries and are as last drawn:"
        warnings.warn(
            SfumatoWarning(f"{words} the model is far from its training rows, train it longer."), stacklevel=2
        )
    return cat_states(made)


def _put(at: Tensor, into: Tensor, rows: Tensor) -> Tensor:
    """`into` with these rows at the places `at`."""
    return into.index_copy(0, at, rows)


def _in_batches(
    one: Callable[[Tensor, Tensor], Any], batch: int, world: World, places: Tensor, index: Tensor
) -> Any:  # fmt: skip
    """The samples of the numbers `index` at these places, each process's share in batches of one size, at most `batch`;
    sharded networks must make equal calls."""

    def some(rows: Tensor) -> Any:
        size = math.ceil(len(rows) / math.ceil(len(rows) / batch))
        return cat_states(in_parts(lambda own: one(places[own], index[own]), rows, size, halve=world.size == 1))

    return world.parallel_map(some, torch.arange(len(places)))


def _handed_over(samples: Any, table: Any, ends: _Ends | None, normalised: bool) -> Any:
    """Rows of a table as a frame, sequences as a list of arrays, or normalised NaN beyond their ends."""
    if ends is None:
        return samples if table is None else frames.frame(table, samples)
    return samples.masked_fill(ends.beyond, math.nan) if normalised else ends.law.cut(samples, ends.steps)


class _Ends(NamedTuple):
    """The law of the lengths of sequences; those of n samples, int64 (n,); what lies beyond them, bool (n, C, L)."""

    law: Lengths
    steps: Tensor
    beyond: Tensor


def _of_condition(model: Any, length: Any, cond: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the length, the conditions), of which one may be called length where samples have one length. The scale of a
    student that hears a range of guidance is 1 unless it is given."""
    known = declared(model) or {}
    if SCALE in known and getattr(model, "two_times", False) and SCALE not in unfolded(cond):
        cond = {**cond, SCALE: 1.0}
    if "length" not in known or getattr(model.spec, "lengths", None) is not None:
        return length, cond
    return None, cond if length is None else {**cond, "length": length}


def _ended(
    model: Any, cond: Conditions, length: Any, seed: int, index: Tensor
) -> tuple[Conditions, _Ends | None]:  # fmt: skip
    """(the conditions with the mask of what lies beyond the ends, these ends) of sequences of several lengths; of other
    models (the conditions, None). length: of all or of each; by default drawn, row i of a seed alike in any batch."""
    spec = getattr(model, "spec", None)
    law = getattr(spec, "lengths", None)
    if spec is None or law is None:
        if length is not None:
            raise SfumatoError("The model's samples have one length: leave length out (of text: sf.sample_text).")
        return cond, None
    u = Noise(seed, index, PRIOR).fold("length").uniform()
    steps = law.drawn(u) if length is None else law.given(length, len(index), spec.shape[1])
    gaps = beyond(steps, spec.shape)
    mask = Given(gaps, torch.ones(len(steps), dtype=torch.bool))
    return Conditions({**{name: cond.given(name) for name in cond}, MISSING: mask}), _Ends(law, steps, gaps.bool())


def _smooth(model: Any, world: World) -> bool:
    """Whether samples carry gradients."""
    smooth = getattr(model, "grad_calls", None) is not None
    if world.size > 1 and smooth:
        raise SfumatoError("Samples of several processes have no gradients: leave out world, or use the plain model.")
    return smooth


def _without_states(
    model: Staged | CouplingFlow, n: int, seed: int, index: Any, cond: Mapping[str, Any], how: dict[str, Any],
    stages: bool, no: tuple[Any, ...],
) -> Any:  # fmt: skip
    """The samples of a coupling flow, of a model of stages, or of each of them. no: arguments that they do not take."""
    if isinstance(model, CouplingFlow):
        return _of_coupling_flow(model, n, seed, index, cond, how, no)
    if any(value is not None and value != 0 for value in no):
        raise SfumatoError("Stages start from noise and end at data: leave out given, z and t.")
    n, index = _asked(n, index, None)
    found = _of_stages(model, n, seed, torch.arange(n) if index is None else index, cond, how)
    return found if stages else found[-1]


def _of_coupling_flow(
    model: CouplingFlow, n: int, seed: int, index: Any, cond: Mapping[str, Any], how: dict[str, Any],
    no: tuple[Any, ...],
) -> Any:  # fmt: skip
    """The samples of a coupling flow, each by one call."""
    steps, solver, batch, normalised, world = how.values()
    if any(value is not None and value != 0 for value in (steps, solver, *no)):
        raise SfumatoError("A coupling flow goes from noise to data in one call: leave steps, solver, given, z, t out.")
    n, index = _asked(n, index, None)
    batch = BATCH if batch is None else whole("batch", batch)
    affordable(n, model.shape)
    which, seen = torch.arange(n) if index is None else index, SampleCheck(model.spec)
    conditions = resolve(model, cond, n)

    def one(rows: Tensor) -> Tensor:
        x = model.sample(seed=seed, index=which[rows], normalised=True, cond=conditions.rows(rows))
        seen.look(x)
        return x if normalised or model.spec is None else model.spec.denormalise(x)

    samples = world.parallel_map(lambda rows: torch.cat(in_parts(one, rows, batch)), torch.arange(n))
    seen.warn()
    return samples


def _of_stages(
    model: Any, n: int, seed: int, index: Tensor, cond: Mapping[str, Any], how: dict[str, Any], stop: float = 0.0
) -> list[Any]:
    """The samples of the stages, each of which is told the conditions that it knows; of those before one that is given
    none. stop: the time at which the last ends; states of a time above 0 are those of its process."""
    if stop and isinstance(how["solver"], Plan):
        raise SfumatoError("A truncated stage ends elsewhere than a plan does: give a solver, by name, and steps.")
    if not isinstance(model, Staged):
        return [sample(model, n, seed=seed, index=index, t_stop=stop, cond=unfolded(cond), **how)]
    own, every, rest = declared(model.last), unfolded(cond), _known_before(model.first)
    before, given = [], _given(model, every.get(model.told), n)
    if given is not None:  # what the first alone knows is of no use
        idle = {model.told} | (set() if own is None else (rest or set()) - set(own))
        mine = {name: value for name, value in every.items() if name not in idle}
    else:
        mine = {name: value for name, value in every.items() if own is None or name in own}
        known = {name: v for name, v in every.items() if own is None or rest is None or name in rest or name not in own}
        before = _of_stages(model.first, n, seed, index, known, how, model.stop)
    draws = Noise(seed, index, PRIOR).fold("upscaler")
    if given is None and model.stop:
        told = model.unfinished(before[-1], draws)
    else:
        told = model.conditions(*((before[-1], draws, how["normalised"]) if given is None else (given, draws)))
    last = sample(model.last, n, seed=draws.seed, index=index, t_stop=stop, cond={**mine, **told}, **how)
    return [*before, last]


def _given(model: Staged, value: Any, n: int) -> Tensor | None:
    """What the user gives in the place of what the first model of two would draw, (n, ..); None if it has to draw.

    A small picture enters a cascade of several stages where its size is that of the one before.
    """
    if value is None:
        return None
    value = torch.as_tensor(value)
    shape = getattr(model.first, "shape", None)
    value = value[None] if shape is not None and value.ndim == len(shape) else value
    if shape is not None and tuple(value.shape[1:]) != tuple(shape):
        if isinstance(model.first, Staged) and model.first.told == model.told:
            return None
        sides = ", ".join(map(str, shape))
        raise SfumatoError(f"{model.told} is of shape (1 or {n}, {sides}), not {tuple(value.shape)}.")
    if len(value) not in (1, n):
        raise SfumatoError(f"{model.told} has {len(value)} rows for {n} samples: give one, or one for each.")
    return value.expand(n, *value.shape[1:])


def plans(model: Any, steps: int | None = None, solver: AnySolver | None = None) -> list[Plan]:
    """The plan by which `sample` runs each stage, of a model without stages its one; a coupling flow has none."""
    if isinstance(model, CouplingFlow):
        return []
    if not isinstance(model, Staged):
        return [make_plan(model, steps, solver)]
    ends = [*_ends(model), 0.0]
    return [make_plan(stage, steps, solver, t_stop=end) for stage, end in zip(model.stages, ends, strict=True)]


def _ends(model: Staged) -> list[float]:
    """The times at which the stages before the last end."""
    return [*(_ends(model.first) if isinstance(model.first, Staged) else ()), model.stop]


def _known_before(model: Any) -> set[str] | None:
    """The conditions that any stage knows; None if one takes whatever it is given."""
    if isinstance(model, Staged):
        parts = [_known_before(model.first), _known_before(model.last)]
        return None if None in parts else set().union(*(part for part in parts if part is not None))
    known = declared(model)
    return None if known is None else set(known)


def _asked(n: int, index: Sequence[int] | Tensor | None, z: Any) -> tuple[int, Tensor | None]:
    """(how many samples, which: those of `index`, or else as many as start states, or else n)."""
    index = None if index is None else numbered(index, of="numbers of samples")
    n = next((len(first_leaf(rows)) for rows in (index, z) if rows is not None), n)
    return whole("n, the number of samples,", n), index


def affordable(n: int, shape: Shape | None) -> None:
    """Raise SfumatoError unless n samples of this shape, as float32 with their numbers, fit into the free memory."""
    parts = shape.values() if isinstance(shape, Mapping) else [shape or ()]
    needed = n * (8 + 4 * sum(map(math.prod, parts)))
    instead = "draw them in parts, by their numbers (index=range(first, last), or --first on the command line)."
    machine.affordable(needed, f"{n:,} samples", instead)


ARGUMENTS = tuple(inspect.signature(sample).parameters)


def apart(names: Iterable[str]) -> list[str]:
    """A note for each condition that shares its name with an argument of `sample`."""
    return [
        f"The condition {name!r} has an argument's name: pass it as cond={{{name!r}: ...}}, or --condition {name}=..."
        for name in names
        if name in ARGUMENTS
    ]


def refuse_arguments(function: Callable[..., Any], model: Model, cond: dict[str, Any]) -> None:
    """Raise SfumatoError for keywords that are not conditions of the model but misspelt arguments, or guidance."""
    known, arguments = declared(usable(model, function.__name__)) or {}, inspect.signature(function).parameters
    for name in [name for name in cond if name not in known and name not in arguments]:
        if name in ("guidance", "interval"):
            raise SfumatoError(
                f"{function.__name__} takes no {name}: pass the guided model, sf.guide(model, scale, interval)."
            )
        near = get_close_matches(name, arguments, n=1, cutoff=0.8)
        if near:
            raise SfumatoError(f"{function.__name__} has no argument {name!r}: did you mean {near[0]!r}?")


def _start(model: Model, plan: Plan, seed: int, index: Tensor, cond: Conditions, device: torch.device) -> Any:
    """Start states drawn from the prior."""
    if plan.times[0] != 1.0:
        raise SfumatoError(f"Sampling that starts at t = {plan.times[0]:g} needs a start state: pass z.")
    shape = getattr(model, "shape", None)
    if shape is None:
        raise SfumatoError("The model does not define the shape of a sample: pass a start state z.")
    shape = model.process.state_shape(shape)
    return given(model.process, cond).prior(numbers(Noise(seed, index, PRIOR), shape, device))


def known_columns(model: Any, given: Mapping[str, Any], n: int, seed: int) -> Known:
    """The model with the columns `given` of its table known in all n rows."""
    table = getattr(getattr(model, "spec", None), "table", None)
    if table is None:
        raise SfumatoError("given names columns, and this model is of no table: pass conditions by their names.")
    said = {name: table.field(name).column(value, n) for name, value in given.items()}
    return Known(model, *table.encode_some(said, seed))


def _around(
    model: Any, given: Mapping[str, Any] | None, n: int, seed: int, index: Tensor, z: Any, t_start: float
) -> tuple[Any, Any, float]:  # fmt: skip
    """(the model, start states, their time): as asked for, or of a `Known` noise around what is known."""
    model = known_columns(model, given, n, seed) if given else model
    if not isinstance(model, Known):
        return model, z, t_start
    if z is not None or t_start != 1:
        raise SfumatoError("What is known of a table sets the start states: leave out z and t_start.")
    device = getattr(model, "device", torch.device("cpu"))
    noisy = model.process.prior(numbers(Noise(seed, index, PRIOR), dict(model.process.shapes), device))
    return model, model.start(noisy), _NEARLY_NOISE


def _end(walk: Iterator[State], noise: Noise, rest: Tensor | None = None) -> Any:
    """The last state of a walk, on the CPU; earlier ones are not stored. Symbols that are vectors are drawn, by
    `noise`, from the belief of the last call. rest: what lies beyond the end of a sequence, which becomes 0."""
    belief = None
    for state in walk:
        belief = state.belief if isinstance(state.belief, Codes | Beliefs) else belief
    end = map_state(lambda leaf: leaf.cpu(), _drawn(belief, state.z, noise) if state.t == 0 else state.z)
    return end if rest is None else end.masked_fill(rest, 0.0)


def _drawn(belief: Any, z: Any, noise: Noise) -> Any:
    """The last state, with symbols in the place of their vectors."""
    if isinstance(belief, Beliefs):
        return {name: _drawn(belief[name], part, noise.fold(name)) for name, part in z.items()}
    return belief.drawn(noise) if isinstance(belief, Codes) else z


def _units(model: Model, smooth: bool, normalised: bool) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """(the map of last states to what `sample` returns, to samples in the model's units, which are those of data).

    smooth skips rounding and clipping, which have no gradient.
    """
    process: Any = model.process
    spec, clean = getattr(model, "spec", None), process.table if isinstance(process, Spectral) else _same
    if spec is None or normalised:
        return clean, clean
    if smooth:
        return lambda z: spec.normaliser.denormalise(process.table(z)).to(first_leaf(z).dtype), clean
    return lambda z: spec.denormalise(process.table(z)), clean


def _same(z: Any) -> Any:
    return z
