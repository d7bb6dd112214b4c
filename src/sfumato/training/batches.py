"""Batches as a function of (seed, samples seen): order, labels kept or hidden, noise levels.

    sample p of the run is row order(p mod N) of epoch p div N;  its noise level: u_p = frac(u_0 + p / golden ratio)

The additive recurrence (Kronecker sequence) spreads any consecutive stretch of samples evenly over the noise levels,
so that a batch, a micro-batch or a rank's share has low discrepancy without knowing of the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError

_RESIDENT = 2 << 30  # bytes of data that are kept on an accelerator


class Batches:
    """Training samples x (N, *shape) in the user's units and dtype, labels int64 (N,) or None."""

    def __init__(
        self, x: Tensor, labels: Tensor | None, spec: DataSpec | None, seed: int, drop: float, device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        if not len(x):
            raise SfumatoError("There are no samples to train on.")
        if spec is None and not x.is_floating_point():
            raise SfumatoError("Whole numbers need a data spec that normalises them: build the denoiser with spec=...")
        self.normalise = lambda rows: (rows if spec is None else spec.normalise(rows)).to(dtype)
        if device.type != "cpu" and 4 * x.numel() <= _RESIDENT:  # normalised once, it stays where it is used
            x, self.normalise = self._normalised(x).to(device), lambda rows: rows
        self.x, self.labels, self.seed, self.drop, self.device = x, labels, seed, drop, device
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def _normalised(self, x: Tensor) -> Tensor:
        return torch.cat([self.normalise(rows) for rows in x.split(1024)])

    def order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, noise.permutation(self.seed, epoch, len(self.x))
        return self._order

    def rows(self, start: int, count: int) -> Tensor:
        """The rows of samples start .. start + count of the run; a batch may span epochs."""
        parts = []
        while count:
            epoch, offset = divmod(start, len(self.x))
            part = self.order(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)

    def take(self, start: int, count: int, share: slice = slice(None)) -> tuple[Tensor, dict[str, Any], Tensor, Tensor]:
        """(x normalised, conditions, index, u) of the next `count` samples, or a share of them; u uniform in (0, 1)."""
        rows, index = self.rows(start, count)[share], torch.arange(start, start + count)[share]
        x = self.normalise(self.x[rows.to(self.x.device)]).to(self.device, non_blocking=True)
        u = noise.spread(self.seed, index, noise.TRAIN_TIME)
        if self.labels is None:
            return x, {}, index, u
        label = self.labels[rows].clone()
        label[noise.uniform(self.seed, index, (), noise.DROP) < self.drop] = -1
        return x, {"label": label.to(self.device)}, index, u
