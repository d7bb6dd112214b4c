"""A fixed-step solver is a table: at which times the denoiser is called, and how states, estimates and noise combine.

    z_{k+1} = sum_j a_kj z_j + sum_j b_kj x_j + c_k xi_k,   x_k = E[x | z_k] at time t_k,   k = 0..calls-1

Every solver of this package compiles to such a `Plan` once, in float64; `Plan.run` is the only loop.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.belief import Estimate
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.solvers.arithmetic import Arithmetic, Program, compiled

Noise = Callable[[int, Tensor], Tensor]  # (call, like) -> standard normal numbers of its shape


class Line(NamedTuple):
    """The combination that makes the state after one call: index of the call -> coefficient."""

    z: Mapping[int, float]
    x: Mapping[int, float]
    noise: float = 0.0


class State(NamedTuple):
    """What a trajectory shows: the state, its time, and the belief of the call at that time (None at the end)."""

    z: Tensor
    t: float
    belief: Estimate | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A compiled solver.

    times: of the calls, (calls,); stop: the time at the end, 0 meaning the clean signal (alpha = 1, sigma = 0).
    path: (alpha, sigma) at the calls and at the end, (calls + 1, 2), by which a plan recognises its schedule.
    tuned: what a plan that was fitted to a model says of the fit, JSON-able (`tune`); None for a solver's own plan.
    """

    name: str
    steps: int
    times: tuple[float, ...]
    stop: float
    path: tuple[tuple[float, float], ...]
    lines: tuple[Line, ...]
    order: int = 1
    tuned: dict[str, Any] | None = None

    @property
    def calls(self) -> int:
        """How often the denoiser is called."""
        return len(self.times)

    @property
    def stochastic(self) -> bool:
        return any(line.noise != 0 for line in self.lines)

    @property
    def guidance(self) -> tuple[float, tuple[float, float] | None] | None:
        """(scale, interval) that a tuned plan was fitted under; None where a plan serves any."""
        if self.tuned is None:
            return None
        interval = self.tuned["interval"]
        return self.tuned["guidance"], None if interval is None else (interval[0], interval[1])

    def _stranger(self, model: Model) -> float | None:
        """The first time at which the model's path is not the one that this plan was built for."""
        schedule = model.process.schedule
        if self.__dict__.get("_known") is schedule:  # schedules do not change: one look is enough
            return None
        here = torch.stack(torch.broadcast_tensors(*schedule(torch.tensor(self.times, dtype=torch.float64))), -1)
        known = torch.tensor(self.path[:-1], dtype=torch.float64)
        off = ((here - known).abs() > 1e-9 * known.abs().clamp_min(1.0)).any(-1)
        if bool(off.any()):
            return self.times[int(off.nonzero()[0])]
        self.__dict__["_known"] = schedule
        return None

    def fits(self, model: Model) -> bool:
        """Whether the model has the schedule that this plan was built for."""
        return self._stranger(model) is None

    def check(self, model: Model) -> None:
        """Refuse a model whose path is not the one that this plan was built for."""
        t = self._stranger(model)
        if t is not None:
            raise SfumatoError(
                f"This plan was built for another schedule than {type(model.process.schedule).__name__} "
                f"(alpha, sigma differ at t = {t:.4g}): build it with solver.plan(model.process.schedule, steps)."
            )

    def run(self, model: Model, z: Tensor, noise: Noise | None = None, **cond: Any) -> Iterator[State]:
        """Walk from z at times[0] to the end; yields a State before each call's combination and one at the end."""
        self.check(model)
        if self.stochastic and noise is None:
            raise SfumatoError(f"The solver {self.name} draws noise: pass a source of it.")
        arithmetic = Arithmetic(self._program, z)
        for k, (t, line) in enumerate(zip(self.times, self.lines, strict=True)):
            belief = model(z, t, **cond)
            yield State(z, t, belief)
            z = arithmetic.step(k, z, belief.x)
            if line.noise:
                assert noise is not None
                z = z.add_(noise(k, z), alpha=line.noise) if not z.requires_grad else z + line.noise * noise(k, z)
        yield State(z, self.stop, None)

    @functools.cached_property
    def _program(self) -> Program:
        return compiled(self.lines)

    def to_dict(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        data["lines"] = [
            {**{k: {str(j): c for j, c in getattr(line, k).items()} for k in "zx"}, "noise": line.noise}
            for line in self.lines
        ]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        try:
            lines = tuple(
                Line({int(j): c for j, c in d["z"].items()}, {int(j): c for j, c in d["x"].items()}, d["noise"])
                for d in data["lines"]
            )
            rest = {k: data[k] for k in ("name", "steps", "stop", "order")}
            path = tuple((float(a), float(s)) for a, s in data["path"])
            return cls(times=tuple(data["times"]), path=path, lines=lines, tuned=data.get("tuned"), **rest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SfumatoError(f"This is not a solver plan: {error!r}.") from None

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise SfumatoError(f"Cannot read a solver plan from {path}: {error}.") from None

    def __str__(self) -> str:
        kind = "stochastic" if self.stochastic else "deterministic"
        head = f"{self.name}: {self.steps} steps, {self.calls} calls, order {self.order}, {kind}"
        rows = [f"{head}\n{'call':>4} {'t':>9} {'alpha':>9} {'sigma':>9}  next state ="]
        for k, (t, (alpha, sigma), line) in enumerate(zip(self.times, self.path, self.lines, strict=False)):
            terms = [f"{c:+.4g} z{j}" for j, c in line.z.items()] + [f"{c:+.4g} x{j}" for j, c in line.x.items()]
            terms += [f"{line.noise:+.4g} xi"] if line.noise else []
            rows.append(f"{k:4d} {t:9.5f} {alpha:9.5f} {sigma:9.4g}  {' '.join(terms)}")
        return "\n".join(rows)
