"""A plan is a compiled solver: the times at which the denoiser is called, and how states, beliefs and noise combine.

    z_{k+1} = sum_j a_kj z_j + sum_j b_kj x_j + c_k xi_k,   x_k = E[x | z_k] at time t_k,   k = 0..calls-1

or a draw from the belief, or a step that calls the model itself (`lines`). Every solver of this package compiles once
to such a `Plan`, in float64; `Plan.start` executes it (`walk.Walk`), the only sampling loop.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import schema
from sfumato.conditions import require_encoded
from sfumato.errors import SfumatoError, counted
from sfumato.files import write_text
from sfumato.model import Model
from sfumato.process import Additive, Product
from sfumato.registry import register
from sfumato.schedule import Schedule
from sfumato.solvers.arithmetic import Program, compiled
from sfumato.solvers.draws import AnyNoise
from sfumato.solvers.grids import MOST_STEPS
from sfumato.solvers.lines import AnyLine, Corrector, Linear, broadcasts, from_json, in_words, line_in_json, to_json
from sfumato.solvers.walk import Walk


def schedule_of(process: Any) -> Schedule | None:
    """The clock of a process with states alpha x + sigma eps (or a schedule itself); None for other processes."""
    if isinstance(process, Schedule):
        return process
    if isinstance(process, Product):
        first, *others = map(schedule_of, process.processes.values())
        return first if all(other == first for other in others) else None
    return process.clock if isinstance(process, Additive) else None


class State(NamedTuple):
    """One point of a trajectory: the state, its time, and the belief of the call there (None at the end)."""

    z: Any  # a tensor (B, ...), or a dict of them
    t: float
    belief: Any


class Due(NamedTuple):
    """One call of a walk: its line, the times t -> s, whether the line is `Linear`, and whether such a line draws."""

    line: Any
    t: float
    s: float
    plain: bool
    noisy: bool


_SHARE = schema.number(0, 1)
_PAIR = schema.listed(schema.number(), 2, 2)
_ERROR = schema.either(
    "a distance (rms) or nats", schema.fields({"rms": schema.number(0)}), schema.fields({"nats": schema.number(0)})
)
_TUNED = schema.fields(
    {
        "guidance": schema.either(
            "a number, one per condition or words", schema.number(), schema.mapping(schema.number()), schema.text
        ),
        "interval": schema.optional(schema.listed(schema.number(-math.inf, math.inf), 2, 2)),
        "untuned": _ERROR, "error": _ERROR,
    }
)  # fmt: skip
SCHEMA = schema.fields(
    {
        "name": schema.text, "steps": schema.whole(1, MOST_STEPS), "times": schema.listed(_SHARE, 1, MOST_STEPS),
        "stop": _SHARE, "path": schema.listed(_PAIR), "lines": schema.listed(line_in_json),
        "order": schema.whole(0, 99),
    },
    {"tuned": schema.optional(_TUNED), "brownian": schema.flag},
    rest=None,
)  # fmt: skip
_LARGEST = 1 << 30  # bytes of a plan's file; coefficients may be one per element of a sample


@register("part", "Plan")
@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A compiled solver.

    times: of the calls, (calls,); stop: the time at the end, 0 meaning the clean signal (alpha = 1, sigma = 0).
    path: (alpha, sigma) at the calls and at the end, (calls + 1, 2), to check that a model has the schedule the plan
    was built for; empty if the lines hold for any schedule.
    tuned: a JSON-able record of the fit, for a plan that was fitted to a model (`tune`), else None.
    brownian: whether `sample` draws the noise from one Brownian path per sample (`solvers.Brownian`).
    """

    name: str
    steps: int
    times: tuple[float, ...]
    stop: float
    path: tuple[tuple[float, float], ...]
    lines: tuple[AnyLine, ...]
    order: int = 1
    tuned: dict[str, Any] | None = None
    brownian: bool = False

    @property
    def calls(self) -> int:
        """The number of calls of the denoiser."""
        return len(self.times)

    @property
    def spent(self) -> int:
        """The number of denoiser calls in the last walk: `calls`, plus the extra calls of `Corrector` lines."""
        return sum(line.calls if isinstance(line, Corrector) else 1 for line in self.lines)

    @functools.cached_property
    def stochastic(self) -> bool:
        return any(line.draws for line in self.lines)

    @functools.cached_property
    def sums(self) -> bool:
        """Whether any line is `Linear`."""
        return any(isinstance(line, Linear) for line in self.lines)

    @functools.cached_property
    def agenda(self) -> tuple[Due, ...]:
        """The calls of a walk, in order."""
        ends = (*self.times[1:], self.stop)
        plain = [isinstance(line, Linear) for line in self.lines]
        noisy = [one and line.draws for one, line in zip(plain, self.lines, strict=True)]
        return tuple(map(Due, self.lines, self.times, ends, plain, noisy))

    @functools.cached_property
    def program(self) -> Program:
        return compiled([line if isinstance(line, Linear) else Linear({}, {}) for line in self.lines])

    @functools.cached_property
    def moments(self) -> Tensor:
        """The times of the calls and the end, float64 (calls + 1,)."""
        return torch.tensor((*self.times, self.stop), dtype=torch.float64)

    @property
    def guidance(self) -> tuple[float, tuple[float, float] | None] | None:
        """(scale, interval) under which a tuned plan was fitted; None if the plan is not tuned."""
        if self.tuned is None:
            return None
        interval = self.tuned["interval"]
        return self.tuned["guidance"], None if interval is None else (interval[0], interval[1])

    def _mismatch(self, model: Model) -> float | None:
        """The first time at which the model's (alpha, sigma) differ from this plan's, or None."""
        process = model.process
        if not self.path or self.__dict__.get("_known") is process:  # processes are immutable: one check is enough
            return None
        schedule = schedule_of(process)
        if schedule is None:
            return self.times[0]
        here = torch.stack(torch.broadcast_tensors(*schedule(torch.tensor(self.times, dtype=torch.float64))), -1)
        known = torch.tensor(self.path[:-1], dtype=torch.float64)
        off = ((here - known).abs() > 1e-9 * known.abs().clamp_min(1.0)).any(-1)
        if bool(off.any()):
            return self.times[int(off.nonzero()[0])]
        self.__dict__["_known"] = process
        return None

    def _check_vectors(self, shape: Any) -> None:
        """Raise SfumatoError for coefficients, one per element, that are not for samples of this shape."""
        for line in self.lines:
            if isinstance(line, Linear) and not line.numbers and isinstance(shape, tuple):
                for c in (line.noise, *line.z.values(), *line.x.values()):
                    if isinstance(c, Tensor) and not broadcasts(tuple(c.shape), shape):
                        raise SfumatoError(
                            f"This plan of {self.name} has coefficients of shape {tuple(c.shape)}, and the model's "
                            f"samples have {shape}: build it for this model."
                        )

    def fits(self, model: Model) -> bool:
        """Whether the model has the schedule that this plan was built for."""
        return self._mismatch(model) is None

    def check(self, model: Model) -> None:
        """Raise SfumatoError if the model does not have the schedule that this plan was built for."""
        t = self._mismatch(model)
        if t is None:
            return self._check_vectors(getattr(model, "shape", None))
        schedule = schedule_of(model.process)
        if schedule is None:
            raise SfumatoError(
                f"A plan of {self.name} works on real numbers and cannot sample the states of "
                f"{type(model.process).__name__}: use a solver that can, such as solvers.Ancestral()."
            )
        raise SfumatoError(
            f"This plan was built for another schedule than {type(schedule).__name__} "
            f"(alpha, sigma differ at t = {t:.4g}): build it with solver.plan(model.process, steps)."
        )

    def start(self, model: Model, z: Any, noise: AnyNoise | None = None, /, **cond: Any) -> Walk:
        """A `Walk` of the rows z (B, ...) from times[0], advanced by its caller.

        Conditions are encoded, tensors or `Given` of B rows, as `**sf.conditions.resolve(model, {"mass": 0.3}, B)`
        returns them for the user's values; SfumatoError for others.
        """
        self.check(model)
        require_encoded(cond)
        return Walk(self, model, z, noise, cond)

    def run(self, model: Model, z: Any, noise: AnyNoise | None = None, /, **cond: Any) -> Iterator[State]:
        """Walk from z at times[0] to the end; yields a State for each call and one at the end.

        If the model differentiates only its last calls (`grad_calls`), the earlier ones run without gradients.
        """
        walk, last = self.start(model, z, noise, **cond), getattr(model, "grad_calls", None)
        for _ in range(0 if last is None or last == "all" else self.calls - last):
            z, t = walk.z, self.times[walk.made]
            with torch.no_grad():
                belief = walk.advance()
            yield State(z, t, belief)
        for line, t, *_ in self.agenda[walk.made :]:
            if isinstance(line, Corrector):
                z = walk.z
                yield State(z, t, walk.advance())
                continue
            belief = model(walk.z, t, **walk.cond)
            yield State(walk.z, t, belief)  # before computing the next state, so that three are never in memory
            walk.follow(belief)
        yield State(walk.z, self.stop, None)

    def along_paths(self) -> Plan:
        """This plan, with the noise of each sample drawn by `sample` from one Brownian path."""
        return dataclasses.replace(self, brownian=True)

    def to_dict(self) -> dict[str, Any]:
        content = {**self._content(), "lines": [to_json(line) for line in self.lines]}
        return content if self.brownian else {k: v for k, v in content.items() if k != "brownian"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`. Raises SfumatoError, which names the key, for anything else."""
        schema.require(data, SCHEMA, "This is not a solver plan")
        times, lines = tuple(data["times"]), tuple(map(from_json, data["lines"]))
        path = tuple((float(a), float(s)) for a, s in data["path"])
        if len(lines) != len(times) or len(path) not in (0, len(times) + 1) or data["steps"] > len(times):
            raise SfumatoError(
                f"This is not a solver plan: it has {len(times)} times, {len(lines)} lines, {len(path)} rows of path "
                f"and {data['steps']} steps."
            )
        for k, line in enumerate(lines):
            if isinstance(line, Linear) and not all(0 <= j <= k for j in (*line.z, *line.x)):
                raise SfumatoError(f"This is not a solver plan: lines.{k} uses calls that are not made before it.")
        rest = {key: data[key] for key in ("name", "steps", "stop", "order")}
        return cls(
            **rest, times=times, path=path, lines=lines, tuned=data.get("tuned"), brownian=data.get("brownian", False)
        )

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, whole or not at all."""
        write_text(path, json.dumps(self.to_dict(), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan written by `save`. Raises SfumatoError for anything else."""
        try:
            return cls.from_dict(schema.json_of(schema.read_text(path, _LARGEST), path))
        except SfumatoError as error:
            raise SfumatoError(f"Cannot read a solver plan from {path}: {error}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._content() == other._content()

    def _content(self) -> dict[str, Any]:
        """All fields in a form that can be compared: tensors as lists."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**content, "lines": [to_json(one) if isinstance(one, Linear) else one for one in self.lines]}

    def __str__(self) -> str:
        kind = "stochastic" if self.stochastic else "deterministic"
        head = f"{self.name}: {counted(self.steps, 'step')}, {counted(self.calls, 'call')}, order {self.order}, {kind}"
        rows = [f"{head}\n{'call':>4} {'t':>9} {'alpha':>9} {'sigma':>9}  next state ="]
        points = self.path or [(math.nan, math.nan)] * self.calls
        for k, (t, (alpha, sigma), line) in enumerate(zip(self.times, points, self.lines, strict=False)):
            rows.append(f"{k:4d} {t:9.5f} {alpha:9.5f} {sigma:9.4g}  {in_words(line)}")
        return "\n".join(rows)
