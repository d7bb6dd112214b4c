"""Fixed draws (sample, noise, noise level) that judge a model level by level, beside a guess that looks at nothing.

    loss at a level = E |eps - eps_hat(z)|^2 / d,   d numbers in a sample

It is the same for every target, from 0 (pure noise: eps is seen) to 1 (clean data: nothing is known of eps). The
trivial predictor knows the data's mean m and variance v alone, the best linear guess without looking at neighbours,

    x_hat = m + alpha v (z - alpha m) / (alpha^2 v + sigma^2).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.belief import Estimate, broadcast
from sfumato.conditions import Conditions
from sfumato.diagnostics.bins import Bins, spread
from sfumato.distributed import ALONE, World
from sfumato.machine import in_parts
from sfumato.objectives.compiler import Objective
from sfumato.process import Gaussian
from sfumato.schedule import Time

WHOLE = torch.tensor([0.0, 1.0], dtype=torch.float64)  # one level, all of (0, 1)


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


class Fixed:
    """`count` draws a level: draw j takes a sample in turn, noise by its number first + j, and a place u in (0, 1).

    x: normalised samples (N, *shape), float32 or float64; cond: their conditions; batch: draws at once. places (K + 1,)
    are the edges of the K levels in u; one level by default.
    """

    def __init__(
        self, x: Tensor, cond: Mapping[str, Any], count: int, seed: int, batch: int, places: Tensor = WHOLE,
        first: int = 0,
    ) -> None:  # fmt: skip
        self.count, self.seed, self.batch, self.first, self.levels = count, seed, batch, first, len(places) - 1
        self.u = spread(places, count)
        self.index = torch.arange(count * self.levels)
        self.sample = noise.permutation(seed, 0, len(x))[_turns(first + self.index, len(x), self.levels)]
        chosen = self.sample.to(x.device)
        self.x, self.cond = x[chosen], Conditions.of(cond).rows(chosen)

    @torch.no_grad()
    def each(self, model: Any, losses: Callable[[Any, Tensor], Tensor], world: World = ALONE) -> Tensor:
        """losses(model, numbers of some draws) of all, float64 (count K,) on the CPU, in evaluation mode.

        world: the processes that share the draws; all get them all.
        """

        def own(index: Tensor) -> Tensor:
            most, alone = -(-self.batch // world.size), world.size == 1
            found = in_parts(lambda part: losses(model, part).double().cpu(), index, most, halve=alone)
            return torch.cat(found)

        with evaluating(model):
            return world.parallel_map(own, self.index)

    def by_level(self, values: Tensor) -> ByLevel:
        """Means over the draws of each level; the error is that of independent draws, and these are spread evenly."""
        table = values.reshape(-1, self.levels)
        return ByLevel(table.mean(0), table.std(0) / math.sqrt(len(table)) if len(table) > 1 else table[0] * math.nan)


@final
class Draws(Fixed):
    """Fixed draws of a Gaussian process, whose levels are the bins of a time density."""

    def __init__(
        self, x: Tensor, cond: Mapping[str, Any], process: Gaussian, bins: Bins, count: int, seed: int, batch: int,
        first: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(x, cond, count, seed, batch, bins.places, first)
        self.process, self.bins = process, bins
        self.logsnr = bins.levels(count)
        self.t = process.schedule.time(self.logsnr)

    def take(self, part: Tensor) -> Drawn:
        """The draws of these numbers."""
        x, t, number = self.x[part], self.t[part], self.first + part
        eps = noise.normal(self.seed, number, tuple(x.shape[1:]), noise.VALID_NOISE, device=x.device, dtype=x.dtype)
        return Drawn(x, eps, self.process.corrupt(x, t, eps), t, self.cond.rows(part))

    def losses(self, model: Any, world: World = ALONE) -> Tensor:
        """|eps - eps_hat|^2 / d of each draw, float64 (count K,)."""
        return self.each(model, lambda model, part: losses(model, self.take(part)), world)

    def factor(self, objective: Objective) -> Tensor:
        """What an objective multiplies the loss of each draw by, w / p, float64 (count K,)."""
        return (objective.weight(self.logsnr) / objective.density(self.logsnr)).detach()


def _turns(number: Tensor, count: int, levels: int) -> Tensor:
    """Which of `count` samples each draw takes: all in turn, and each one other levels when its turn comes again."""
    late = next(c for c in range(levels + 1) if math.gcd(count - c, levels) == 1)
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
