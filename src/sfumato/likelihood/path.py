"""The variational bound of any process: what a belief loses on the way from the data to the prior, level by level.

    -log p(x) <= KL(q(z_1 | x) || prior) + int L(x, z_t, t) dlevel + E[-log p(x | z_0)]

L is what the process says that a belief loses a unit of the level (`Process.loss` under weight 1), z_0 the state at the
first level. Of symbols it is the path KL of 2107.03006 and 2406.07524, which an exact belief makes an equality; of a
product the sum over its parts at one time.

Levels: of each replicate one in each of K strata of equal mass, all shifted by one uniform number. Of symbols p(level)
~ sech(level / 2): under a density that falls faster towards the data the second moment of masked ones is infinite. Of
real numbers p ~ sigmoid(logsnr) up to the least noise. A product deals its strata in turn to the kinds of its parts,
and divides by the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.likelihood.elbo import Span
from sfumato.likelihood.measured import Measured, pooled
from sfumato.noise import Noise
from sfumato.process import Gaussian
from sfumato.schedule import Schedule
from sfumato.state import State, first_leaf, map_state, numbers_like, rows_of

_ROWS = 512  # states that one call of the model sees, where samples are few
_SHIFT = (1 << 23) - 1  # the stream of the strata's shifts under the role of the bound
_EARLIEST = 1e-12  # a time that stands for the end of a path which begins with some noise
_LAST = 1 << 22  # the first stream of the noise of the last term


class Law(NamedTuple):
    """Levels under a clock: their quantile at u in (0, 1), rising, and their density."""

    clock: Schedule
    quantile: Callable[[Tensor], Tensor]
    density: Callable[[Tensor], Tensor]


def sech(clock: Schedule, low: float, high: float) -> Law:
    """p(level) = sech(level / 2) / (2 pi), cut to [low, high]; the quantile is 2 log tan(pi u / 2)."""

    def below(level: float) -> float:
        return 2 / math.pi * math.atan(math.exp(level / 2)) if level < 1400 else 1.0

    first, mass = below(low), below(high) - below(low)

    def quantile(u: Tensor) -> Tensor:
        angle = math.pi / 2 * (first + u * mass)
        return (2 * (angle.sin().log() - angle.cos().log())).clamp(low, high)

    return Law(clock, quantile, lambda level: 1 / (2 * math.pi * mass * torch.cosh(level / 2)))


@final
class Strata:
    """The levels of the bound: K strata, dealt in turn to the laws of the kinds of a process's parts.

    start: the time of the first level, 0 where no part is noise-free before.
    """

    def __init__(self, process: Any) -> None:
        parts = [*getattr(process, "processes", {"": process}).values()]
        real = next((part for part in parts if isinstance(part, Gaussian)), None)
        symbols = next((part for part in parts if not isinstance(part, Gaussian)), None)
        self.start, self.laws = 0.0, list[Law]()
        if real is not None:
            span = Span.of(real.schedule, real.sigma_data, None)
            self.start = float(real.schedule.time(span.high))
            self.laws.append(Law(real.schedule, span.quantile, span.density))
        if symbols is not None:
            low, high = symbols.clock.logsnr_range
            high = min(high, float(symbols.clock.logsnr(self.start))) if self.start else high
            self.laws.append(sech(symbols.clock, low, high))
        self.alone = len(self.laws) == 1
        self.open = self.alone and self.laws[0].clock.logsnr_range[1] == math.inf and not self.start

    def times(self, u: Tensor) -> Tensor:
        """t at places u in (0, 1) of each law, dealt in turn over the last axis."""
        out = torch.empty_like(u)
        for k, law in enumerate(self.laws):
            out[..., k :: len(self.laws)] = law.clock.time(law.quantile(u[..., k :: len(self.laws)]))
        return out

    def density(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """That of the mixture, as a density of this clock's level."""
        t, total = schedule.time(logsnr), torch.zeros_like(logsnr)
        for law in self.laws:
            level = logsnr if law.clock == schedule else law.clock.logsnr(t)
            rate = 1.0 if law.clock == schedule else (law.clock.dlogsnr(t) / schedule.dlogsnr(t)).abs()
            total = total + law.density(level) * rate
        return total / len(self.laws)


def path_bound(
    model: Any, x: State, index: Tensor, cond: Any, steps: int = 64, probes: int = 8, seed: int = 0
) -> Measured:
    """The bound for clean states x (B, ...) of the numbers `index`: `probes` replicates of `steps` levels."""
    if steps < 1 or probes < 2:
        raise SfumatoError(f"The bound needs at least 1 level and 2 replicates, got steps={steps}, probes={probes}.")
    process, rows, device = model.process, len(index), first_leaf(x).device
    strata = Strata(process)
    steps = len(strata.laws) * -(-steps // len(strata.laws))
    shift = noise.uniform(seed, index, (probes, 1), noise.BOUND, _SHIFT, dtype=torch.float64)
    place = (shift + torch.arange(steps) // len(strata.laws)) * (len(strata.laws) / steps)
    t = strata.times(place.clamp(0, 1 - 1e-12)).flatten(1).to(device)
    parts, size = [], max(1, _ROWS // rows)
    for some in torch.arange(probes * steps).split(size):
        parts.append(_lost(model, x, index, cond, seed, t[:, some], some, strata))
    by_level = torch.cat(parts, 1).reshape(rows, probes, steps) / steps
    prior, last = process.prior_kl(x), torch.zeros(rows, probes, dtype=torch.float64, device=device)
    if not strata.open:
        start = strata.start or _EARLIEST
        last = torch.stack([_last(model, x, index, cond, seed, k, start) for k in range(probes)], 1)
    value, stderr, third = pooled(-(prior[:, None] + by_level.sum(2) + last))
    mean, entries = by_level.mean(1), sum(leaf[0].numel() for leaf in _leaves(x))
    levels = None
    if strata.alone:
        levels = strata.laws[0].quantile(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    return Measured(
        value.cpu(), stderr.cpu(), third.cpu(), None, None, None, f"path bound, {probes} replicates", entries, probes,
        steps, bound=True, prior=prior.cpu(), diffusion=mean.sum(1).cpu(), reconstruction=last.mean(1).cpu(),
        by_level=mean.cpu() if strata.alone else None, levels=levels,
    )  # fmt: skip


def _leaves(x: State) -> list[Tensor]:
    found: list[Tensor] = []
    map_state(found.append, x)
    return found


@torch.no_grad()
def _lost(
    model: Any, x: State, index: Tensor, cond: Any, seed: int, times: Tensor, streams: Tensor, strata: Strata
) -> Tensor:
    """L / p of each sample at times (B, g) with the noise of g streams, (B, g)."""
    (copies, t), process = (times.shape[1], times.flatten()), model.process
    many = torch.arange(len(index)).repeat_interleave(copies)
    source = Noise(seed, index[many], noise.BOUND, streams.repeat(len(index)))
    clean = rows_of(x, many)
    drawn = numbers_like(source, clean)
    belief = model(process.corrupt(clean, t, drawn), t, **cond.rows(many))
    return process.loss(belief, clean, drawn, torch.ones_like, strata).double().reshape(times.shape)


@torch.no_grad()
def _last(model: Any, x: State, index: Tensor, cond: Any, seed: int, replicate: int, t: float) -> Tensor:
    """-log p(x | z_t) of each sample, (B,)."""
    drawn = numbers_like(Noise(seed, index, noise.BOUND, _LAST + replicate), x)
    nats: Tensor = model(model.process.corrupt(x, t, drawn), t, **cond).nats(x)
    return nats
