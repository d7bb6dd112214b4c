"""The coefficients of a plan, in the form that is fitted.

    z_{k+1} = a_k z_k + sum_{j<=k} b_kj x_j + c_k xi_k,     x_j = E[x | z_j] at t_j,     k = 0..N-1

Every plan without noise has this form; with noise, those whose lines use only their own state.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.schedule import NODE_LIMIT, Schedule
from sfumato.solvers import Linear, Plan

LEAST_SHARE = 1e-4  # shortest initial step, as a fraction of the range of logsnr


class Coefficients(NamedTuple):
    """times (..., N), a (..., N), the lower triangle b (..., N, N) and c (..., N), 0 without noise; float64."""

    times: Tensor
    a: Tensor
    b: Tensor
    c: Tensor


def read(plan: Plan) -> Coefficients:
    """The coefficients of a plan. Without noise all states must depend on the first one; with noise lines may use only
    their own state."""
    lines = [line for line in plan.lines if isinstance(line, Linear) and line.numbers]
    if len(lines) < plan.calls:
        raise SfumatoError(f"{plan.name} has lines that are not linear: it has no coefficients to tune.")
    if plan.stochastic:
        return _read_stochastic(plan, lines)
    n = plan.calls
    share, signals = [1.0], [torch.zeros(n, dtype=torch.float64)]  # z_k = share_k z_0 + sum_j signals_kj x_j
    for line in lines:
        share.append(sum(c * share[j] for j, c in line.z.items()))
        signals.append(sum((c * signals[j] for j, c in line.z.items()), torch.zeros(n, dtype=torch.float64)))
        for j, c in line.x.items():
            signals[-1][j] += c
    a = torch.tensor([share[k + 1] / share[k] for k in range(n)], dtype=torch.float64)
    b = torch.stack([signals[k + 1] - a[k] * signals[k] for k in range(n)])
    return Coefficients(torch.tensor(plan.times, dtype=torch.float64), a, b, torch.zeros_like(a))


def _read_stochastic(plan: Plan, lines: list[Linear]) -> Coefficients:
    n = plan.calls
    if any(set(line.z) - {k} for k, line in enumerate(lines)):
        raise SfumatoError(f"A line of {plan.name} uses states before its own: with noise it cannot be tuned.")
    a, c = [line.z.get(k, 0.0) for k, line in enumerate(lines)], [line.noise for line in lines]
    b = [[line.x.get(j, 0.0) for j in range(n)] for line in lines]
    return Coefficients(*(torch.tensor(values, dtype=torch.float64) for values in (plan.times, a, b, c)))


def write(found: Coefficients, base: Plan, schedule: Schedule, name: str) -> Plan:
    """The plan with these coefficients, and with the ends of `base`."""
    times = tuple(found.times.tolist())
    path = tuple((float(alpha), float(sigma)) for alpha, sigma in map(schedule, times))
    lines = tuple(
        Linear({k: float(a)} if a else {}, {j: float(v) for j, v in enumerate(row[: k + 1]) if v}, float(c))
        for k, (a, row, c) in enumerate(zip(found.a, found.b, found.c, strict=True))
    )
    return Plan(name, len(times), times, base.stop, (*path, base.path[-1]), lines, base.order)


class TimeShares:
    """Decreasing times, parametrised by each step's share of logsnr, a softmax: any free numbers give a valid grid."""

    def __init__(self, schedule: Schedule, start: float, stop: float) -> None:
        self.schedule, self.start = schedule, start
        ends = schedule.logsnr(torch.tensor([start, stop], dtype=torch.float64))
        self.low, self.high = ends.clamp(-NODE_LIMIT, NODE_LIMIT).tolist()

    def free(self, times: Tensor) -> Tensor:
        """The free numbers (N,) for N times, of which the first is the start."""
        logsnr = self.schedule.logsnr(times[1:])
        place = ((logsnr - self.low) / (self.high - self.low)).clamp(0, 1)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return torch.cat((ends[:1], place, ends[1:])).diff().clamp_min(LEAST_SHARE).log()

    def times(self, free: Tensor) -> Tensor:
        """(..., N) -> (..., N), differentiable."""
        place = torch.softmax(free, -1).cumsum(-1)[..., :-1]
        logsnr = self.low + (self.high - self.low) * place
        with torch.no_grad():
            inner = self.schedule.time(logsnr)
            rate = self.schedule.dlogsnr(inner)
        inner = inner + (logsnr - logsnr.detach()) / rate  # adds the derivative, since the inverse may be by bisection
        return torch.cat((torch.full_like(free[..., :1], self.start), inner), -1)
