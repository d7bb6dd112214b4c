"""The error budget of a sampler on a known distribution: four sources of error, each alone and all together.

Noise xi ~ N(0, I) has the exact sample x* = Phi(xi), by the probability flow from pure noise to clean data, and the
displacement d = (the sampler's output for xi) - x*. Each source is switched on alone:

    initialisation   Phi(sigma(1) xi) - x*          the prior instead of the noised data
    truncation       the exact flow ends like the sampler: at t_stop > 0, or by a straight step from sigma(0) > 0
    discretisation   the plan instead of the flow, from the exact start, with the exact denoiser
    score            the model instead of the exact denoiser, along the flow

Coupled through xi, sqrt(E |d|^2) is an upper bound of the Wasserstein-2 distance; for a single Gaussian, whose maps are
symmetric, the two are equal. To first order the displacements add up, sum_i d_i = d, and so do the shares
E<d_i, d> / sqrt(E |d|^2); the rest is the interaction.
Source: Chen et al. 2022 (2209.11215), Theorem 2, for the first three sources; Peyre and Cuturi 2019 (1803.00567),
Remark 2.31, for Gaussians.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import resolve
from sfumato.errors import SfumatoError
from sfumato.exact import Truth
from sfumato.exact.mixture import GaussianSum
from sfumato.machine import default_cpu
from sfumato.model import Model
from sfumato.probability_flow import Field, Track, exact_law
from sfumato.process import Gaussian
from sfumato.process.gaussian import require_numbers
from sfumato.sampling import sample
from sfumato.schedules import Flow
from sfumato.solver_selection import AnySolver, make_plan

SOURCES = ("initialisation", "truncation", "discretisation", "score")
_FINE_STEPS = 256


@dataclasses.dataclass(frozen=True)
class Budget:
    """Root mean squares of the displacements, in the units of the model's data.

    alone: each source by itself; shares: the contribution of each to `total`, negative if it cancels others;
    interaction: total - sum of the shares; points: the number of draws (0: exact, by the linear maps of one Gaussian).
    """

    alone: dict[str, float]
    shares: dict[str, float]
    total: float
    points: int
    plan: str

    @property
    def interaction(self) -> float:
        return self.total - math.fsum(self.shares.values())

    def __str__(self) -> str:
        how = f"{self.points} points" if self.points else "closed form"
        lines = [
            f"{self.plan}: distance to the exact distribution {self.total:.4g} ({how})",
            f"{'source':>16} {'alone':>10} {'share':>10}",
        ]
        lines += [f"{name:>16} {self.alone[name]:10.3g} {self.shares[name]:+10.3g}" for name in SOURCES]
        return "\n".join([*lines, f"{'interaction':>16} {'':10} {self.interaction:+10.3g}"])


class _Ends:
    """The exact flow between pure noise, the process's levels and clean data, computed on the flow schedule."""

    def __init__(self, truth: Truth, process: Gaussian, label: Any) -> None:
        self.truth, self.schedule, self.label = truth, process.schedule, label
        self.path = Gaussian(Flow())

    def _level(self, t: float) -> tuple[float, float]:
        """(flow time, alpha + sigma)."""
        alpha, sigma = (float(v) for v in self.schedule(t))
        return sigma / (alpha + sigma), alpha + sigma

    def start(self, xi: Tensor) -> Tensor:
        """z_1 of the noised data."""
        tau, norm = self._level(1.0)
        return norm * self.truth.flow(xi, 1.0, tau, self.path, self.label)

    def move(self, z: Tensor, t: float, s: float | None) -> Tensor:
        """z_s from z_t, or the clean data where s is None."""
        tau, norm = self._level(t)
        end, factor = (0.0, 1.0) if s is None else self._level(s)
        return factor * self.truth.flow(z / norm, tau, end, self.path, self.label)


@default_cpu()
def error_budget(
    model: Model,
    truth: Truth | None = None,
    steps: int | None = None,
    solver: AnySolver | None = None,
    t_stop: float = 0.0,
    n: int = 1000,
    seed: int = 0,
    label: Any = None,
) -> Budget:
    """The error budget of a deterministic sampler of `model`, for data with the exact distribution `truth`.

    truth: in the model's units; by default that of the model itself, if it is exact. States at t_stop > 0 count as
    z / alpha. n: the number of noise draws; if model and truth are one Gaussian each, none are needed and the result is
    exact.
    """
    require_numbers(model, "The error budget of a flow", "compare the distributions of its samples and of the data")
    law = exact_law(model)
    if truth is None:
        if law is None:
            raise SfumatoError("An error budget needs the exact distribution of the data: pass truth=...")
        truth = law.truth
    plan = make_plan(model, steps, solver, 1.0, t_stop)
    if plan.stochastic:
        raise SfumatoError(f"{plan.name} is stochastic, but an error budget needs a deterministic solver: use eta = 0.")
    linear = _one_gaussian(truth) and law is not None and _one_gaussian(law.truth)
    xi = _sigma_points(truth) if linear else noise.normal(seed, range(n), truth.shape, dtype=torch.float64)
    displacements = _displacements(model, truth, plan, xi, t_stop, label)
    d = {name: each.flatten(1) for name, each in displacements.items()}
    total = float(d["total"].square().sum(1).mean().sqrt())
    alone = {name: float(d[name].square().sum(1).mean().sqrt()) for name in SOURCES}
    shares = {name: float((d[name] * d["total"]).sum(1).mean()) / (total or 1.0) for name in SOURCES}
    return Budget(alone, shares, total, 0 if linear else n, plan.name)


def _displacements(model: Model, truth: Truth, plan: Any, xi: Tensor, t_stop: float, label: Any) -> dict[str, Tensor]:
    process = model.process
    optimal: Any = truth.denoiser(process)
    ends = _Ends(truth, process, label)
    alpha = float(process.schedule.alpha(t_stop))
    straight = t_stop == 0 and float(process.schedule.sigma(0.0)) > 0

    def finish(z: Tensor, by: Model) -> Tensor:
        """The sample from the state at t_stop."""
        if straight:
            return by(z, 0.0, **resolve(by, {"label": label}, len(z))).x
        return z / alpha

    def run(by: Model, z: Tensor) -> Tensor:
        out = sample(by, solver=plan, z=z, t_stop=t_stop, label=label, normalised=True, batch=len(z))
        return out.to(torch.float64) / (alpha if t_stop > 0 else 1.0)

    prior, start = process.prior(xi), ends.start(xi)
    exact = ends.move(start, 1.0, None)
    stopped = finish(ends.move(start, 1.0, t_stop), optimal)
    score = torch.zeros_like(xi)
    law = exact_law(model)
    if law is None or law.truth is not truth:
        score = _follow(model, start, t_stop, label, finish) - _follow(optimal, start, t_stop, label, finish)
    return {
        "initialisation": ends.move(prior, 1.0, None) - exact,
        "truncation": stopped - exact,
        "discretisation": run(optimal, start) - stopped,
        "score": score,
        "total": run(model, prior) - exact,
    }


def _follow(model: Model, z: Tensor, t_stop: float, label: Any, finish: Callable[[Tensor, Model], Tensor]) -> Tensor:
    """The end of the model's own flow from z, in steps so fine that the solver's error is negligible."""
    schedule = model.process.schedule
    ratio = float(torch.exp(-schedule.logsnr(t_stop) / 2))
    track = Track.of(schedule, _FINE_STEPS, 1.0, ratio if ratio > 0 else None)
    field = Field(model, track, resolve(model, {"label": label}, len(z)))
    *_, (_, w) = field.walk(z / track.norm[-1], back=True)
    return finish(field.state(w, 0), model).to(torch.float64)


def _one_gaussian(truth: Truth) -> bool:
    return isinstance(truth, GaussianSum) and len(truth.log_weights) == 1


def _sigma_points(truth: Truth) -> Tensor:
    """+- sqrt(D) e_i, of mean 0 and covariance I: exact for mean squares of affine functions of the noise."""
    one = math.sqrt(truth.dim) * torch.eye(truth.dim, dtype=torch.float64)
    return torch.cat((one, -one)).reshape(-1, *truth.shape)
