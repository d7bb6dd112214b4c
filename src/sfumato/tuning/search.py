"""What a fit needs beside itself: the untuned plans that it starts from, and where the exact solution ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.schedule import Schedule
from sfumato.solvers import DPMSolverPP, Heun, Multistep, Plan, Solver, UniPC, default, grids

_FIRST_FINE, _LAST_FINE = 64, 1024  # steps of the fine solve
_WANTED = 0.005  # its error, as a share of the error of the same rule at the calls of the plan that is tuned


class Range(NamedTuple):
    """Where sampling starts and stops on a schedule."""

    schedule: Schedule
    start: float
    stop: float


def rules() -> Iterator[Solver]:
    """Solvers worth starting from: orders, rows and correctors on grids between flow time and logsnr."""
    yield default()
    yield default(exact=True)
    for grid in (*map(grids.FlowTime, (0.0, 0.07, 0.15, 0.3, 0.6)), grids.Rho(7.0)):
        for row in ("flow", "F"):
            yield Multistep(2, row, grid)
            yield Multistep(2, row, grid, corrector=True, start="low")
            yield Multistep(3, row, grid, start="low")
        yield Multistep(1, "flow", grid)
        yield Multistep(3, "flow", grid, corrector=True, start="low")
        yield DPMSolverPP(2, grid=grid)
        yield UniPC(2, grid=grid, start="low")
        yield Heun(grid=grid)


def untuned(reach: Range, calls: int) -> list[Plan]:
    """The plans of `rules` with this many calls."""
    found = []
    for rule in rules():
        for steps in range(calls, 0, -1):
            try:
                plan = rule.plan(reach.schedule, steps, reach.start, reach.stop)
            except SfumatoError:  # a grid that so few or so many steps do not fit
                continue
            if plan.calls == calls:
                found.append(plan)
            if plan.calls <= calls:
                break
    if not found:
        raise SfumatoError(f"No solver has a plan of {calls} calls from {reach.start:g} to {reach.stop:g} to tune.")
    return found


def end_of(plan: Plan, model: Model, z: Tensor, cond: dict[str, Tensor], batch: int) -> Tensor:
    """Where a plan takes z, flat (B, D), in batches."""
    ends = []
    with torch.no_grad():
        for rows in torch.arange(len(z)).split(batch):
            *_, last = plan.run(model, z[rows], None, **{name: value[rows] for name, value in cond.items()})
            ends.append(last.z.flatten(1))
    return torch.cat(ends)


def distances(ends: Tensor, truth: Tensor) -> Tensor:
    """|z - y|^2 / D of each sample, float64 (B,)."""
    gap = (ends.double() - truth.double()).square().mean(-1).cpu()
    return torch.where(gap.isfinite(), gap, torch.inf)


def fine_plan(model: Model, z: Tensor, cond: dict[str, Tensor], reach: Range, calls: int, batch: int) -> Plan:
    """A plan whose error is a 200th of that of the same rule at `calls`, found on z by doubling its steps."""
    rule = Multistep(3, "flow", grids.auto(), corrector=True)
    coarse = rule.plan(reach.schedule, calls + 1, reach.start, reach.stop)
    plan = rule.plan(reach.schedule, max(_FIRST_FINE, 4 * calls), reach.start, reach.stop)
    end, rough = end_of(plan, model, z, cond, batch), end_of(coarse, model, z, cond, batch)
    while 2 * plan.steps <= max(_LAST_FINE, 8 * calls):
        finer = rule.plan(reach.schedule, 2 * plan.steps, reach.start, reach.stop)
        new = end_of(finer, model, z, cond, batch)
        change, scale = distances(end, new).sqrt(), distances(rough, new).sqrt()
        share = max(float(change.median() / scale.median()), float(change.mean() / scale.mean()))
        if not share > _WANTED:
            return plan
        plan, end = finer, new
        if share <= 8 * _WANTED:  # of order 3 at least: an eighth of the change is left
            return plan
    return plan
