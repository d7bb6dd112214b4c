"""Targets on which solvers are compared: mixtures whose exact ODE map is known to rounding.

    2d    8 narrow components in 2-D, standard deviations 0.07 to 0.38
    64d   10 components of rank 4 in 64-D, standard deviation 0.056 off them

Both are standardised: mean 0, variance 1. Noise goes from sigma/alpha = 157 (DDPM's table) to 0.01 or from 80 to
0.002 (EDM). The same noise goes through the exact probability flow and through a solver; `errors` is the distance of
the ends, divided by sqrt(D), in the units of the data: the root of its mean square and its median over the points.
The exact ends are computed once and kept in build/solver_targets.

    rms, median = errors(sf.solvers.Multistep(3), "2d", calls=10)          # a solver, on any schedule
    rms, median = errors(plan, "64d", "edm", schedule=curve)               # a Plan, on the schedule it was built for
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import exact, noise, solvers
from sfumato.belief import Estimate
from sfumato.exact.flow import Level, follow
from sfumato.process import Gaussian
from sfumato.schedule import Schedule, Time
from sfumato.schedules import VE
from sfumato.solvers import Plan, Solver

F64 = torch.float64
CACHE = Path(__file__).resolve().parent.parent / "build" / "solver_targets"
RANGES = {"ddpm": (157.0, 0.01), "edm": (80.0, 0.002)}  # sigma/alpha at the start and at the end
SEEDS = (0, 1, 2, 3)
POINTS = 1000  # for each seed
CALLS = (5, 8, 10, 15, 20, 35, 50, 100)


class Spectral(NamedTuple):
    """sum_k w_k N(m_k, U_k diag(c_k) U_k^T + rest (I - U_k U_k^T)): means (K, D), U (K, D, R), c (K, R)."""

    log_weights: Tensor
    means: Tensor
    basis: Tensor
    spectra: Tensor
    rest: float

    def mixture(self) -> exact.GaussianMixture:
        """The same law as the package knows it."""
        inside = torch.einsum("kir,kr,kjr->kij", self.basis, self.spectra - self.rest, self.basis)
        covs = inside + self.rest * torch.eye(self.means.shape[1], dtype=F64)
        return exact.GaussianMixture(self.log_weights.exp(), self.means, (covs + covs.mT) / 2)

    def moments(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(E[x|z], E[eps|z]) for z (B, D), alpha and sigma (B, 1): in R instead of D numbers a component."""
        w, s2 = z / alpha, (sigma / alpha) ** 2  # x + sigma/alpha eps
        k, d, r = self.basis.shape
        flat = self.basis.transpose(0, 1).reshape(d, k * r)
        inner = (w @ flat).reshape(-1, k, r) - torch.einsum("kd,kdr->kr", self.means, self.basis)
        square = w.square().sum(-1, keepdim=True) - 2 * w @ self.means.T + self.means.square().sum(-1)
        outer = (square - inner.square().sum(-1)).clamp_min(0.0) if r < d else torch.zeros_like(square)
        v, v_rest = self.spectra + s2[..., None], self.rest + s2
        logs = -0.5 * ((inner.square() / v + v.log()).sum(-1) + outer / v_rest + (d - r) * v_rest.log())
        weights = torch.softmax(self.log_weights + logs, -1)
        gain = self.rest / v_rest
        along = weights[..., None] * (self.spectra / v - gain[..., None]) * inner
        x = (1 - gain) * (weights @ self.means) + gain * w + along.flatten(1) @ flat.T
        return x, (w - x) * alpha / sigma


def _standardised(means: Tensor, inside: Tensor) -> Tensor:
    """Equally weighted means, moved and stretched so that the law has mean 0 and covariance I around `inside`."""
    centred = means - means.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(means))
    wanted = torch.linalg.cholesky(torch.eye(means.shape[1], dtype=F64) - inside)
    return centred @ (vectors / values.sqrt()) @ wanted.T


def _orthonormal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.linalg.qr(torch.randn(*shape, generator=g, dtype=F64))[0]


def _plane(seed: int) -> Spectral:
    g = torch.Generator().manual_seed(1000 + seed)
    stds = 0.07 + (0.38 - 0.07) * torch.rand(8, 2, generator=g, dtype=F64)
    basis = _orthonormal(g, 8, 2, 2)
    inside = torch.einsum("kir,kr,kjr->ij", basis, stds**2, basis) / 8
    means = _standardised(torch.randn(8, 2, generator=g, dtype=F64), inside)
    return Spectral(torch.full((8,), -math.log(8), dtype=F64), means, basis, stds**2, 0.0)


def _ranks(seed: int) -> Spectral:
    """Of the variance three quarters lie between the components and a quarter within them."""
    g = torch.Generator().manual_seed(2000 + seed)
    rest, within, k, d, r = 0.056**2, 0.25, 10, 64, 4
    spectra = torch.rand(k, r, generator=g, dtype=F64) + 0.5
    spectra = spectra * (within * d - (d - r) * rest) / (spectra.sum() / k)
    means = torch.randn(k, d, generator=g, dtype=F64)
    means = means - means.mean(0)
    means = means * math.sqrt((1 - within) * d / float(means.square().sum() / k))
    return Spectral(torch.full((k,), -math.log(k), dtype=F64), means, _orthonormal(g, k, d, r), spectra, rest)


TARGETS = {"2d": _plane, "64d": _ranks}


@functools.cache
def law(target: str, seed: int) -> Spectral:
    return TARGETS[target](seed)


class Exact:
    """The optimal denoiser of a target under any schedule, as a model that solvers can call."""

    def __init__(self, target: str, seed: int, schedule: Schedule) -> None:
        self.law, self.process = law(target, seed), Gaussian(schedule)
        self.shape = (self.law.means.shape[1],)

    def __call__(self, z: Tensor, t: Time, **cond: Any) -> Estimate:
        alpha, sigma = (c.expand(len(z))[:, None] for c in self.process.schedule(t))
        x, eps = self.law.moments(z, alpha, sigma)
        return Estimate(z, t, self.process.schedule, x=x, eps=eps)


class Ends(NamedTuple):
    """Noise (B, D) and where the exact flow takes high * noise: to the level `low` and to the data, in units of x."""

    noise: Tensor
    level: Tensor
    clean: Tensor


@functools.cache
def ends(target: str, levels: str, seed: int, points: int = POINTS) -> Ends:
    """From the cache, or computed: `exact.flow.follow` with an error below 1e-11 a step."""
    path = CACHE / f"{target}-{levels}-{seed}-{points}.pt"
    source, (high, low) = law(target, seed), RANGES[levels]
    key = torch.cat([part.flatten() for part in source[:4]])
    if path.exists():
        stored = torch.load(path, weights_only=True)
        if stored["law"].shape == key.shape and torch.allclose(stored["law"], key, rtol=1e-12, atol=1e-14):
            return Ends(stored["noise"], stored["level"], stored["clean"])
    start = noise.normal(seed, torch.arange(points), tuple(source.means.shape[1:]), dtype=F64)
    level = _flow(source, high * start, high, low)
    made = Ends(start, level, _flow(source, level, low, 0.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"law": key, **made._asdict()}, path)
    return made


def _flow(source: Spectral, z: Tensor, high: float, low: float) -> Tensor:
    def read(z: Tensor, alpha: Tensor, sigma: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        shape = z.shape
        x, eps = source.moments(z.reshape(-1, shape[-1]), alpha.reshape(-1, 1), sigma.reshape(-1, 1))
        return x.reshape(shape), eps.reshape(shape)

    one = torch.ones(len(z), dtype=F64)
    centre = torch.zeros(z.shape[1], dtype=F64)
    return follow(read, z, Level(one, high * one), Level(one, low * one), centre, 1.0, 1e-11)


def span(schedule: Schedule, levels: str) -> tuple[float, float]:
    """(t_start, t_stop) of a range on a schedule that holds it."""
    high, low = RANGES[levels]
    return float(schedule.time(-2 * math.log(high))), float(schedule.time(-2 * math.log(low)))


def schedule_of(levels: str, end: str = "level") -> Schedule:
    """The variance-exploding schedule that starts where the range does.

    end="clean": it ends there as well, so that a last step goes on to the clean signal. "level": it goes on below, so
    that the range's end is a noise level as any other (t = 0 means the clean signal).
    """
    high, low = RANGES[levels]
    return VE(low if end == "clean" else low / 4, high)


def distances(
    solver: Plan | Solver,
    target: str,
    levels: str = "ddpm",
    calls: int | None = None,
    seeds: Iterable[int] = SEEDS,
    schedule: Schedule | None = None,
    end: str = "level",
) -> Tensor:
    """|solver's end - exact end| / sqrt(D) of every point of every seed.

    A Plan runs on the schedule it was built for, by default the one of `schedule_of`, and is compared where it ends; of
    a Solver the plan with at most `calls` calls is taken. end="clean" runs it to the clean signal (t = 0) instead of
    the last noise level.
    """
    clean = solver.stop == 0 if isinstance(solver, Plan) else end == "clean"
    curve = schedule or schedule_of(levels, "clean" if clean else "level")
    plan = solver if isinstance(solver, Plan) else with_calls(solver, curve, levels, calls or 20, end)
    alpha_stop = plan.path[-1][0]
    found = []
    for seed in seeds:
        known = ends(target, levels, seed)
        sigma_start = float(curve.sigma(plan.times[0]))
        with torch.no_grad():
            *_, last = plan.run(Exact(target, seed, curve), sigma_start * known.noise)
        gap = last.z / alpha_stop - (known.clean if clean else known.level)
        found.append(gap.square().mean(-1).sqrt())
    return torch.cat(found)


def with_calls(solver: Solver, schedule: Schedule, levels: str, calls: int, end: str = "level") -> Plan:
    """The plan of most steps with at most this many calls."""
    start, stop = span(schedule, levels)
    for steps in range(calls, 0, -1):
        plan = solver.plan(schedule, steps, start, stop if end == "level" else 0.0)
        if plan.calls <= calls:
            return plan
    raise ValueError(f"{solver} has no plan of {calls} calls")


def summary(gaps: Tensor) -> tuple[float, float]:
    """(root of the mean square, median)."""
    return float(gaps.square().mean().sqrt()), float(gaps.median())


def errors(
    solver: Plan | Solver, target: str, levels: str = "ddpm", calls: int | None = None, **options: Any
) -> tuple[float, float]:
    """(RMS, median) of `distances`, which says what the options are."""
    return summary(distances(solver, target, levels, calls, **options))


def rows(solver: Solver, calls: Iterable[int] = CALLS, **options: Any) -> Iterator[tuple[str, str, int, float, float]]:
    """(target, range, calls, RMS, median) for every target and range."""
    for target in TARGETS:
        for levels in RANGES:
            for count in calls:
                yield target, levels, count, *errors(solver, target, levels, count, **options)


def check(target: str, points: int = 8) -> float:
    """The largest distance between the ends in the cache and `exact.GaussianMixture.flow`, which shares no formula."""
    worst = 0.0
    for levels, (high, low) in RANGES.items():
        curve = VE(low, high)
        for seed in SEEDS:
            known = ends(target, levels, seed)
            z = law(target, seed).mixture().flow(high * known.noise[:points], 1.0, 0.0, Gaussian(curve))
            worst = max(worst, float((z - known.level[:points]).abs().max()))
    return worst


if __name__ == "__main__":
    for name in TARGETS:
        print(f"{name}: the cached ends agree with exact.GaussianMixture.flow to {check(name):.1e}")
    for row in rows(solvers.default(exact=True)):
        print("{:>4} {:>5} {:4d} calls   rms {:.2e}   median {:.2e}".format(*row))
