"""Fixed draws (sample, noise, noise level) to measure a model level by level, and a trivial predictor to compare with.

    loss at a level = E |eps - eps_hat(z)|^2 / d,   d numbers in a sample

It is comparable across targets, from 0 (pure noise: z shows eps) to 1 (clean data: z says nothing about eps). The
trivial predictor knows only the data's mean m and variance v; it is the best linear guess of each number by itself,

    x_hat = m + alpha v (z - alpha m) / (alpha^2 v + sigma^2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Estimate, broadcast
from sfumato.conditions import over_present, present
from sfumato.diagnostics.bins import Bins, spread
from sfumato.distributed import ALONE, World
from sfumato.noise import Noise
from sfumato.noised import Noised, NoisedBatch
from sfumato.objectives.compiler import Objective
from sfumato.process import Gaussian
from sfumato.schedule import Time


@final
class Trivial:
    """The linear guess, called like a denoiser: trivial(z, t) -> Estimate."""

    def __init__(self, process: Gaussian, mean: Tensor | float = 0.0, variance: float = 1.0) -> None:
        """mean: a number, or shaped like one sample; variance: of each number about the mean."""
        self.process, self.mean, self.variance = process, mean, variance

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate:
        alpha, sigma = self.process.schedule(t)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        mean = self.mean.to(z) if isinstance(self.mean, Tensor) else self.mean
        x = mean + broadcast(gain, z) * (z - broadcast(alpha, z) * mean)
        return Estimate(z, t, self.process.schedule, x=x)


class ByLevel(NamedTuple):
    """One estimate per bin, float64 (K,), and its standard error (NaN for a single draw)."""

    value: Tensor
    stderr: Tensor

    def times(self, factor: Tensor) -> ByLevel:
        """Multiply value and error by a known positive factor (K,)."""
        return ByLevel(self.value * factor, self.stderr * factor)


@final
class Draws(Noised):
    """`count` draws in each of K bins: draw j lies in bin j mod K, uses the next sample in turn and noise first + j.

    x: normalised samples (N, *shape), float32 or float64, and their conditions; batch: draws at once. Of a number of
    bins, which are equal parts of (0, 1), t is the place u of each draw.
    """

    def __init__(
        self, x: Tensor, cond: Mapping[str, Any], process: Any, bins: Bins | int, count: int, seed: int, batch: int,
        first: int = 0,
    ) -> None:  # fmt: skip
        places = torch.linspace(0, 1, bins + 1, dtype=torch.float64) if isinstance(bins, int) else bins.places
        self.count, self.seed, self.first, self.levels = count, seed, first, len(places) - 1
        number = first + torch.arange(count * self.levels)
        row = noise.permutation(seed, 0, len(x))[_turns(number, len(x), self.levels)]
        t = spread(places, count)
        if not isinstance(bins, int):
            self.bins, self.logsnr = bins, bins.levels(count)
            t = process.schedule.time(self.logsnr)
        super().__init__(process, x, cond, row, t, Noise(seed, number, noise.VALID_NOISE), batch)

    def losses(self, model: Any, world: World = ALONE) -> Tensor:
        """|eps - eps_hat|^2 / d of each draw, float64 (count K,)."""
        return self.each(model, lambda part: losses(model, self.take(part)), world)

    def by_level(self, values: Tensor) -> ByLevel:
        """Means over the draws of each level. Errors assume independent draws; evenly spread ones are more precise."""
        table = values.reshape(-1, self.levels)
        return ByLevel(table.mean(0), table.std(0) / math.sqrt(len(table)) if len(table) > 1 else table[0] * math.nan)

    def factor(self, objective: Objective) -> Tensor:
        """The factor w / p of each draw's loss in an objective, float64 (count K,)."""
        return (objective.weight(self.logsnr) / objective.density(self.logsnr)).detach()


def _turns(number: Tensor, count: int, levels: int) -> Tensor:
    """Which of `count` samples each draw uses: all in turn, and one later each time that the pairs would come again.

    So each level has all samples in turn, too; if it had one alone, samples could not be told from levels.
    """
    return (number + number // math.lcm(count, levels)) % count


def plain(values: Tensor) -> list[float | None]:
    """Numbers for JSON, with None for those that are not finite."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def losses(model: Any, drawn: NoisedBatch) -> Tensor:
    """|eps - eps_hat|^2 / d, (B,)."""
    belief = model(drawn.z, drawn.t, **drawn.cond)
    return over_present((belief.eps - drawn.eps).square(), present(drawn.cond)).flatten(1).mean(1)
