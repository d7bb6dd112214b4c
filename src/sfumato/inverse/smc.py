"""Twisted sequential Monte Carlo: weighted particles, whose law is p(x | y) as their number grows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sfumato import particles
from sfumato.belief import Transition
from sfumato.errors import SfumatoError
from sfumato.inverse.measurement import Local, Measurement, local
from sfumato.inverse.method import Method
from sfumato.machine import in_parts
from sfumato.noise import PRIOR, STEP, Noise
from sfumato.registry import register
from sfumato.solvers import grids
from sfumato.state import numbers_like

MOST_NUMBERS = 256  # of a sample and of a measurement: a product for each of them is made at every step


class Cloud(NamedTuple):
    """Particles at the end of the walk.

    x (K, *shape), normalised; log_weights (K,); ancestors (K,), the first particle that each comes from; log_evidence:
    the mean of all weights so far, log p(y).
    """

    x: Tensor
    log_weights: Tensor
    ancestors: Tensor
    log_evidence: float

    @property
    def error(self) -> float:
        """The standard error of log p(y): sqrt(sum_a (W_a - 1/K)^2), W_a the share of the descendants of particle a.

        Source: Chan and Lai 2013; without resampling the error of importance sampling.
        """
        count = len(self.x)
        share = torch.zeros(count, dtype=torch.float64).index_add_(0, self.ancestors, self.log_weights.softmax(0))
        return float((share - 1 / count).square().sum().sqrt())


class Look(NamedTuple):
    """One call for particles z (B, *shape): E[x|z], its change by the measurement, Cov(x|z) as float64 (B, D, D), and
    the log of the twist, float64 (B,)."""

    x: Tensor
    change: Tensor
    covariance: Tensor
    log_twist: Tensor


@register("method", "smc")
@dataclasses.dataclass(frozen=True)
class SMC(Method):
    """Particles that move by ancestral steps with E[x|z, y], weighted by what that changes, and resampled.

        z_s ~ N(a z_t + b E[x|z_t, y], c^2 + b^2 C),   C = Cov(x|z_t)          a, b, c of the posterior q(z_s | z_t, x)
        w <- w p(z_s | z_t) / p(z_s | z_t, y) tw(z_s) / tw(z_t),   tw(z) = N(y; A E[x|z], A C A^T + s^2)

    With the covariance C, D products with the model's Jacobian for samples of D numbers, a step has the right two
    moments, so that few steps have the right law. The last twist is p(y | x) itself, so that weighted means are exact
    as the particles grow in number, also for operators that are not linear, and the mean weight is p(y).
    twist: mmps (C from the model's Jacobian) or pigdm (C = r^2); of an operator that is not linear the moments of A(x)
    are those of points around E[x|z]. Systematic resampling where the effective sample size is below half, and at the
    end.
    Source: Wu et al. 2023 (2306.17775).
    """

    twist: str = "mmps"
    noisy: ClassVar[bool] = True
    usual_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        if self.twist not in ("mmps", "pigdm"):
            raise SfumatoError(f"The twist of SMC is mmps or pigdm, not {self.twist!r}.")

    def check(self, measurement: Measurement) -> None:
        super().check(measurement)
        numbers = max(measurement.size, math.prod(measurement.shape))
        if numbers > MOST_NUMBERS:
            raise SfumatoError(
                f"SMC takes samples and measurements of at most {MOST_NUMBERS} numbers, not of {numbers:,}, where its "
                "particles would collapse to one: use mmps, or dps if the operator is not linear."
            )

    def run(
        self, model: Any, measurement: Measurement, count: int, steps: int, seed: int, batch: int, cond: Any
    ) -> Cloud:
        """`count` particles. cond: their conditions, encoded, with `rows`."""
        process, index = model.process, torch.arange(count)
        noise = Noise(seed, index, STEP)
        times = grids.auto().times(process.schedule, steps)
        z = process.prior(Noise(seed, index, PRIOR).normal(measurement.shape))
        z, ancestors, evidence = z.to(getattr(model, "device", z.device)), index, 0.0
        look = self._look(model, measurement, z, times[0], batch, cond)
        log_w = look.log_twist
        for k, (t, s) in enumerate(zip(times[:-2], times[1:-1], strict=True)):
            if float(particles.effective(log_w[None])) < count / 2:
                evidence += float(particles.log_mean(log_w[None]))
                keep = survivors(log_w, noise.at(k))
                z, ancestors, log_w = z[keep], ancestors[keep], torch.zeros_like(log_w)
                look, cond = Look(*(part[keep] for part in look)), cond.rows(keep)
            z, log_ratio = _step(process.posterior(s, t), z, look, numbers_like(noise.at(k), z))
            before, look = look, self._look(model, measurement, z, s, batch, cond)
            log_w = log_w + log_ratio + look.log_twist - before.log_twist
        log_w = log_w + measurement.log_likelihood(look.x).cpu() - look.log_twist
        return Cloud(look.x, log_w, ancestors, evidence + float(particles.log_mean(log_w[None])))

    def _look(self, model: Any, measurement: Measurement, z: Tensor, t: float, batch: int, cond: Any) -> Look:
        def some(rows: Tensor) -> Look:
            at = local(model, measurement, z[rows], t, **cond.rows(rows))
            covariance = _symmetric(at.scale * _matrix(at.back, at.x))
            at = dataclasses.replace(at, back=lambda v: _times(covariance / at.scale, v))
            if measurement.linear:
                twist = at.jacobian_covariance if self.twist == "mmps" else at.isotropic_covariance
                u, log_twist = _solved(_symmetric(_matrix(twist, at.residual)), at.residual, measurement.unit)
                change = at.move(u)
            else:
                change, log_twist = _by_points(at, covariance)
            return Look(at.x, change, covariance, log_twist.cpu())

        parts = in_parts(some, torch.arange(len(z)), batch)
        return Look(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _matrix(product: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The matrix (B, D, D), float64, of a linear map of rows like (B, *shape), column by column."""
    one = torch.eye(like[0].numel(), dtype=like.dtype, device=like.device)
    columns = [product(e.reshape(like.shape[1:]).expand_as(like)).flatten(1) for e in one]
    return torch.stack(columns, -1).double()


def _symmetric(matrix: Tensor) -> Tensor:
    """The nearest symmetric matrix without negative eigenvalues: that of a network's Jacobian may be neither."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return (vectors * values.clamp_min(0)[:, None]) @ vectors.mT


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix.to(v) @ v.flatten(1)[..., None]).reshape(v.shape)


def _step(step: Transition, z: Tensor, look: Look, n: Tensor) -> tuple[Tensor, Tensor]:
    """(z_s drawn with the measurement, log of its density without the measurement over that with it, float64 (B,))."""
    one = torch.eye(n[0].numel(), dtype=torch.float64, device=n.device)
    root = torch.linalg.cholesky(step.x**2 * look.covariance + step.std**2 * one)
    n = n.flatten(1).double()[..., None]
    shift = torch.linalg.solve_triangular(root, step.x * look.change.double().flatten(1)[..., None], upper=False)
    moved = step.z * z + step.x * (look.x + look.change) + (root @ n).reshape(z.shape)
    return moved.to(z.dtype), -(n * shift + 0.5 * shift.square()).sum((1, 2)).cpu()


def survivors(log_w: Tensor, noise: Noise, count: int | None = None) -> Tensor:
    """Which particles are kept, (count,): as many as there are, or `count`."""
    u = noise.rows(slice(0, 1)).fold("resampling").uniform((), dtype=torch.float64)
    return particles.systematic(log_w[None], u, count)[0]


def _solved(matrix: Tensor, residual: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """(K^-1 r, log N(r; 0, K) in the units of y) for the covariance K of the residual r, (B, m, m)."""
    r = residual.flatten(1).double()[..., None]
    root = torch.linalg.cholesky(matrix)
    u = torch.cholesky_solve(r, root)[..., 0]
    log = -0.5 * (r[..., 0] * u).sum(1) - root.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = r.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(unit))
    return u.reshape(residual.shape).to(residual.dtype), log - constant


def _by_points(at: Local, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """(change of E[x|z], log of the twist) where A is not linear, by the moments of A(x) under N(E[x|z], Cov(x|z)).

    The moments are sums over E[x|z] and E[x|z] +- sqrt(3) along each axis of the covariance, exact for the third powers
    of each axis (Julier and Uhlmann 2004); the weights of the points are 1 - D / 3 and 1 / 6.
    """
    x, dim = at.x.flatten(1).double(), covariance.shape[1]
    values, axes = torch.linalg.eigh(covariance)
    along = math.sqrt(3) * (axes * values.clamp_min(0).sqrt()[:, None]).mT
    offsets = torch.cat((torch.zeros_like(along[:, :1]), along, -along), 1)
    points = (x[:, None] + offsets).reshape(-1, *at.x.shape[1:]).to(at.x)
    measured = at.measurement.measure(points).double().reshape(len(x), 2 * dim + 1, -1)
    weights = torch.full((2 * dim + 1, 1), 1 / 6, dtype=torch.float64, device=x.device)
    weights[0] = 1 - dim / 3
    mean = (weights * measured).sum(1, keepdim=True)
    deviation = measured - mean
    noise = at.measurement.variance(x).expand(at.measurement.y.shape).flatten()
    matrix = _symmetric((weights * deviation).mT @ deviation) + noise.diag()
    residual = at.measurement.y.to(x).flatten() - mean[:, 0]
    u, log_twist = _solved(matrix, residual, at.measurement.unit)
    change = ((weights * offsets).mT @ deviation @ u[..., None]).reshape(at.x.shape)
    return change.to(at.x), log_twist
