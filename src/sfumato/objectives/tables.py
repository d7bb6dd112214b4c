"""The loss of a table's rows: numbers flow from noise, symbols are masked by exact counts, at levels of their own.

    loss = 1/D [ sum over numbers of 1/2 (y - y_hat)^2 + C / n sum over masks of -log p(x_i | z) ]

y the target at a time t uniform in (0, 1), n = ceil(m C) of the C symbols masked, of D columns of both kinds together.
Half of the rows have the share of masks m = t, which is where samples are drawn, the others an m of their own, so that
the network knows every subset of the symbols beside numbers at any level (`given` of `sample`). The part of the symbols
is the bound of `objectives.counts`.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.objectives.counts import counted
from sfumato.objectives.loss import Loss
from sfumato.process import Gaussian, Masked, Product
from sfumato.registry import register
from sfumato.state import State


@register("loss", "table")
@final
class TableLoss(Loss):
    """The loss of a product of numbers (`Gaussian`, first) and symbols (`Masked`), the mean over its columns."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def losses(self, model: Any, batch: Any) -> Tensor:
        process, source = model.process, Noise(self.seed, batch.index, noise.TRAIN_NOISE)
        x, t = process.data(batch.x), batch.u.clamp(1e-4, 1 - 1e-4)
        symbols = [name for name, part in process.processes.items() if isinstance(part, Masked)]
        z, eps = dict(x), {}
        for name in x.keys() - set(symbols):
            eps[name] = source.fold(name).normal(tuple(x[name].shape[1:]), x[name].device, x[name].dtype)
            z[name] = process.processes[name].corrupt(x[name], t, eps[name])
        count = torch.ones(())
        if symbols:
            count, masked = self._masked(process, {name: x[name] for name in symbols}, t, source, bool(eps))
            z |= masked
        belief = model(z, t, **batch.cond)
        losses = batch.x.new_zeros(len(t))
        for name, part in process.processes.items():
            if isinstance(part, Masked):
                nats = -belief[name].log_prob.gather(-1, x[name][..., None])[..., 0]
                hidden = torch.where(z[name] == part.mask, nats, 0.0).sum(1)
                losses = losses + hidden * (sum(x[each].shape[1] for each in symbols) / count.to(hidden))
            else:
                losses = losses + part.loss(belief[name], x[name], eps[name], None, None)
        return losses / batch.x.shape[1]

    def _masked(self, process: Any, x: State, t: Tensor, source: Noise, apart: bool) -> tuple[Tensor, State]:
        """(n, the symbols of all parts with n of them masked); apart: half of the rows have a share of their own."""
        every = torch.cat(list(x.values()), 1)
        own = source.fold("share").uniform((2,)).double()
        share = torch.where(own[:, 0] < 0.5, own[:, 1], t.cpu()) if apart else t
        n = counted(share, every).to(every.device)
        order = source.fold("order").normal((every.shape[1],), every.device).argsort(1).argsort(1)
        hidden = (order < n[:, None]).split([part.shape[1] for part in x.values()], 1)
        return n, {
            name: torch.where(some, process.processes[name].mask, x[name]) for name, some in zip(x, hidden, strict=True)
        }

    def suits(self, model: Any) -> None:
        process = getattr(model, "process", None)
        parts = process.processes.values() if isinstance(process, Product) else []
        if not parts or not all(isinstance(part, Gaussian | Masked) for part in parts):
            raise SfumatoError("The loss of tables is for products of numbers and masked symbols: leave it out.")
