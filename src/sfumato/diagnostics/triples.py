"""Losses on fixed triples (sample, noise, noise level), and paired differences between them.

    loss:    the mean over the triples, with an interval for new samples (`intervals.mean`)
    gap:     hold-out minus training samples under the same noise and levels, triple by triple
    change:  now minus earlier, on the same triples, whose samples and noise cancel

The interval of a change is several times narrower than that of a loss, so it shows first whether a run improves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import intervals
from sfumato.intervals import Interval

BANDS = ("low noise", "middle", "high noise")  # thirds of the time density, cleanest first
_DIGITS = 5


class Triples(NamedTuple):
    """Losses of n triples, weighted as in training, by name: raw, ema, and train for training samples in their place.

    sample, level: int64 (n,), the held-out sample and the noise level, cleanest first; levels: how many, 1 for none.
    """

    sample: Tensor
    level: Tensor
    levels: int
    losses: dict[str, Tensor]

    @property
    def best(self) -> str:
        """The name of the weights to use."""
        return "ema" if "ema" in self.losses else "raw"

    def interval(self, name: str | None = None, band: int | None = None) -> Interval:
        """The mean loss over one band of noise levels, or over all."""
        return self._mean(self.losses[name or self.best], band)

    def gap(self, band: int | None = None) -> Interval | None:
        """Loss on the hold-out minus loss on training samples; None if the latter was not measured."""
        if "train" not in self.losses:
            return None
        return self._mean(self.losses[self.best] - self.losses["train"], band)

    def change(self, earlier: Triples, band: int | None = None) -> Interval | None:
        """Loss now minus loss in an earlier validation; None if that used other triples."""
        if not torch.equal(self.sample, earlier.sample) or not torch.equal(self.level, earlier.level):
            return None
        return self._mean(self.losses[self.best] - earlier.losses[earlier.best], band)

    def average(self) -> Interval | None:
        """Loss of the moving average minus loss of the raw weights; None without an average."""
        return self._mean(self.losses["ema"] - self.losses["raw"], None) if "ema" in self.losses else None

    @property
    def bands(self) -> int:
        """The number of bands: 3, or 0 without noise levels."""
        return len(BANDS) if self.levels % len(BANDS) == 0 else 0

    def _mean(self, values: Tensor, band: int | None) -> Interval:
        rows = torch.ones_like(self.level, dtype=torch.bool)
        if band is not None:
            rows = self.level // (self.levels // self.bands) == band
        return intervals.mean(values[rows], self.sample[rows], self.level[rows])

    def to_dict(self) -> dict[str, Any]:
        """The figures for the log, and the losses themselves, so that any two validations can be compared."""
        gap, found = self.gap(), self.interval().to_dict()
        made: dict[str, Any] = {"valid_low": found["low"], "valid_high": found["high"]}
        if gap is not None:
            figures = gap.to_dict()
            made |= {"valid_train": float(self.losses["train"].mean())}
            made |= {"valid_gap": figures["value"], "valid_gap_low": figures["low"], "valid_gap_high": figures["high"]}
        if self.bands:
            made["bands_valid"] = [self.interval(band=k).to_dict() for k in range(self.bands)]
            if gap is not None:
                made["bands_gap"] = [g.to_dict() for k in range(self.bands) if (g := self.gap(k)) is not None]
        made |= {"triples_sample": self.sample.tolist(), "triples_levels": self.levels}
        rounded = {name: [float(f"{v:.{_DIGITS}g}") for v in values.tolist()] for name, values in self.losses.items()}
        return made | {f"triples_{name}": values for name, values in rounded.items()}


def read(line: Mapping[str, Any]) -> Triples | None:
    """The triples in a line of the log; None if it has none."""
    if "triples_sample" not in line:
        return None
    sample, levels = torch.tensor(line["triples_sample"]), line["triples_levels"]
    names = [name for name in ("raw", "ema", "train") if f"triples_{name}" in line]
    losses = {name: torch.tensor(line[f"triples_{name}"], dtype=torch.float64) for name in names}
    return Triples(sample, torch.arange(len(sample)) % levels, levels, losses)


def trend(change: Interval) -> str:
    """A change in words: improving, worse, or no change if the interval contains 0."""
    return "improving" if change.high < 0 else "worse" if change.low > 0 else "no change"
