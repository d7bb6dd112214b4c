"""Nonlinear least squares over every number of a plan: Gauss-Newton steps, damped (Levenberg 1944, Marquardt 1963).

    minimise  mean_i rho(|z_N(p; z_0i) - y_i|^2 / D),      rho(s) = c^2 log(1 + s / c^2)

y_i is where a fine solve takes the same noise. rho' = 1 / (1 + s / c^2) is the weight of sample i: the few samples that
a plan sends to another mode than the fine solve, where no small change of the plan helps, do not rule the rest.
J^T W J is exact up to `EXACT` dimensions; beyond, it is estimated from random directions (Hutchinson 1990), those of
past rounds among them, while the gradient stays exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.conditions import Conditions
from sfumato.model import Model
from sfumato.tuning.search import Wiener
from sfumato.tuning.table import Clock, Table, sensitivities, walk

EXACT, FEW = 8, 256  # dimensions up to which all unit vectors are walked back, and four random directions; beyond, two
_KEPT = 0.5  # share of the estimate of J^T W J that stays from one round to the next
_FIRST_DAMPING, _LEAST_DAMPING, _TRIES = 1e-3, 1e-9, 8


class Exam(NamedTuple):
    """Noise z (B, *shape) at the start, the end (B, D) that it belongs to, and each sample's conditions and path."""

    z: Tensor
    end: Tensor
    cond: Conditions
    paths: Wiener | None = None

    def parts(self, batch: int) -> Iterator[Exam]:
        for rows in torch.arange(len(self.z)).split(batch):
            paths = None if self.paths is None else Wiener(self.paths.seed, self.paths.index[rows])
            yield Exam(self.z[rows], self.end[rows], Conditions.of(self.cond).rows(rows), paths)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, the clock of its times, and how many samples run at once."""

    model: Model
    clock: Clock
    batch: int

    def pack(self, table: Table) -> Tensor:
        """All free numbers of a table: the clock's N, a, and the lower triangle of b."""
        rows, columns = torch.tril_indices(len(table.a), len(table.a))
        return torch.cat((self.clock.free(table.times), table.a, table.b[rows, columns]))

    def table(self, free: Tensor) -> Table:
        n = int((2 * len(free) + 6.25) ** 0.5 - 2.5)  # len = 2 n + n (n + 1) / 2
        b = torch.zeros(n, n, dtype=torch.float64)
        rows, columns = torch.tril_indices(n, n)
        b[rows, columns] = free[2 * n :]
        return Table(self.clock.times(free[:n]), free[n : 2 * n], b)

    def gaps(self, table: Table, exam: Exam) -> Tensor:
        """|z_N - y|^2 / D of each sample, float64 (B,)."""
        found = []
        for part in exam.parts(self.batch):
            gap = walk(self.model, table, part.z, part.cond).end.double() - part.end
            found.append(gap.square().mean(-1))
        return torch.cat(found).cpu()

    def normal_equations(
        self, free: Tensor, exam: Exam, c2: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """J^T W r and J^T W J in the free numbers."""
        table = self.table(free)
        n = len(table.a)
        by_free, (rows, columns) = self.clock.jacobian(free[:n]), torch.tril_indices(n, n)
        gradient = torch.zeros(len(free), dtype=torch.float64)
        hessian = torch.zeros(len(free), len(free), dtype=torch.float64)
        for part in exam.parts(self.batch):
            done = walk(self.model, table, part.z, part.cond)
            gap = done.end.double() - part.end
            weight = (1 / (1 + gap.square().mean(-1) / c2) / gap.shape[1] / len(exam.z)).cpu()
            directions = torch.cat((gap[None], probes(gap, generator))).to(done.end)
            shape = tuple(part.z.shape[1:])
            found = sensitivities(self.model, table, done, directions, shape, part.cond)
            by_time, by_a, by_b, _ = (value.cpu().double() for value in found)
            j = torch.cat((by_time @ by_free, by_a, by_b[:, :, rows, columns]), -1)
            gradient += (weight[:, None] * j[0]).sum(0)
            scale = 1.0 if gap.shape[1] <= EXACT else 1 / (len(j) - 1)
            for one in j[1:]:
                hessian += scale * one.T @ (weight[:, None] * one)
        return gradient, hessian


def probes(gap: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors, or random signs: (Q, B, D) with mean v v^T the identity, up to a factor."""
    batch, dim = gap.shape
    if dim <= EXACT:
        return torch.eye(dim).to(gap)[:, None].expand(dim, batch, dim)
    signs = torch.randint(0, 2, (4 if dim <= FEW else 2, batch, dim), generator=generator)
    return (2 * signs - 1).to(gap)


def rho(gaps: Tensor, c2: float) -> float:
    """The mean of c^2 log(1 + s / c^2); infinite where a sample is."""
    value = float((c2 * torch.log1p(gaps / c2)).mean())
    return value if value == value else float("inf")


def levenberg_marquardt(
    problem: Problem, start: Table, exam: Exam, c2: float, rounds: int, seed: int = 0
) -> Iterator[tuple[Table, Tensor]]:
    """Tables whose loss falls, each with its gaps, one a round, until nothing is gained any more."""
    free, damping, growth = problem.pack(start), _FIRST_DAMPING, 2.0
    loss, slow = rho(problem.gaps(problem.table(free), exam), c2), 0
    generator, hessian, kept = torch.Generator().manual_seed(seed), torch.zeros(()), 0.0
    for _ in range(rounds):
        gradient, new_hessian = problem.normal_equations(free, exam, c2, generator)
        hessian = kept * hessian + (1 - kept) * new_hessian
        kept = 0.0 if exam.end.shape[1] <= EXACT else _KEPT
        diagonal = hessian.diagonal().clamp_min(1e-12 * hessian.diagonal().max())
        for _ in range(_TRIES):
            step = torch.linalg.solve(hessian + damping * torch.diag(diagonal), -gradient)
            table = problem.table(free + step)
            gaps = problem.gaps(table, exam)
            new = rho(gaps, c2)
            if new < loss:
                break
            damping, growth = damping * growth, growth * 2
        else:
            return
        gain = (loss - new) / float(-(2 * gradient @ step + step @ hessian @ step))
        # Nielsen 1999: less damping the better the quadratic model foretold the loss
        damping, growth = max(_LEAST_DAMPING, damping * max(1 / 5, 1 - (2 * gain - 1) ** 3)), 2.0
        slow = slow + 1 if loss - new < 2e-4 * loss else 0
        free, loss = free + step, new
        yield table, gaps
        if slow == 5:
            return
