"""Samples of p(x | y) for a measurement y = A(x) + s n, by any of the methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import particles as weighted
from sfumato.conditions import resolve
from sfumato.errors import SfumatoError, whole
from sfumato.inverse.dps import DPS
from sfumato.inverse.measurement import Measurement
from sfumato.inverse.method import BeliefMethod, Conditioned, Method, StepMethod, Steps
from sfumato.inverse.mmps import MMPS
from sfumato.inverse.operators import Operator
from sfumato.inverse.replacement import RePaint
from sfumato.inverse.smc import MOST_NUMBERS, SMC, survivors
from sfumato.inverse.symbols import filled
from sfumato.machine import default_cpu
from sfumato.model import usable
from sfumato.noise import STEP, Noise, permutation
from sfumato.process import Masked
from sfumato.registry import make
from sfumato.sampling import refuse_arguments, sample
from sfumato.solver_selection import AnySolver, make_plan
from sfumato.solvers import Plan

PARTICLES = 1024
FEW = 64  # numbers, up to which particles are sure to cover the law
Words = str | Method  # a method, or its name with settings


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """Samples (n, *shape) of p(x | y) in user units, by which method and steps, and what particles say of the evidence.

    log_evidence: log p(y) in nats of the units of y, with its standard error; effective: how many of the particles
    count, (sum w)^2 / sum w^2, before the last resampling; ancestors: of how many first particles any survives. They
    are None for methods without particles.
    """

    samples: Tensor
    method: str
    steps: int
    log_evidence: float | None = None
    error: float | None = None
    effective: float | None = None
    ancestors: int | None = None

    @property
    def mean(self) -> Tensor:
        """The mean of the samples, (*shape), float64."""
        return self.samples.double().mean(0)

    @property
    def std(self) -> Tensor:
        """The standard deviation of the samples, (*shape), float64: the error bars."""
        return self.samples.double().std(0)


@default_cpu()
def condition_on(
    model: Any, y: Any, operator: Operator, noise: Any = 0.0, method: Words = "mmps", normalised: bool = False
) -> Conditioned:
    """The model of p(x | y), which every solver, plan and likelihood takes; method: mmps, tmpd, pigdm or ddnm."""
    chosen = make("method", method)
    if not isinstance(chosen, BeliefMethod):
        raise SfumatoError(f"{method} is a walk and no model: use mmps, tmpd, pigdm or ddnm, or sf.posterior.")
    return Conditioned(usable(model, "A posterior"), chosen, Measurement(model, y, operator, noise, normalised))


@default_cpu()
def posterior(
    model: Any,
    y: Any,
    operator: Operator,
    noise: Any = 0.0,
    method: Words = "auto",
    n: int = 16,
    steps: int | None = None,
    particles: int = PARTICLES,
    solver: AnySolver | None = None,
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    batch: int = 256,
    normalised: bool = False,
    **cond: Any,
) -> Posterior:
    """n samples of p(x | y) for the measurement y = A(x) + noise n, all in user units.

    operator: one of `sf.operators`; noise: the standard deviation of the measurement, a number or like y.
    method: auto, or a method with its settings, such as "mmps(iterations=10)". auto is smc, exact as the particles
    grow in number, where noise is above 0 and sample and measurement have at most 64 numbers (256 if the operator is
    not linear); for more, mmps, or repaint without noise, or dps if the operator is not linear.
    steps, solver: as in `sf.sample` (solver: of mmps, tmpd, pigdm and ddnm). particles: of smc, at least n; its samples
    are drawn from them, and depend on each other. index: sample numbers, as in `sf.sample`; a sample of the other
    methods is a function of its number. Conditions are keyword arguments. SfumatoError where a measurement is wrong.
    A model of masked symbols takes a `Mask` without noise: those that are known stay, the others are revealed around
    them (`inverse.symbols`).
    """
    refuse_arguments(posterior, usable(model, "posterior"), cond)
    if isinstance(model.process, Masked):
        if method != "auto":
            raise SfumatoError(f"{method} is a method of real numbers: leave it out for a model of symbols.")
        more = {"seed": seed, "index": index, "batch": batch, "normalised": normalised, **cond}
        x, steps = filled(model, y, operator, noise, n, steps, solver, more)
        return Posterior(x, "reveal" if solver is None else str(solver), steps)
    measurement = Measurement(model, y, operator, noise, normalised)
    found = way(model, measurement, method, n, steps, particles, solver)
    how = {"seed": seed, "batch": batch, "normalised": normalised, **cond}
    if isinstance(found.method, SMC):
        if index is not None:
            raise SfumatoError("The particles of smc are one sample together: leave index out, and set another seed.")
        return _of_particles(found.method, model, measurement, n, found.rows, found.steps, how)
    x = sample(found.model, n, solver=found.plan, index=index, **how)
    return Posterior(x, str(found.method), found.steps)


class Way(NamedTuple):
    """How samples of p(x | y) are drawn: rows (particles or samples) that call the model `calls` times each.

    model, plan: what `sample` walks along, (the model, None) for particles.
    """

    method: Method
    model: Any
    plan: Plan | None
    steps: int
    rows: int
    calls: int


@default_cpu()
def way(
    model: Any, measurement: Measurement, method: Words = "auto", n: int = 16, steps: int | None = None,
    particles: int = PARTICLES, solver: AnySolver | None = None,
) -> Way:  # fmt: skip
    """The way that `posterior` takes for a measurement with these arguments, before anything is drawn."""
    chosen = _automatic(measurement) if method == "auto" else make("method", method)
    if not isinstance(chosen, Method):
        raise SfumatoError(f"The method of a posterior is a name such as 'mmps', not {method!r:.80}.")
    chosen.check(measurement)
    if solver is not None and not isinstance(chosen, BeliefMethod):
        raise SfumatoError(f"{chosen} is a walk of its own: leave solver out, or use mmps, tmpd, pigdm or ddnm.")
    steps, n = chosen.usual_steps if steps is None else whole("steps", steps), whole("n", n)
    if isinstance(chosen, SMC):
        return Way(chosen, model, None, steps, max(n, particles), steps)
    if isinstance(chosen, BeliefMethod):
        model = Conditioned(model, chosen, measurement)
        plan = make_plan(model, steps, chosen.usual_solver if solver is None else solver)
    else:
        assert isinstance(chosen, StepMethod)
        plan = Steps(chosen, measurement).plan(model.process, steps)
    return Way(chosen, model, plan, steps, n, plan.spent)


def _automatic(measurement: Measurement) -> Method:
    """The method that `benchmarks/inverse.py` finds best for such a measurement."""
    noisy = bool((measurement.noise > 0).all())
    numbers = max(measurement.size, math.prod(measurement.shape))
    if noisy and numbers <= (FEW if measurement.linear else MOST_NUMBERS):
        return SMC()
    if not measurement.linear:
        return DPS()
    return MMPS() if noisy else RePaint()


@default_cpu()
def _of_particles(
    method: SMC, model: Any, measurement: Measurement, n: int, count: int, steps: int, how: dict[str, Any]
) -> Posterior:
    """n of `count` particles, in random order."""
    seed, batch, normalised = (how.pop(name) for name in ("seed", "batch", "normalised"))
    with torch.no_grad():
        cloud = method.run(model, measurement, count, steps, seed, batch, resolve(model, how, count))
    last = Noise(seed, torch.zeros(1, dtype=torch.int64), STEP, steps)
    kept = survivors(cloud.log_weights, last, n)[permutation(seed, 0, n)]
    x, spec = cloud.x[kept].cpu(), None if normalised else getattr(model, "spec", None)
    effective = float(weighted.effective(cloud.log_weights[None]))
    alive = len(cloud.ancestors[cloud.log_weights > -torch.inf].unique())
    samples = x if spec is None else spec.denormalise(x)
    return Posterior(samples, str(method), steps, cloud.log_evidence, cloud.error, effective, alive)
