"""Samples of a tilted law, prod_i p_i^(g_i): what guidance is believed to sample, by weighted particles.

    target at every level   pi_t(z) prop. to prod_i p_t(z | c_i)^(g_i)
    proposal                the reverse SDE, with noise of any size, and eps = sum_i g_i eps_i
    weights                 d log w = 1/2 (|sum_i g_i eps_i|^2 - sum_i g_i |eps_i|^2) d logsnr

so that guidance has g (g - 1) / 2 |eps_c - eps_u|^2. The start is a Gaussian of variance sigma^2 / sum_i g_i. Particles
are resampled (`particles.systematic`) where fewer than half of them count. Any exponents serve, negative ones too, as
long as their sum is above 0 and the product is a law: f z, the linear part of the SDE, adds a constant alone, (sum_i
g_i - 1) D d log alpha. Source: Skreta et al. 2025 (2503.02819), Feynman-Kac correctors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Estimate
from sfumato.compose import Wrapped, alike
from sfumato.conditions import resolve
from sfumato.errors import SfumatoError, whole
from sfumato.intervals import Interval
from sfumato.machine import default_cpu
from sfumato.model import compute_dtype, usable
from sfumato.noise import PRIOR, STEP, Noise
from sfumato.particles import effective, log_mean, systematic
from sfumato.process.gaussian import require_numbers
from sfumato.schedule import Time, as_time
from sfumato.solvers import SASolver, grids
from sfumato.state import numbers

FAINTEST = -8.0  # logsnr at the start, where the data are less than 2 % of the noise and their mean is known
STEPS = 200
TAU = 1.5  # of the noise where the exponents sum to 1: more of it keeps states nearer to the target


class Tilted(Wrapped):
    """eps = sum_i g_i eps_i of models under their conditions: the score of prod_i p_t^(g_i), which is the noised tilted
    law at no level between the ends. Its belief has `rate`, d log w / d logsnr, (B,). As a model of its own it samples
    what guidance does."""

    def __init__(self, terms: Sequence[tuple[Any, Mapping[str, Any], float]]) -> None:
        super().__init__(terms[0][0])
        self.terms = list(terms)
        self.total = math.fsum(g for *_, g in terms)
        self.signals = abs(self.total - 1) < 1e-12  # else sum_i g_i x_i is not the x of this eps

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate:
        """cond: further conditions, which every term is told."""
        t = as_time(t)
        x, eps = torch.zeros_like(z), torch.zeros_like(z)
        squares = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        for model, own, g in self.terms:
            belief = model(z, t, **cond, **resolve(model, own, len(z)).to(z.device))
            x, eps = x + g * belief.x, eps + g * belief.eps
            squares = squares + g * belief.eps.double().square().flatten(1).sum(1)
        found = Estimate(z, t, self.process.schedule, x=x, eps=eps)
        if not self.signals:
            found = Estimate(z, t, self.process.schedule, eps=eps)
        found.__dict__["rate"] = (found.eps.double().square().flatten(1).sum(1) - squares) / 2
        return found


@dataclasses.dataclass(frozen=True)
class TiltedSamples:
    """x: samples (n, *shape), in user units if the model has a data spec. ess: the effective sample size before each
    step as a share of the particles, (steps,), the least of all groups. log_z: log int prod_i p_i(x)^(g_i) dx in nats,
    in the model's units, with its standard error. resampled: how often, over all groups."""

    x: Tensor
    ess: Tensor
    log_z: Interval
    resampled: int

    def __str__(self) -> str:
        return (
            f"{len(self.x):,} samples; at least {float(self.ess.min()):.0%} of the particles counted at every step; "
            f"log Z = {self.log_z.value:.4g} +- {self.log_z.stderr:.2g} nats"
        )


class Tilt:
    """The law prop. to prod_i p(x | c_i)^(g_i), from terms (model, conditions, exponent)."""

    def __init__(self, terms: Sequence[tuple[Any, Mapping[str, Any] | None, float]]) -> None:
        if not terms or any(len(term) != 3 for term in terms):
            raise SfumatoError("tilt takes terms (model, {condition: value}, exponent), at least one.")
        first = usable(terms[0][0], "tilt")
        require_numbers(first, "tilt", "guide it with sf.guide")
        made = [(alike(usable(model, "tilt"), first), dict(cond or {}), float(g)) for model, cond, g in terms]
        self.model = Tilted(made)
        if not all(math.isfinite(g) for *_, g in made) or self.model.total <= 0:
            raise SfumatoError(
                "The exponents of tilt must be finite with a sum above 0, or there is no law; they sum to "
                f"{self.model.total:g}."
            )

    @default_cpu()
    def sample(
        self, n: int = 1, particles: int = 1024, steps: int = STEPS, seed: int = 0, correct: int = 0,
        normalised: bool = False,
    ) -> TiltedSamples:  # fmt: skip
        """n samples, from as many groups of `particles` as they need, each with weights and a log Z of its own.

        Samples of one group are not independent: those that survive share ancestors (`ess`). More particles bring the
        law nearer, more steps too, as 1 / steps^2. correct: Langevin steps at each level, one call each, which move
        copies apart (a predictor-corrector); the steps between are of order 1 then, so that many are needed. A sample
        is a function of (seed, particles, steps, correct) and its number.
        """
        n, particles, steps = whole("n", n), whole("particles", particles, 2), whole("steps", steps, 2)
        seed, correct = whole("seed", seed, None), whole("correct", correct, 0)
        groups = [_Group(self.model, particles, steps, seed, k, correct) for k in range(math.ceil(n / particles))]
        with default_cpu(), torch.no_grad():
            found = [group.run(min(particles, n - k * particles)) for k, group in enumerate(groups)]
        x = torch.cat([rows for rows, *_ in found])
        spec = getattr(self.model, "spec", None)
        x = x if normalised or spec is None else spec.denormalise(x)
        ess = torch.stack([share for _, share, *_ in found]).amin(0)
        log_z = _pooled([z for *_, z, _, _ in found], [v for *_, v, _ in found])
        return TiltedSamples(x, ess, log_z, sum(count for *_, count in found))


class _Group:
    """K particles that are weighted and resampled together."""

    def __init__(self, model: Tilted, particles: int, steps: int, seed: int, number: int, correct: int) -> None:
        self.model, self.seed, self.number, self.correct = model, seed, number, correct
        self.index = torch.arange(number * particles, (number + 1) * particles, device="cpu")
        schedule = model.process.schedule
        self.start = float(schedule.time(schedule.logsnr(torch.tensor(1.0, dtype=torch.float64)).clamp_min(FAINTEST)))
        row, tau = ("x", TAU) if model.signals else ("eps", 1.0)
        order = 1 if correct else 2  # moves between two calls leave no line to go on along
        solver = SASolver(predictor=order, corrector=0, tau=tau, row=row, grid=grids.LogSNR())
        self.plan = solver.plan(model.process, steps, self.start)

    def run(self, n: int) -> tuple[Tensor, Tensor, float, float, int]:
        """(n samples, ESS share of each step, log Z, the variance of log Z, how often it resampled)."""
        schedule = self.model.process.schedule
        z = self._prior()
        walk = self.plan.start(self.model, z, Noise(self.seed, self.index, STEP))
        levels = schedule.logsnr(torch.tensor(self.plan.times, dtype=torch.float64)).tolist()
        log_w = torch.zeros(1, len(self.index), dtype=torch.float64)
        eve, log_z, before = torch.arange(len(self.index)), self._constant(z[0].numel()), None
        variance, count, shares = 0.0, 0, []
        for k, t in enumerate(self.plan.times):
            self._langevin(walk, k, t)
            belief = self.model(walk.z, t)
            rate = belief.__dict__["rate"].cpu()
            if before is not None:
                log_w = log_w + (levels[k] - levels[k - 1]) / 2 * (before + rate)  # the trapezoidal rule
            shares.append(float(effective(log_w)) / len(self.index))
            last = k == len(self.plan.times) - 1
            if last:
                variance = _lineage_variance(log_w, eve)
            if last or shares[-1] < 0.5:
                log_z, kept = log_z + float(log_mean(log_w)), self._kept(log_w, k)
                belief, rate, eve = belief.rows(kept.to(walk.z.device)), rate[kept], eve[kept]
                walk.select(kept, self.index)
                log_w, count = torch.zeros_like(log_w), count + (not last)
            walk.follow(belief)
            before = rate
        some = torch.arange(n) * len(self.index) // n  # spread over the particles, whose copies are neighbours
        return walk.z[some.to(walk.z.device)].cpu(), torch.tensor(shares), log_z, variance, count

    def _prior(self) -> Tensor:
        model = self.model
        shape = getattr(model, "shape", None)
        if shape is None:
            raise SfumatoError("The model does not define the shape of a sample, which tilt needs.")
        device, dtype = getattr(model, "device", None), compute_dtype(model.inner)
        n = numbers(Noise(self.seed, self.index, PRIOR), shape, device, dtype)
        sigma = float(model.process.schedule.sigma(self.start))
        eps = model(torch.zeros_like(n[:1]), self.start).eps  # -alpha / sigma times the means of the data
        return sigma * (n / math.sqrt(model.total) - eps / model.total)

    def _constant(self, size: int) -> float:
        """log of the start's integral of prod_i N(0, sigma^2)^(g_i), and of what the linear part of the SDE adds; 0
        where the exponents sum to 1."""
        alpha, sigma = (float(c) for c in self.model.process.schedule(self.start))
        g = self.model.total
        return size * ((1 - g) / 2 * math.log(2 * math.pi * sigma**2) - math.log(g) / 2 + (g - 1) * math.log(alpha))

    def _kept(self, log_w: Tensor, k: int) -> Tensor:
        u = noise.uniform(self.seed, torch.tensor([self.number]), (), noise.ORDER, step=k, dtype=torch.float64)
        return systematic(log_w, u)[0]

    def _langevin(self, walk: Any, k: int, t: float) -> None:
        """z <- z - r sigma eps + sigma sqrt(2 r - r^2 sum_i g_i) xi at the same level, r = 0.1 / sum_i |g_i|: moves
        that keep pi_t, exactly so near pure noise."""
        sigma = float(self.model.process.schedule.sigma(t))
        r = 0.1 / math.fsum(abs(g) for *_, g in self.model.terms)
        noise_size = sigma * math.sqrt(2 * r - r**2 * self.model.total)
        for j in range(self.correct):
            draw = Noise(self.seed, self.index, STEP, len(self.plan.times) * (j + 1) + k)
            xi = numbers(draw, tuple(walk.z.shape[1:]), walk.z.device, walk.z.dtype)
            walk.z = walk.z - r * sigma * self.model(walk.z, t).eps + noise_size * xi


def _lineage_variance(log_w: Tensor, eve: Tensor) -> float:
    """The relative variance of a group's Z from the shares of the weight by first ancestor (Chan and Lai 2013)."""
    shares = torch.zeros(len(eve), dtype=torch.float64).index_add_(0, eve, log_w[0].softmax(0))
    return float((shares - 1 / len(eve)).square().sum())


def _pooled(log_z: list[float], variances: list[float]) -> Interval:
    """The log of the mean of the groups' Z."""
    each = torch.tensor(log_z, dtype=torch.float64)
    share = each.softmax(0)
    error = float((share.square() * torch.tensor(variances, dtype=torch.float64)).sum().sqrt())
    value = float(each.logsumexp(0)) - math.log(len(log_z))
    return Interval(value, value - 1.96 * error, value + 1.96 * error, error)


def tilt(terms: Sequence[tuple[Any, Mapping[str, Any] | None, float]]) -> Tilt:
    """The law prop. to prod_i p(x | c_i)^(g_i): `sf.tilt([(model, {"label": 3}, 2.0), (model, {}, -1.0)]).sample(64)`.

    Guidance by a scale g is believed to sample [(model, cond, g), (model, {}, 1 - g)]; this does. Also negation,
    products of conditions or of models of the same data, and p^g. Models share one schedule and one unit.
    """
    return Tilt(terms)
