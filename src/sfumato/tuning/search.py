"""What a fit needs beside itself: the untuned plans that it starts from, and where the exact solution ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.schedule import Schedule
from sfumato.solvers import (
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    Multistep,
    Plan,
    SASolver,
    SDEDPMSolver,
    Solver,
    UniPC,
    default,
    grids,
)
from sfumato.solvers.brownian import along

_FIRST_FINE, _LAST_FINE, _LAST_PATH = 64, 1024, 256  # steps of the fine solve; of that along a Brownian path
_WANTED = 0.005  # its error, as a share of the error of the same rule at the calls of the plan that is tuned
_WANTED_PATH = 0.05  # the same along a Brownian path, where no rule has more than order 1 for the single sample


class Range(NamedTuple):
    """Where sampling starts and stops on a schedule."""

    schedule: Schedule
    start: float
    stop: float


class Wiener(NamedTuple):
    """Brownian paths of samples (B,), by a seed and their numbers."""

    seed: int
    index: Tensor  # type: ignore[assignment]


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


def noisy_rules(tau: float) -> Iterator[Solver]:
    """Solvers of the reverse SDE to start from; their lines use no state but their own."""
    for grid in (*map(grids.FlowTime, (0.0, 0.15, 0.6)), grids.Rho(7.0), grids.LogSNR()):
        for order in (1, 2, 3):
            yield SDEDPMSolver(order, tau, grid)
        for order in (2, 3):
            yield SASolver(order, order, tau, grid=grid)
        yield EulerMaruyama(tau, grid)


def untuned(reach: Range, calls: int, tau: float = 0.0) -> list[Plan]:
    """The plans of `rules`, or with noise of `noisy_rules`, with this many calls."""
    found = []
    for rule in noisy_rules(tau) if tau else rules():
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


def end_of(plan: Plan, model: Model, z: Tensor, cond: Conditions, batch: int, paths: Wiener | None = None) -> Tensor:
    """Where a plan takes z, flat (B, D), in batches; with noise along Brownian paths."""
    ends = []
    with torch.no_grad():
        for rows in torch.arange(len(z)).split(batch):
            noise = along(plan, paths.seed, paths.index[rows]) if paths and plan.stochastic else None
            *_, last = plan.run(model, z[rows], noise, **Conditions.of(cond).rows(rows))
            ends.append(last.z.flatten(1))
    return torch.cat(ends)


def distances(ends: Tensor, truth: Tensor) -> Tensor:
    """|z - y|^2 / D of each sample, float64 (B,)."""
    gap = (ends.double() - truth.double()).square().mean(-1).cpu()
    return torch.where(gap.isfinite(), gap, torch.inf)


def fine_plan(
    model: Model,
    z: Tensor,
    cond: Conditions,
    reach: Range,
    calls: int,
    batch: int,
    tau: float = 0.0,
    paths: Wiener | None = None,
) -> Plan:
    """A plan whose error is a 200th of that of the same rule at `calls`, found on z by doubling its steps.

    With tau that of the reverse SDE along Brownian paths, and a 20th.
    """
    rule = SDEDPMSolver(2, tau) if tau else Multistep(3, "flow", grids.auto(), corrector=True)
    wanted, order, last = (_WANTED_PATH, 1, _LAST_PATH) if tau else (_WANTED, 3, _LAST_FINE)
    coarse = rule.plan(reach.schedule, calls + (0 if tau else 1), reach.start, reach.stop)
    plan = rule.plan(reach.schedule, max(_FIRST_FINE, 4 * calls), reach.start, reach.stop)
    end, rough = (end_of(one, model, z, cond, batch, paths) for one in (plan, coarse))
    while 2 * plan.steps <= max(last, 8 * calls):
        finer = rule.plan(reach.schedule, 2 * plan.steps, reach.start, reach.stop)
        new = end_of(finer, model, z, cond, batch, paths)
        change, scale = distances(end, new).sqrt(), distances(rough, new).sqrt()
        share = max(float(change.median() / scale.median()), float(change.mean() / scale.mean()))
        if not share > wanted:
            return plan
        plan, end = finer, new
        if share <= 2**order * wanted:  # of this order at least: so small a part of the change is left
            return plan
    return plan
