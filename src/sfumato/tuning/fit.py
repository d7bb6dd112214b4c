"""Fit a plan's coefficients, and without noise also its times, to the end points of a fine solve of the same noise.

    minimise  mean_i rho(|z_i - y_i|^2 / D)  +  LAW SW^2({z_i}, {y_i})  with noise,     rho(s) = c^2 log(1 + s / c^2)
    SW^2 = mean over directions theta and ranks i of (theta.z_(i) - theta.y_(i))^2,     both sorted along theta

rho' = 1 / (1 + s / c^2) is the weight of sample i: the few samples that a plan sends to another mode than the fine
solve, which no small change of the plan can fix, do not dominate the rest. With noise, y_i is the end along the same
Brownian path. The first term alone is minimised by the conditional mean of y given the plan's own increments of the
path, whose variance is too small by all that a few steps cannot know. The second term, the sliced Wasserstein distance
of the laws (Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters"), is at most the mean of |z_i - y_i|^2 / D,
and of second order in that loss of variance. It therefore has a large factor; among plans with the right law, the first
term selects the one that follows the path. In no direction is the standard deviation off by more than that distance.
The times of a plan with noise are fixed: path increments are not smooth in them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sfumato.conditions import Conditions
from sfumato.model import Model
from sfumato.solvers import Plan
from sfumato.solvers.brownian import along
from sfumato.tuning.coefficients import Coefficients, TimeShares, read
from sfumato.tuning.search import Range, Wiener

# A spread that is smaller by d costs d^2 of SW^2 and gains 2 d d* - d^2 in the mean square, which ends at d*: d* / 101.
LAW = 100.0
EXACT, FEW = 8, 256  # dimensions up to which the curvature takes all unit vectors, and four random ones; beyond, two
_KEPT = 0.5  # share of the estimate of the curvature that stays from one round to the next
_FIRST_DAMPING, _LEAST_DAMPING, _TRIES = 1e-3, 1e-9, 8
_RIDGE = 1e-3
_DIRECTIONS = 128


class Pairs(NamedTuple):
    """Noise z (B, *shape) at the start, the end point (B, D) of each, and its conditions and path."""

    z: Tensor
    end: Tensor
    cond: Conditions
    paths: Wiener | None = None

    def parts(self, batch: int) -> Iterator[Pairs]:
        for rows in torch.arange(len(self.z)).split(batch):
            paths = None if self.paths is None else Wiener(self.paths.seed, self.paths.index[rows])
            yield Pairs(self.z[rows], self.end[rows], Conditions.of(self.cond).rows(rows), paths)


@functools.lru_cache(maxsize=8)
def _sphere(dim: int) -> Tensor:
    """Unit vectors (D, L), spread evenly on a circle."""
    if dim <= 2:
        angle = torch.arange(1 if dim == 1 else _DIRECTIONS, dtype=torch.float64) * math.pi / _DIRECTIONS
        return torch.stack((angle.cos(), angle.sin()))[:dim]
    drawn = torch.randn(dim, _DIRECTIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return drawn / drawn.norm(dim=0)


def sliced(ends: Tensor, truth: Tensor) -> Tensor:
    """SW^2 of two sets of points (B, D): the mean over directions of the squared one-dimensional distance."""
    axes = _sphere(ends.shape[1]).to(ends.device)
    ours, exact = ((points.double() @ axes).sort(0).values for points in (ends, truth))
    return (ours - exact).square().mean()


def objective(ends: Tensor, truth: Tensor, c2: float, law: bool) -> Tensor:
    """The loss of end points (B, D); law: whether to add the distance of the laws. Infinite if any is not finite."""
    gaps = (ends.double() - truth).square().mean(-1)
    value = (c2 * torch.log1p(gaps / c2)).mean()
    value = value + LAW * sliced(ends, truth) if law else value
    return torch.where(value.isfinite(), value, torch.inf)


def probes(like: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors, or random signs (Hutchinson 1990): (Q, B, D) with mean v v^T the identity, up to a factor."""
    batch, dim = like.shape
    if dim <= EXACT:
        return torch.eye(dim).to(like)[:, None].expand(dim, batch, dim)
    signs = torch.randint(0, 2, (4 if dim <= FEW else 2, batch, dim), generator=generator)
    return (2 * signs - 1).to(like)


@dataclasses.dataclass
class Fit:
    """The fit of one plan.

    Free numbers: those of the times (without noise), a, the lower triangle of b, and c (with noise).
    """

    model: Model
    base: Plan
    reach: Range
    pairs: Pairs
    batch: int
    c2: float

    def __post_init__(self) -> None:
        n = self.base.calls
        self.start, self.shares = read(self.base), TimeShares(*self.reach)
        self.noisy, (self.rows, self.columns) = self.start.c != 0, torch.tril_indices(n, n)
        self.law = self.base.stochastic
        self.sizes = (0 if self.law else n, n, len(self.rows), int(self.noisy.sum()))
        self.parts = [(part, self._draws(part) if self.law else None) for part in self.pairs.parts(self.batch)]

    def _draws(self, part: Pairs) -> Tensor:
        """The increments of the paths, (N, B, D)."""
        assert part.paths is not None
        source, quiet = along(self.base, part.paths.seed, part.paths.index), torch.zeros_like(part.z)
        draws = [source.at(k).like(part.z) if noisy else quiet for k, noisy in enumerate(self.noisy)]
        return torch.stack(draws).flatten(2)

    def pack(self, found: Coefficients) -> Tensor:
        """The free numbers, (F,)."""
        times = found.a[:0] if self.law else self.shares.free(found.times)
        return torch.cat((times, found.a, found.b[self.rows, self.columns], found.c[self.noisy]))

    def unpack(self, free: Tensor) -> Coefficients:
        """(..., F) -> the coefficients, differentiable."""
        shares, a, below, noise = free.split(self.sizes, -1)
        b, c = a.new_zeros(*a.shape, a.shape[-1]), torch.zeros_like(a)
        b[..., self.rows, self.columns], c[..., self.noisy] = below, noise
        return Coefficients(self.start.times.expand_as(a) if self.law else self.shares.times(shares), a, b, c)

    def ends(self, free: Tensor) -> Tensor:
        """The end points of all samples, (B, D)."""
        return torch.cat([self._end(free.expand(len(part.z), -1), part, draws) for part, draws in self.parts])

    def _end(self, free: Tensor, part: Pairs, draws: Tensor | None) -> Tensor:
        """The end points of some samples (B, D), each with its own free numbers, (B, F).

        `Plan.run` cannot differentiate in coefficients and times. Activations are recomputed in the backward pass, so
        that memory is that of a single call.
        """
        found, state, signals = self.unpack(free), part.z.flatten(1), list[Tensor]()
        a, b, c = (value.to(state) for value in (found.a, found.b, found.c))

        def signal(state: Tensor, t: Tensor) -> Tensor:
            return self.model(state.reshape(part.z.shape), t, **part.cond).x.flatten(1)

        for k in range(a.shape[1]):
            time = found.times[:, k].to(state.device)
            signals.append(checkpoint(signal, state, time, use_reentrant=False, preserve_rng_state=False))
            state = a[:, k, None] * state + torch.einsum("bj,jbd->bd", b[:, k, : k + 1], torch.stack(signals))
            state = state if draws is None else state + c[:, k, None] * draws[k]
        return state

    def normal_equations(self, free: Tensor, ends: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The gradient of the objective in the free numbers, evaluated at `ends`, and the Gauss-Newton matrix.

        The matrix is 2 J^T W J of the first term; beyond `EXACT` dimensions it is estimated from random directions.
        """
        ends = ends.detach().requires_grad_()
        (pull,) = torch.autograd.grad(objective(ends, self.pairs.end, self.c2, self.law), ends)
        gaps = (ends.detach().double() - self.pairs.end).square().mean(-1)
        weights = 2 / (1 + gaps / self.c2) / ends.shape[1] / len(ends)
        gradient, curvature = torch.zeros_like(free), free.new_zeros(len(free), len(free))
        for (part, draws), v, weight in zip(self.parts, pull.split(self.batch), weights.split(self.batch), strict=True):
            own = free.expand(len(part.z), -1).clone().requires_grad_()
            end, directions = self._end(own, part, draws), probes(v, generator)
            gradient += torch.autograd.grad(end, own, v, retain_graph=True)[0].sum(0)
            scale = 1.0 if v.shape[1] <= EXACT else 1 / len(directions)
            for direction in directions:
                (j,) = torch.autograd.grad(end, own, direction, retain_graph=True)
                curvature += scale * j.T @ (weight.to(j)[:, None] * j)
        return gradient, curvature

    def descend(self, rounds: int, seed: int = 0) -> Iterator[Coefficients]:
        """Yield the coefficients after each round, until there is no further gain."""
        descent = self._quasi_newton if self.law else self._levenberg_marquardt
        yield from map(self.unpack, descent(self.pack(self.start), rounds, torch.Generator().manual_seed(seed)))

    @torch.no_grad()
    def _levenberg_marquardt(self, free: Tensor, rounds: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Damped Gauss-Newton steps (Levenberg 1944, Marquardt 1963), for an objective that is a sum of squares."""
        ends, damping, growth, slow, kept, curvature = self.ends(free), _FIRST_DAMPING, 2.0, 0, 0.0, torch.zeros(())
        loss = self._value(ends)
        for _ in range(rounds):
            with torch.enable_grad():
                gradient, estimate = self.normal_equations(free, ends, generator)
            curvature = kept * curvature + (1 - kept) * estimate
            kept = 0.0 if ends.shape[1] <= EXACT else _KEPT
            diagonal = curvature.diagonal().clamp_min(1e-12 * curvature.diagonal().max())
            for _ in range(_TRIES):
                step = torch.linalg.solve(curvature + damping * torch.diag(diagonal), -gradient)
                ends = self.ends(free + step)
                if (new := self._value(ends)) < loss:
                    break
                damping, growth = damping * growth, growth * 2
            else:
                return
            gain = (new - loss) / float(gradient @ step + step @ curvature @ step / 2)
            # Nielsen 1999: the better the quadratic model predicted the loss, the less damping
            damping, growth = max(_LEAST_DAMPING, damping * max(1 / 5, 1 - (2 * gain - 1) ** 3)), 2.0
            slow = slow + 1 if loss - new < 2e-4 * loss else 0
            free, loss = free + step, new
            yield free
            if slow == 5:
                return

    def _value(self, ends: Tensor) -> float:
        return float(objective(ends, self.pairs.end, self.c2, self.law))

    @torch.no_grad()
    def _quasi_newton(self, free: Tensor, rounds: int, generator: torch.Generator) -> Iterator[Tensor]:
        """L-BFGS (Nocedal 1980) on y, free + scaling y, in which the Gauss-Newton matrix of the first term is I."""
        ends = self.ends(free)
        unit = self._value(ends)
        with torch.enable_grad():
            curvature = self.normal_equations(free, ends, generator)[1] / unit
        diagonal = curvature.diagonal().clamp_min(1e-12 * curvature.diagonal().max())
        scaling = torch.linalg.inv(torch.linalg.cholesky(curvature + _RIDGE * torch.diag(diagonal))).T
        y = torch.zeros_like(free).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [y], max_iter=1, max_eval=20, history_size=rounds, tolerance_grad=0, tolerance_change=0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = objective(self.ends(free + scaling @ y), self.pairs.end, self.c2, self.law) / unit
            value.backward()
            return value.detach()

        for _ in range(rounds):
            before = y.detach().clone()
            with torch.enable_grad():
                optimizer.step(loss)
            if torch.equal(before, y):
                return
            yield free + scaling @ y.detach()
