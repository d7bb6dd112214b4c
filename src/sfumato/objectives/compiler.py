"""The objective compiler: the effective weight w(logsnr) that any (schedule, target, time density, weight) minimises.

    loss = 1/2 E_p[factor |y - y_hat|^2] = 1/2 int w(logsnr) E|eps - eps_hat|^2 dlogsnr
    w = factor p (det / alpha)^2,   p = p(t) / |dlogsnr/dt|,   det = b alpha - a sigma of the target's row (a, b)

Two objectives with the same w have the same expected gradient, whatever else differs.
Source: Kingma and Gao 2023 (2303.00848), Sec. 3 and Table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import registry
from sfumato import target as targets
from sfumato.errors import SfumatoError
from sfumato.objectives import factor as factors
from sfumato.objectives import families, weights
from sfumato.objectives.augmentation import Augmentation
from sfumato.objectives.times import TimeDensity, UniformTime, limits, named
from sfumato.objectives.weights import Weight
from sfumato.registry import ships
from sfumato.schedule import Schedule

_GRID = 4097  # levels at which a weight is evaluated
_SEEN = 10.0  # weights are compared within +-10: beyond, a loss is constant to a relative 5e-5
_TINY = 1e-30  # below this share of its largest value a weight counts as 0
_SLACK = 1e-9  # smaller increases are rounding errors


class Nearest(NamedTuple):
    """The nearest named weight: w = scale w_name up to a factor of exp(+-distance) (root mean square)."""

    name: str
    aliases: tuple[str, ...]
    distance: float
    scale: float

    @property
    def factor(self) -> float:
        """The typical ratio between the two, exp(distance)."""
        return math.exp(self.distance)

    @property
    def same(self) -> bool:
        """Whether the two are equal up to rounding and scale."""
        return self.distance < 1e-6


@final
class Objective:
    """A weighted denoising loss, compiled.

    target: the name of a target. times: the density that levels are drawn from, uniform in t by default. There are
    three kinds of loss: the plain squared error of the target; `weight`, w(logsnr) itself, for which `denoising_loss`
    divides by the density; or `factor`, a function of logsnr that multiplies |y - y_hat|^2, as in other trainers.
    times and weight may be names, such as "sigmoid(bias=-2)". sigma_data: of the target F. w and p are 0 outside the
    levels of the schedule.
    """

    def __init__(
        self,
        schedule: Schedule,
        target: str = "v",
        times: TimeDensity | str | None = None,
        weight: Weight | str | None = None,
        sigma_data: float = 1.0,
        *,
        factor: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        registry.check("target", target)
        if weight is not None and factor is not None:
            raise SfumatoError("An objective takes a weight w(logsnr) or a factor on the squared error, not both.")
        self.schedule, self.target, self.sigma_data = schedule, target, float(sigma_data)
        self.times = UniformTime() if times is None else named(times)
        self._weight, self._factor = weights.chosen(weight), factor
        factors.finite(self.weight(self._grid(65)), self._grid(65))

    # -- the two functions ---------------------------------------------------------------------------------------

    @property
    def range(self) -> tuple[float, float]:
        """The (lowest, highest) logsnr that is drawn."""
        return limits(self.schedule)

    def density(self, logsnr: Tensor) -> Tensor:
        """p(logsnr), the density of the drawn levels, like logsnr."""
        return self._inside(logsnr, lambda lam: self.times.density(lam, self.schedule))

    def weight(self, logsnr: Tensor) -> Tensor:
        """w(logsnr): the loss is 1/2 int w E|eps - eps_hat|^2 dlogsnr."""
        return self._inside(logsnr, self._effective)

    def factor(self, logsnr: Tensor) -> Tensor:
        """The factor on |y - y_hat|^2 at levels drawn from `times`: 1 for a plain loss."""
        return self._inside(logsnr, self._raw)

    def _inside(self, logsnr: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        lam = logsnr.to(torch.float64)
        lo, hi = self.range
        outside = (lam < lo - _SLACK) | (lam > hi + _SLACK)
        return torch.where(outside, 0.0, f(lam.clamp(lo, hi)))

    def _scale(self, logsnr: Tensor) -> Tensor:
        """c with |eps - eps_hat|^2 = c |y - y_hat|^2."""
        t = self.schedule.time(logsnr)
        return targets.error_scale(targets.row(self.target, self.schedule, t, self.sigma_data), *self.schedule(t))

    def _effective(self, logsnr: Tensor) -> Tensor:
        if self._weight is not None:
            return self._weight(logsnr)
        plain = self.times.density(logsnr, self.schedule) / self._scale(logsnr)
        return plain if self._factor is None else self._factor(logsnr) * plain

    def _raw(self, logsnr: Tensor) -> Tensor:
        if self._weight is None:
            return torch.ones_like(logsnr) if self._factor is None else self._factor(logsnr)
        t = self.schedule.time(logsnr)
        row = targets.row(self.target, self.schedule, t, self.sigma_data)
        return factors.factor(self.schedule, row, t, self.times, self._weight)

    def _grid(self, count: int = _GRID, widest: float = math.inf) -> Tensor:
        lo, hi = self.range
        return torch.linspace(max(lo, -widest), min(hi, widest), count, dtype=torch.float64)

    # -- properties ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise SfumatoError if no model can be trained with this objective (see `factor.check`)."""
        weight = self._weight if self._factor is None else self.weight
        factors.check(self.schedule, self.target, self.times, weight, self.sigma_data)

    @cached_property
    def rises(self) -> list[tuple[float, float]]:
        """The intervals of logsnr on which w increases, on a grid of 4,096 steps."""
        lam = self._grid().tolist()
        w = self.weight(self._grid()).detach()
        up, down = (w[1:] > w[:-1] * (1 + _SLACK)).tolist(), (w[1:] < w[:-1] * (1 - _SLACK)).tolist()
        intervals: list[tuple[float, float]] = []
        rising = False
        for i, (rise, fall) in enumerate(zip(up, down, strict=True)):
            if rise:
                start = intervals.pop()[0] if rising else lam[i]
                intervals.append((start, lam[i + 1]))
            rising = rise or (rising and not fall)  # the steps of a tabulated weight form one interval
        return intervals

    @property
    def monotone(self) -> bool:
        """Whether w never increases with logsnr, so that the loss is an evidence bound of noised data."""
        return not self.rises

    def augmentation(self) -> Augmentation:
        """The distribution of noise levels that makes this loss an expectation of evidence bounds."""
        return Augmentation(self.weight, *self.range)

    def compare(self, other: Objective | Weight) -> tuple[float, float]:
        """(distance, scale): the root mean square of log(w / (scale w_other)), and the scale that minimises it.

        Computed over the levels of both, evenly in logsnr within +-10, so that it depends on neither the density nor
        the schedule. Infinite if they share no level.
        """
        lo, hi = self._seen
        if not isinstance(other, Objective):
            return self._comparison(lo, hi)(other)
        lo, hi = max(lo, other.range[0]), min(hi, other.range[1])
        return self._comparison(lo, hi)(other.weight) if lo < hi else (math.inf, 1.0)

    @property
    def _seen(self) -> tuple[float, float]:
        lo, hi = self.range
        return (max(lo, -_SEEN), min(hi, _SEEN)) if lo < _SEEN and hi > -_SEEN else (lo, hi)

    def _comparison(self, lo: float, hi: float) -> Callable[[Weight], tuple[float, float]]:
        """A function that compares this objective with a weight between two levels."""
        lam = torch.linspace(lo, hi, 513, dtype=torch.float64)
        ours = _log(self.weight(lam))

        def compare(weight: Weight) -> tuple[float, float]:
            ratio = ours - _log(weight(lam))
            return float(ratio.std(correction=0)), math.exp(float(ratio.mean()))

        return compare

    def distance(self, other: Objective | Weight) -> float:
        """The distance between the two weights up to a constant factor; 0 means the same objective (`compare`)."""
        return self.compare(other)[0]

    def named(self, word: str) -> Weight:
        """A weight of `weights.NAMED`, with or without arguments; for "edm" that of data with this sigma_data."""
        if word == "edm":
            return weights.edm(self.sigma_data, -1.2 + math.log(2 * self.sigma_data))
        return weights.named(word)

    def nearest(self) -> Nearest:
        """The named weight at the smallest distance, and its aliases.

        If no weight with default parameters is equal, other parameters are tried: "sigmoid(bias=-2)".
        """
        compare = self._comparison(*self._seen)
        compared = {name: compare(self.named(name)) for name in weights.NAMED if ships("weight", name)}
        best = min(compared, key=lambda name: compared[name][0])
        same = tuple(name for name in compared if name != best and compared[name] == compared[best])
        usual = Nearest(best, same, *compared[best])
        if usual.same:
            return usual
        word, weight, distance = families.nearest(lambda weight: compare(weight)[0])
        # with free parameters many weights come close by chance: require a much smaller distance
        return Nearest(word, (), *compare(weight)) if distance < usual.distance / 2 else usual

    # -- equivalent objectives -----------------------------------------------------------------------------------

    def express(
        self, schedule: Schedule | None = None, target: str | None = None, times: TimeDensity | None = None
    ) -> Objective:
        """The same w under another schedule, target or density: equal expected gradients, with another `factor`.

        Omitted arguments stay the same. Levels outside the new schedule are lost (`missing` gives their share). Raises
        SfumatoError if the result cannot be trained (`check`).
        """
        objective = Objective(
            schedule or self.schedule, target or self.target, times or self.times, self.weight, self.sigma_data
        )
        objective.check()
        return objective

    def share(self, start: float, stop: float) -> float:
        """The share of the drawn levels with start <= logsnr <= stop, to 1e-4, from 10,000 evenly spaced quantiles."""
        u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        lam = self.times.logsnr(u, self.schedule).detach()
        return float(((lam >= start) & (lam <= stop)).double().mean())

    def missing(self, other: Objective) -> float:
        """The share of the levels drawn here that `other` never reaches, to 1e-4."""
        lo, hi = other.range
        return 1 - self.share(lo - _SLACK, hi + _SLACK)

    def to_dict(self, levels: int = 31) -> dict[str, Any]:
        """JSON-able: names, range, nearest, monotone, and w, p, factor at equal steps of logsnr."""
        lam = self._grid(levels)
        w, p, f = (of(lam).detach().tolist() for of in (self.weight, self.density, self.factor))
        near = self.nearest()
        return {
            "schedule": type(self.schedule).__name__,
            "target": self.target,
            "times": repr(self.times),
            "sigma_data": self.sigma_data,
            "logsnr_range": list(self.range),
            "nearest": {**near._asdict(), "aliases": list(near.aliases)},
            "monotone": self.monotone,
            "rises": [list(stretch) for stretch in self.rises],
            "levels": [
                {"logsnr": at, "weight": a, "density": b, "factor": c}
                for at, a, b, c in zip(lam.tolist(), w, p, f, strict=True)
            ],
        }

    def plot(self, path: str) -> None:
        """Plot w next to named weights, and p, into a file (.png, .svg, .pdf)."""
        from sfumato.objectives.drawing import draw

        draw(self, path)


def _log(w: Tensor) -> Tensor:
    """log w, finite even if w is 0."""
    w = w.detach()
    return torch.log(w.clamp_min(_TINY * float(w.max())))
