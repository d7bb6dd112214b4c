"""The mutual information of a condition and the samples, in nats, from two losses on the same draws.

    I(x; c) = 1/2 int E(|eps - eps_null|^2 - |eps - eps_c|^2) dlogsnr

for an ideal denoiser, where eps_null is its prediction without c; pointwise in x the integral is
log p(x | c) - log p(x) (Guo, Shamai and Verdu 2005; Kong et al. 2023, 2302.03792, Eq. 10). For a trained denoiser it
measures how much the network uses c. With several conditions, eps_null keeps the others: it is what c adds to them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from sfumato.conditions import Conditions, named
from sfumato.diagnostics.bins import Bins, make
from sfumato.diagnostics.draws import Draws
from sfumato.diagnostics.samples import with_conditions
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError
from sfumato.intervals import Interval, mean
from sfumato.machine import default_cpu
from sfumato.objectives.times import CosMap, limits
from sfumato.process.paired import require_alone
from sfumato.schedule import Schedule

REACH = 8.0  # largest |logsnr| examined: beyond it, normalised data are pure noise or known
_BINS, _MOST = 32, 2048  # levels; most samples of a data set


@dataclasses.dataclass(frozen=True)
class Information:
    """Information in nats per sample, with intervals. each: what each condition adds to the others; together: of all.

    draws: number of noised samples; logsnr: (lowest, highest) of their levels.
    """

    each: dict[str, Interval]
    together: Interval
    draws: int
    logsnr: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "each": {name: found.to_dict() for name, found in self.each.items()},
            "together": self.together.to_dict(), "draws": self.draws, "logsnr": list(self.logsnr),
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{name}: {_words(found)}" for name, found in self.each.items()]
        if len(self.each) > 1:
            lines.append(f"all together: {_words(self.together)}")
        return "\n".join(lines)


def _words(found: Interval) -> str:
    return f"{found.value:.3g} nats ({found.low:.3g} to {found.high:.3g})"


@default_cpu()
def information(model: Any, x: Any, draws: int = 8192, seed: int = 0, batch: int = 256, **cond: Any) -> Information:
    """I(x; c) of each condition for samples x (B, *shape) in user units and their conditions, as `sample` takes them.

    x may also be whatever `sf.data.open` takes, with the conditions of the data; if the data are the model's training
    data, only the held-out samples are used.
    draws: noised samples, spread over the levels. The model is called on each once with all conditions, once with none
    and, if there are several, once without each. Samples are used in turn: more of them give a narrower interval.
    Raises SfumatoError without a condition, for a model whose belief has no eps, and for one of pairs.
    """
    require_alone(model, "The information of a condition")
    found = with_conditions(model, x, cond, _MOST, seed)
    return measured(model, found.x, found.cond, draws, seed, batch)


def measured(
    model: Any, x: Tensor, cond: Conditions, draws: int, seed: int = 0, batch: int = 256, world: World = ALONE
) -> Information:
    """`information` of normalised samples. world: the processes that share the draws; all get the result."""
    names = list(named(cond))
    if not names:
        raise SfumatoError("The information of a condition needs a condition: give one, such as label=...")
    bins = _bins(model.process.schedule)
    count = max(2, -(-draws // len(bins)))
    known = Draws(x, cond, model.process, bins, count, seed, batch)
    told = known.losses(model, world)
    # 1/2 int f dlogsnr = E[f / 2 p], for the whole sample: losses are means over its numbers
    factor = 0.5 * x[0].numel() * bins.mass.sum() / bins.times.density(known.logsnr, model.process.schedule)

    def without(*names: str) -> Interval:
        other = Draws(x, cond.null(*names), model.process, bins, count, seed, batch)
        return mean(factor * (other.losses(model, world) - told), known.row, known.index % len(bins))

    together = without(*names)
    each = {name: without(name) for name in names} if len(names) > 1 else dict.fromkeys(names, together)
    return Information(each, together, len(known.index), (float(bins.edges[-1]), float(bins.edges[0])))


def _bins(schedule: Schedule) -> Bins:
    """Bins of equal mass under sech(logsnr / 2), within REACH."""
    law, (low, high) = CosMap(), limits(schedule)
    ends = torch.tensor([min(REACH, high), max(-REACH, low)], dtype=torch.float64)
    if not float(ends[0]) > float(ends[1]):
        raise SfumatoError(
            f"The schedule's levels, logsnr {low:g} to {high:g}, are all outside -{REACH:g} to {REACH:g}."
        )
    first, last = law.survival(ends).tolist()
    edges = law.quantile(torch.linspace(first, last, _BINS + 1, dtype=torch.float64))
    return make([*ends.tolist(), *edges[1:-1].tolist()], law, schedule)
