"""The untuned plans that a fit starts from, and the fine solve that it is fitted to."""

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

_FINE = 256  # steps of the fine solve; its error is about a thousandth of that of a plan of 20 calls


class Range(NamedTuple):
    """Where sampling starts and stops on a schedule."""

    schedule: Schedule
    start: float
    stop: float


class Wiener(NamedTuple):
    """Brownian paths of samples (B,), identified by a seed and the samples' numbers."""

    seed: int
    index: Tensor  # type: ignore[assignment]


def rules() -> Iterator[Solver]:
    """Solvers worth starting from: orders, rows and correctors, on grids between flow time and logsnr."""
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
    """Solvers of the reverse SDE to start from; their lines use only their own state."""
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
    """The end points of a plan from z, flattened (B, D), in batches; with noise, along Brownian paths."""
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


def fine_plan(reach: Range, calls: int, tau: float = 0.0) -> Plan:
    """The fine plan that serves as exact solution for plans of `calls` calls; with tau, of the reverse SDE."""
    rule = SDEDPMSolver(2, tau) if tau else Multistep(3, "flow", grids.auto(), corrector=True)
    return rule.plan(reach.schedule, max(_FINE, 16 * calls), reach.start, reach.stop)
