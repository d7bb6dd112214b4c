"""A plan in the form that is fitted, and the sensitivity of its end to every number in it.

    z_{k+1} = a_k z_k + sum_{j<=k} b_kj x_j + c_k xi_k,     x_j = E[x | z_j] at t_j,     k = 0..N-1

Every plan without noise has this form, and with noise those whose lines use no state but their own. With
G_{k+1} = v^T dz_N/dz_{k+1} for a direction v, one walk back gives

    v^T dz_N/da_k = G_{k+1}.z_k      v^T dz_N/db_kj = G_{k+1}.x_j      v^T dz_N/dt_k = P_k.dx_k/dt_k
    v^T dz_N/dc_k = G_{k+1}.xi_k
    P_k = sum_{m>=k} b_mk G_{m+1}    G_k = a_k G_{k+1} + P_k^T dx_k/dz_k

for each sample on its own, so that the Jacobian of all samples costs one walk forth and one back for each direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.schedule import NODE_LIMIT, Schedule
from sfumato.solvers import Linear, Plan

LEAST_SHARE = 1e-4  # no step starts shorter than this share of the clock


class Table(NamedTuple):
    """times (N,), a (N,), the lower triangle b (N, N) and, with noise, c (N,); float64."""

    times: Tensor
    a: Tensor
    b: Tensor
    c: Tensor | None = None


def read(plan: Plan) -> Table:
    """The table of a plan: without noise, where all states hold some of the first one; with it, in its own states."""
    lines = [line for line in plan.lines if isinstance(line, Linear) and line.numbers]
    if len(lines) < plan.calls:
        raise SfumatoError(f"{plan.name} has lines that are no sums of numbers: it has no table to tune.")
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
    return Table(torch.tensor(plan.times, dtype=torch.float64), a, b)


def _read_stochastic(plan: Plan, lines: list[Linear]) -> Table:
    n = plan.calls
    if any(set(line.z) - {k} for k, line in enumerate(lines)):
        raise SfumatoError(f"A line of {plan.name} uses states before its own: with noise it has no such table.")
    a, c = [line.z.get(k, 0.0) for k, line in enumerate(lines)], [line.noise for line in lines]
    b = [[line.x.get(j, 0.0) for j in range(n)] for line in lines]
    return Table(*(torch.tensor(values, dtype=torch.float64) for values in (plan.times, a, b, c)))


def write(table: Table, base: Plan, schedule: Schedule, name: str) -> Plan:
    """The plan of a table; its ends are those of `base`."""
    times = tuple(table.times.tolist())
    path = tuple((float(alpha), float(sigma)) for alpha, sigma in map(schedule, times))
    noise = [0.0] * len(times) if table.c is None else table.c.tolist()
    lines = tuple(
        Linear({k: float(a)} if a else {}, {j: float(c) for j, c in enumerate(row[: k + 1]) if c}, noise[k])
        for k, (a, row) in enumerate(zip(table.a, table.b, strict=True))
    )
    return Plan(name, len(times), times, base.stop, (*path, base.path[-1]), lines, base.order)


class Clock:
    """Falling times as the shares of the steps in logsnr, a softmax of free numbers: every vector is a valid grid."""

    def __init__(self, schedule: Schedule, start: float, stop: float) -> None:
        self.schedule, self.start = schedule, start
        ends = schedule.logsnr(torch.tensor([start, stop], dtype=torch.float64))
        self.low, self.high = ends.clamp(-NODE_LIMIT, NODE_LIMIT).tolist()

    def free(self, times: Tensor) -> Tensor:
        """The free numbers (N,) of N times, the first of which is the start."""
        logsnr = self.schedule.logsnr(times[1:])
        place = ((logsnr - self.low) / (self.high - self.low)).clamp(0, 1)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return torch.cat((ends[:1], place, ends[1:])).diff().clamp_min(LEAST_SHARE).log()

    def times(self, free: Tensor) -> Tensor:
        place = torch.softmax(free, 0).cumsum(0)[:-1]
        inner = self.schedule.time(self.low + (self.high - self.low) * place)
        return torch.cat((torch.tensor([self.start], dtype=torch.float64), inner))

    def jacobian(self, free: Tensor) -> Tensor:
        """d times[1:] / d free, (N - 1, N)."""
        share = torch.softmax(free, 0)
        place = (torch.diag(share) - share[:, None] * share).cumsum(0)[:-1]
        return (self.high - self.low) * place / self.schedule.dlogsnr(self.times(free)[1:])[:, None]


class Walk(NamedTuple):
    """states z_0..z_{N-1} and signals x_0..x_{N-1} (N, B, D), and the end z_N (B, D), flat."""

    states: Tensor
    signals: Tensor
    end: Tensor


def walk(model: Model, table: Table, z: Tensor, cond: Mapping[str, Any], draws: Tensor | None = None) -> Walk:
    """Run a table from z (B, *shape); draws xi (N, B, D), where it has noise.

    Not the loop of plans, since every state and signal is kept, and the numbers of the table are not merged.
    """
    shape, state = z.shape, z.flatten(1)
    states, signals = [], []
    with torch.no_grad():
        for k, t in enumerate(table.times):
            states.append(state)
            signals.append(model(state.reshape(shape), t, **cond).x.flatten(1))
            weights = table.b[k, : k + 1].to(state)
            state = table.a[k].to(state) * state + torch.einsum("j,jbd->bd", weights, torch.stack(signals))
            if table.c is not None and draws is not None:
                state = state + table.c[k].to(state) * draws[k]
    return Walk(torch.stack(states), torch.stack(signals), state)


class Slopes(NamedTuple):
    """v^T dz_N of Q directions and B samples: by times[1:] (Q, B, N - 1), a and c (Q, B, N), b (Q, B, N, N)."""

    times: Tensor
    a: Tensor
    b: Tensor
    c: Tensor


def sensitivities(
    model: Model,
    table: Table,
    done: Walk,
    directions: Tensor,
    shape: tuple[int, ...],
    cond: Mapping[str, Any],
    draws: Tensor | None = None,
) -> Slopes:
    """The slopes for directions (Q, B, D); that of c is 0 without draws."""
    n, (q, batch, _) = len(table.times), directions.shape
    by_time, by_a, by_c = (directions.new_zeros(q, batch, n) for _ in range(3))
    by_b = directions.new_zeros(q, batch, n, n)
    pull, pulls = directions, directions.new_zeros(n, *directions.shape)
    for k in reversed(range(n)):
        by_a[:, :, k] = (pull * done.states[k]).sum(-1)
        by_b[:, :, k, : k + 1] = torch.einsum("qbd,jbd->qbj", pull, done.signals[: k + 1])
        if draws is not None:
            by_c[:, :, k] = (pull * draws[k]).sum(-1)
        if k == 0:  # the first call's state and time are given
            break
        weights = table.b[k, : k + 1].to(directions)
        pulls[: k + 1] += weights[:, None, None, None] * pull
        back, by_time[:, :, k] = _back(model, done.states[k].reshape(-1, *shape), table.times[k], pulls[k], cond)
        pull = table.a[k].to(directions) * pull + back
    return Slopes(by_time[:, :, 1:], by_a, by_b, by_c)


def _back(model: Model, z: Tensor, t: Tensor, pulls: Tensor, cond: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(p^T dx/dz, p^T dx/dt) of one call for pulls p (Q, B, D): (Q, B, D) and (Q, B)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        time = t.to(z.device).expand(len(z)).clone().requires_grad_()
        x = model(z, time, **cond).x
    found = []
    for i, p in enumerate(pulls):
        keep = i + 1 < len(pulls)
        grads = torch.autograd.grad(x, (z, time), p.reshape(x.shape).to(x), retain_graph=keep, allow_unused=True)
        found.append([torch.zeros_like(v) if g is None else g for g, v in zip(grads, (z, time), strict=True)])
    return torch.stack([g.flatten(1) for g, _ in found]), torch.stack([g.to(pulls) for _, g in found])
