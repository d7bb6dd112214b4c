"""Coefficients of a stochastic plan, its noise among them, fitted along Brownian paths.

    minimise over a, b, c:   mean_i rho(|z_i - y_i|^2 / D) + LAW SW^2({z_i}, {y_i})
    SW^2 = mean over directions theta and ranks i of (theta.z_(i) - theta.y_(i))^2,   both sorted along theta

y_i is where a fine solve of the reverse SDE ends from the same start along the same path of noise. The first term alone
asks for z = E[y | what the plan's own increments of the path say], whose variance is too small by all that a few steps
cannot know. The second, the sliced Wasserstein distance of the laws, is at most the mean of |z_i - y_i|^2 / D, and of
second order in that loss of variance: it takes a large factor, and leaves to the first which of the plans of the right
law follows the path. Along no direction can the standard deviation be off by more than that distance. Source of it:
Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters".

The times stay: increments of a path are not smooth in them. The descent is BFGS in coordinates in which the
Gauss-Newton matrix of the first term is the identity.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.model import Model
from sfumato.solvers import Plan
from sfumato.solvers.brownian import along
from sfumato.tuning.fit import EXACT, Exam, probes
from sfumato.tuning.table import Table, Walk, read, sensitivities, walk

# A spread that is smaller by d costs d^2 of SW^2 and gains 2 d d* - d^2 in the mean square, which ends at d*: d* / 101.
LAW = 100.0
_DIRECTIONS = 128
_RIDGE, _SHORTEST = 1e-3, 1e-4


@functools.lru_cache(maxsize=8)
def _sphere(dim: int) -> Tensor:
    """Unit vectors (D, L), spread evenly on a circle."""
    if dim <= 2:
        angle = torch.arange(1 if dim == 1 else _DIRECTIONS, dtype=torch.float64) * math.pi / _DIRECTIONS
        return torch.stack((angle.cos(), angle.sin()))[:dim]
    drawn = torch.randn(dim, _DIRECTIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return drawn / drawn.norm(dim=0)


def sliced(ends: Tensor, truth: Tensor) -> Tensor:
    """SW^2 of two sets of points (B, D): the mean over directions of the squared distance, that of one dimension."""
    axes = _sphere(ends.shape[1]).to(ends.device)
    ours, exact = ((points.double() @ axes).sort(0).values for points in (ends, truth))
    return (ours - exact).square().mean()


@dataclasses.dataclass
class Stochastic:
    """The fit of one plan: free numbers are a, the lower triangle of b, and c where the plan has noise."""

    model: Model
    base: Plan
    exam: Exam
    batch: int
    c2: float

    def __post_init__(self) -> None:
        self.start = read(self.base)
        assert self.start.c is not None and self.exam.paths is not None
        self.noisy = self.start.c != 0
        self.rows, self.columns = torch.tril_indices(self.base.calls, self.base.calls)
        self.parts = [(part, self._draws(part)) for part in self.exam.parts(self.batch)]

    def _draws(self, part: Exam) -> Tensor:
        """The increments of the paths, (N, B, D)."""
        assert part.paths is not None
        source, like = along(self.base, part.paths.seed, part.paths.index), part.z
        quiet = torch.zeros_like(like)
        return torch.stack([source.at(k).like(like) if noisy else quiet for k, noisy in enumerate(self.noisy)]).flatten(
            2
        )

    def pack(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """(..., N), (..., N, N), (..., N) -> (..., free)."""
        return torch.cat((a, b[..., self.rows, self.columns], c[..., self.noisy]), -1)

    def table(self, free: Tensor) -> Table:
        n = self.base.calls
        b, c = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        b[self.rows, self.columns] = free[n : n + len(self.rows)]
        c[self.noisy] = free[n + len(self.rows) :]
        return Table(self.start.times, free[:n], b, c)

    def walks(self, free: Tensor) -> list[Walk]:
        found = self.table(free)
        return [walk(self.model, found, part.z, part.cond, draws) for part, draws in self.parts]

    def loss(self, end: Tensor) -> Tensor:
        """The objective of the ends (B, D), float64."""
        gaps = (end - self.exam.end).square().mean(-1)
        return (self.c2 * torch.log1p(gaps / self.c2)).mean() + LAW * sliced(end, self.exam.end)

    def value(self, free: Tensor) -> tuple[float, list[Walk]]:
        done = self.walks(free)
        loss = float(self.loss(torch.cat([one.end for one in done]).double()))
        return (loss if math.isfinite(loss) else math.inf), done

    def gradient(self, free: Tensor, done: list[Walk]) -> Tensor:
        end = torch.cat([one.end for one in done]).double().requires_grad_()
        (pull,) = torch.autograd.grad(self.loss(end), end)
        total = torch.zeros_like(free)
        for i, directions in enumerate(pull.split(self.batch)):
            total += self._slopes(free, i, done[i], directions[None]).sum((0, 1))
        return total

    def _slopes(self, free: Tensor, i: int, done: Walk, directions: Tensor) -> Tensor:
        """v^T dz_N / d free of each sample of part i, (Q, B, free)."""
        part, draws = self.parts[i]
        shape, at = tuple(part.z.shape[1:]), directions.to(done.end)
        found = sensitivities(self.model, self.table(free), done, at, shape, part.cond, draws)
        return self.pack(*(value.cpu().double() for value in (found.a, found.b, found.c)))

    def curvature(self, free: Tensor, done: list[Walk], seed: int) -> Tensor:
        """2 J^T W J of the first term."""
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros(len(free), len(free), dtype=torch.float64)
        for i, (part, _) in enumerate(self.parts):
            gap = done[i].end.double() - part.end
            weight = (2 / (1 + gap.square().mean(-1) / self.c2) / gap.shape[1] / len(self.exam.z)).cpu()
            j = self._slopes(free, i, done[i], probes(gap, generator))
            scale = 1.0 if gap.shape[1] <= EXACT else 1 / len(j)
            total += scale * torch.einsum("qbi,b,qbj->ij", j, weight, j)
        return total

    def descend(self, rounds: int, seed: int = 0) -> Iterator[Table]:
        """Tables whose loss falls, one a round, until nothing is gained any more."""
        assert self.start.c is not None
        free = self.pack(self.start.a, self.start.b, self.start.c)
        loss, done = self.value(free)
        scaling = self._scaling(self.curvature(free, done, seed))
        slope, inverse = scaling.T @ self.gradient(free, done), None
        for _ in range(rounds):
            found = self._along(free, loss, scaling, slope, inverse)
            if found is None and inverse is not None:  # the model of the curvature has gone astray: begin anew
                found, inverse = self._along(free, loss, scaling, slope, None), None
            if found is None:
                return
            step, loss, done = found
            free = free + scaling @ step
            after = scaling.T @ self.gradient(free, done)
            inverse, slope = updated(inverse, step, after - slope), after
            yield self.table(free)

    def _along(
        self, free: Tensor, loss: float, scaling: Tensor, slope: Tensor, inverse: Tensor | None
    ) -> tuple[Tensor, float, list[Walk]] | None:
        """The step down the slope that gains enough, its loss and walks; ends move by their distance at most."""
        step = -slope if inverse is None else -inverse @ slope
        step = step * min(1.0, math.sqrt(loss) / float(step.norm()))
        while True:
            new, done = self.value(free + scaling @ step)
            if new <= loss + 1e-4 * float(slope @ step):
                return step, new, done
            step = 0.4 * step
            if float(step.norm()) < _SHORTEST * math.sqrt(loss):
                return None

    def _scaling(self, curvature: Tensor) -> Tensor:
        """T with T^T (curvature + ridge) T the identity."""
        diagonal = curvature.diagonal().clamp_min(1e-12 * curvature.diagonal().max())
        lower = torch.linalg.cholesky(curvature + _RIDGE * torch.diag(diagonal))
        return torch.linalg.inv(lower).T


def updated(inverse: Tensor | None, step: Tensor, change: Tensor) -> Tensor | None:
    """BFGS: the inverse Hessian after `step`, along which the gradient changed by `change`; None knows nothing yet."""
    both = float(step @ change)
    if both <= 1e-12 * float(step.norm() * change.norm()):
        return inverse
    identity = torch.eye(len(step), dtype=step.dtype)
    known = identity * both / float(change @ change) if inverse is None else inverse
    left = identity - torch.outer(step, change) / both
    return left @ known @ left.T + torch.outer(step, step) / both
