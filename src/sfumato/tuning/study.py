"""One fit of a plan: the noise to fit and to hold out, the plan to start from, and the comparison of plans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions, Given
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.process import given
from sfumato.solvers import Plan
from sfumato.tuning.coefficients import write
from sfumato.tuning.fit import Fit, Pairs, objective, sliced
from sfumato.tuning.search import Range, Wiener, distances, end_of, fine_plan, untuned

_FIT, _HELD_OUT = 1, 2  # steps of the role PRIOR; its step 0 is the noise that `sample` draws
_FEW, _FINALISTS = 16, 6  # every untuned plan is tried on a few points (or a 64th), the best of them on all
_LEAST_HELD = 64  # fewest points held out
_ROBUST = 30.0  # multiple of the median squared distance at which rho turns from quadratic to logarithmic


@dataclasses.dataclass(frozen=True)
class TuneProgress:
    """The progress of a fit: its stage, round (of rounds), and the best RMS distance on held-out noise so far."""

    stage: str
    round: int
    rounds: int
    rms: float


def figures(end: Tensor, truth: Tensor, law: bool) -> dict[str, float]:
    """Distances to the exact end points, |z - y| / sqrt(D), in the model's units; with noise also that of the laws."""
    gaps = distances(end, truth)
    found = {"rms": float(gaps.mean().sqrt()), "median": float(gaps.median().sqrt())}
    return {**found, "law": math.sqrt(float(sliced(end, truth)))} if law else found


def shape_of(model: Model) -> tuple[int, ...]:
    shape = getattr(model, "shape", None)
    if shape is None:
        raise SfumatoError("The model does not know its sample shape, so no noise can be drawn for tuning.")
    return tuple(model.process.state_shape(tuple(shape)))


@dataclasses.dataclass(frozen=True)
class Study:
    """One fit: the model with its guidance, the range, the number of calls, and the noise of the reverse SDE (tau)."""

    model: Model
    reach: Range
    calls: int
    batch: int
    progress: Callable[[TuneProgress], None]
    tau: float = 0.0

    def pairs(self, seed: int, points: int, turns: Mapping[str, Given]) -> tuple[Pairs, Pairs]:
        """Noise to fit and noise to judge by, each with the end points of a fine solve."""
        self.progress(TuneProgress("fine solve", 0, 1, math.nan))
        # laws are judged on as many points as they are fitted on: paths that part from the fine solve's blur them
        sizes = {_FIT: points, _HELD_OUT: max(_LEAST_HELD, points if self.tau else -(-points // 2))}
        plan, found = fine_plan(self.reach, self.calls, self.tau), []
        for role, n in sizes.items():
            z, own = self._noise(seed, n, role, turns)
            # Brownian paths that no sample of this seed has, by numbers beyond any
            paths = Wiener(seed, torch.arange(n) + (role << 40)) if self.tau else None
            found.append(Pairs(z, end_of(plan, self.model, z, own, self.batch, paths).double(), own, paths))
        return found[0], found[1]

    def _noise(self, seed: int, count: int, role: int, turns: Mapping[str, Given]) -> tuple[Tensor, Conditions]:
        """States at the start of the range, in the dtype of the model's beliefs, and their conditions, in turn."""
        index = torch.arange(count)
        device = getattr(self.model, "device", torch.device("cpu"))
        own = Conditions({name: each.rows(index % len(each.values)) for name, each in turns.items()}).to(device)
        drawn = noise.normal(seed, index, shape_of(self.model), noise.PRIOR, role, device=device, dtype=torch.float64)
        z, start = given(self.model.process, own).prior(drawn), self.reach.start
        with torch.no_grad():
            z = z.to(self.model(z[:2].float(), start, **own.rows(slice(2))).x.dtype)
        if start < 1:
            way = fine_plan(Range(self.reach.schedule, 1.0, start), self.calls)
            z = end_of(way, self.model, z, own, self.batch).reshape(z.shape)
        return z, own

    def best_untuned(self, fitted: Pairs, held: Pairs) -> Plan:
        """The untuned plan that does best on the held-out noise."""
        few = next(fitted.parts(max(_FEW, len(fitted.z) // 64)))
        plans = untuned(self.reach, self.calls, self.tau)
        ends = []
        for i, plan in enumerate(plans):
            self.progress(TuneProgress("untuned plans", i, len(plans), math.nan))
            ends.append(self.end(plan, few))
        c2 = robust_scale(min((distances(end, few.end) for end in ends), key=torch.median))
        order = sorted(range(len(plans)), key=lambda i: self.loss(ends[i], few, c2))
        return min((plans[i] for i in order[:_FINALISTS]), key=lambda plan: self.loss(self.end(plan, held), held, c2))

    def end(self, plan: Plan, pairs: Pairs) -> Tensor:
        """The end points of a plan from the noise of these pairs, (B, D)."""
        return end_of(plan, self.model, pairs.z, pairs.cond, self.batch, pairs.paths)

    def loss(self, end: Tensor, pairs: Pairs, c2: float) -> float:
        """The objective of the fit on any pairs; plans are chosen by that on held-out ones."""
        return float(objective(end, pairs.end, c2, law=self.tau > 0))

    def improve(
        self, base: Plan, fitted: Pairs, held: Pairs, rounds: int, seed: int
    ) -> tuple[Plan, dict[str, float], dict[str, float]]:
        """(the plan of the fit that is best on held-out noise, its error, the error of `base`)."""
        start, c2 = self.end(base, held), robust_scale(distances(self.end(base, held), held.end))
        before = distances(start, held.end)
        plan, best, least, law = base, start, self.loss(start, held, c2), float(sliced(start, held.end))
        fit = Fit(self.model, base, self.reach, fitted, self.batch, c2)
        for i, found in enumerate(fit.descend(rounds, seed)):
            new = write(found, base, self.reach.schedule, f"tuned {base.name}")
            end = self.end(new, held)
            loss = self.loss(end, held, c2)
            if self.tau:
                poorer = float(sliced(end, held.end)) > law
            else:
                poorer = worse(distances(end, held.end), before)
            if loss < least and not poorer:
                plan, best, least = new, end, loss
            self.progress(TuneProgress("fit", i + 1, rounds, figures(best, held.end, False)["rms"]))
        noisy = self.tau > 0
        return plan, figures(best, held.end, noisy), figures(start, held.end, noisy)


def robust_scale(gaps: Tensor) -> float:
    """c^2 of rho, for plans about as good as the one with these squared distances."""
    return max(_ROBUST * float(gaps.median()), 1e-30)


def worse(gaps: Tensor, before: Tensor) -> bool:
    """Whether the mean square has grown by more than two standard errors of the paired difference.

    Single samples that land in another mode change the mean square of either plan by chance.
    """
    more = gaps - before
    return bool(more.mean() > 2 * more.std() / math.sqrt(len(more))) or bool(gaps.median() > before.median())
