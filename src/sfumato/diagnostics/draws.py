"""Fixed draws (sample, noise, noise level) that judge a model level by level, beside a guess that looks at nothing.

    loss at a level = E |eps - eps_hat(z)|^2 / d,   d numbers in a sample

It is the same for every target, from 0 (pure noise: eps is seen) to 1 (clean data: nothing is known of eps). The
trivial predictor knows the data's mean m and variance v alone, the best linear guess without looking at neighbours,

    x_hat = m + alpha v (z - alpha m) / (alpha^2 v + sigma^2).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.belief import Estimate, broadcast
from sfumato.conditions import Conditions
from sfumato.diagnostics.bins import Bins
from sfumato.machine.parts import in_parts
from sfumato.process import Gaussian
from sfumato.schedule import Time
from sfumato.world import ALONE, World


@final
class Trivial:
    """The linear guess in place of a network: trivial(z, t) -> Estimate."""

    def __init__(self, process: Gaussian, mean: Tensor | float = 0.0, variance: float = 1.0) -> None:
        """mean: a number, or like one sample; variance: of each number about it."""
        self.process, self.mean, self.variance = process, mean, variance

    def __call__(self, z: Tensor, t: Time, /, **cond: Any) -> Estimate:
        alpha, sigma = self.process.schedule(t)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        mean = self.mean.to(z) if isinstance(self.mean, Tensor) else self.mean
        x = mean + broadcast(gain, z) * (z - broadcast(alpha, z) * mean)
        return Estimate(z, t, self.process.schedule, x=x)


class Drawn(NamedTuple):
    """Some of the draws: normalised samples x, noise eps and state z, all (B, *shape); t (B,); conditions."""

    x: Tensor
    eps: Tensor
    z: Tensor
    t: Tensor
    cond: Conditions


class ByLevel(NamedTuple):
    """One estimate a bin, float64 (K,), and its standard error (NaN where one draw says nothing of it)."""

    value: Tensor
    stderr: Tensor

    def times(self, factor: Tensor) -> ByLevel:
        """Both times a known positive factor (K,)."""
        return ByLevel(self.value * factor, self.stderr * factor)


@final
@dataclasses.dataclass
class Draws:
    """`count` draws a bin: draw j takes a sample in turn, noise that is a function of (seed, first + j), and a level.

    x: normalised samples (N, *shape), float32 or float64; cond: their conditions; batch: draws at once.
    """

    x: Tensor
    cond: Conditions
    process: Gaussian
    bins: Bins
    count: int
    seed: int
    batch: int
    first: int = 0

    def __post_init__(self) -> None:
        self.index = torch.arange(self.count * len(self.bins))
        self.sample = noise.permutation(self.seed, 0, len(self.x))[
            _turns(self.first + self.index, len(self.x), self.bins)
        ]
        chosen = self.sample.to(self.x.device)
        self.x, self.cond = self.x[chosen], Conditions.of(self.cond).rows(chosen)
        self.logsnr = self.bins.levels(self.count)
        self.t = self.process.schedule.time(self.logsnr)

    def take(self, part: Tensor) -> Drawn:
        """The draws of these numbers."""
        x, t, number = self.x[part], self.t[part], self.first + part
        eps = noise.normal(self.seed, number, tuple(x.shape[1:]), noise.VALID_NOISE, device=x.device, dtype=x.dtype)
        return Drawn(x, eps, self.process.corrupt(x, t, eps), t, self.cond.rows(part))

    def parts(self) -> Iterator[Tensor]:
        """All numbers, a batch at once."""
        yield from self.index.split(self.batch)

    @torch.no_grad()
    def losses(self, model: Any, world: World = ALONE) -> Tensor:
        """|eps - eps_hat|^2 / d of each draw, float64 (count K,) on the CPU, in evaluation mode.

        world: the processes that share the draws; all get them all.
        """

        def own(index: Tensor) -> Tensor:
            most, alone = -(-self.batch // world.size), world.size == 1
            found = in_parts(lambda part: losses(model, self.take(part)).double().cpu(), index, most, halve=alone)
            return torch.cat(found)

        with evaluating(model):
            return world.parallel_map(own, self.index)

    def by_level(self, values: Tensor) -> ByLevel:
        """Means over the draws of each bin; the error is that of independent draws, and these are spread evenly."""
        table = values.reshape(-1, len(self.bins))
        return ByLevel(table.mean(0), table.std(0) / math.sqrt(len(table)) if len(table) > 1 else table[0] * math.nan)


def _turns(number: Tensor, count: int, bins: Bins) -> Tensor:
    """Which of `count` samples each draw takes: all in turn, and each one other bins when its turn comes again."""
    late = next(c for c in range(len(bins) + 1) if math.gcd(count - c, len(bins)) == 1)
    return (number + late * (number // count)) % count


def plain(values: Tensor) -> list[float | None]:
    """Numbers for JSON: None for those that are not finite."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def losses(model: Any, drawn: Drawn) -> Tensor:
    """|eps - eps_hat|^2 / d, (B,)."""
    belief = model(drawn.z, drawn.t, **drawn.cond)
    return (belief.eps - drawn.eps).flatten(1).square().mean(1)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode (no dropout), and back to the mode of each module."""
    if not isinstance(model, nn.Module):
        model = getattr(model, "inner", None)
    modes = {part: part.training for part in model.modules()} if isinstance(model, nn.Module) else {}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
