"""The loss of a table's rows: numbers flow from noise, symbols are masked by exact counts, at levels of their own.

    loss = 1/D [ sum over numbers of 1/2 (y - y_hat)^2 + C / n sum over masks of -log p(x_i | z) ]

y the target, n = ceil(m C) of the C symbols masked, of D columns of both kinds together. Half of the rows have one time
t for all numbers and the share of masks m = t, which is where samples are drawn. In the others, so that any columns can
be known while others are drawn or scored, m is drawn by itself and a share of the numbers is known (t_i = 0, no loss);
the rest are at t in half of them, or else each at its own time, every second one at t_i = 1, where it says nothing. The
part of the symbols is the bound of `objectives.counts`.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.columns import NUMBERS, believe, takes_levels
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
        own = source.fold("share").uniform((3,), dtype=torch.float64)
        apart = own[:, 0] < 0.5
        symbols = {name: value for name, value in x.items() if name != NUMBERS}
        share = torch.where(apart, own[:, 1], t.cpu()) if NUMBERS in x else t.cpu()
        count, z = self._masked(process, symbols, share, source) if symbols else (torch.ones(()), {})
        losses = batch.x.new_zeros(len(t))
        if NUMBERS not in x:
            parts = model(z, t, **batch.cond)
        else:
            apart = apart & takes_levels(model)
            times = torch.where(apart[:, None], self._times(x[NUMBERS], t.cpu(), own[:, 2], source), t.cpu()[:, None])
            losses, parts = self._numbers(model, x[NUMBERS], z, (t, times.to(t.device), apart.to(t.device)), source)
        for name, hidden in z.items():
            if name == NUMBERS:
                continue
            nats = -parts[name].log_prob.gather(-1, x[name][..., None])[..., 0]
            sums = torch.where(hidden == process.processes[name].mask, nats, 0.0).sum(1)
            losses = losses + sums * (sum(each.shape[1] for each in symbols.values()) / count.to(sums))
        return losses / batch.x.shape[1]

    def _numbers(
        self, model: Any, x: Tensor, z: State, at: tuple[Tensor, Tensor, Tensor], source: Noise
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """(losses of the numbers that are not known, (B,), beliefs about the symbols z); z is given the numbers.

        at: (t, times of each number, rows that are told these).
        """
        part, (t, times, told) = model.process.processes[NUMBERS], at
        eps = source.fold(NUMBERS).normal(tuple(x.shape[1:]), x.device, x.dtype)
        flat, noisy = x.reshape(-1, 1), eps.reshape(-1, 1)
        z[NUMBERS] = part.corrupt(flat, times.reshape(-1), noisy).reshape(x.shape)
        found = believe(model, z, t, times, told)
        each = part.loss(found.each, flat, noisy, None, None).reshape(x.shape)
        return torch.where(times > 0, each, 0.0).sum(1), found.parts

    def _times(self, x: Tensor, t: Tensor, known: Tensor, source: Noise) -> Tensor:
        """A time for each number, float64 (B, n) on the CPU; known: the share of those at 0."""
        draws = source.fold("times").uniform((3, x.shape[1]), dtype=torch.float64)
        alone = (2 * draws[:, 1] - 1).clamp_min(0.0)
        times = torch.where(draws[:, 2, :1] < 0.5, t[:, None], torch.where(alone > 0, alone, 1.0))
        return torch.where(draws[:, 0] < known[:, None], 0.0, times)

    def _masked(self, process: Any, x: State, share: Tensor, source: Noise) -> tuple[Tensor, State]:
        """(n, the symbols of all parts with n of them masked)."""
        every = torch.cat(list(x.values()), 1)
        n = counted(share, every).to(every.device)
        order = source.fold("order").normal((every.shape[1],), every.device).argsort(1).argsort(1)
        hidden = (order < n[:, None]).split([part.shape[1] for part in x.values()], 1)
        return n, {
            name: torch.where(some, process.processes[name].mask, x[name]) for name, some in zip(x, hidden, strict=True)
        }

    def suits(self, model: Any) -> None:
        process = getattr(model, "process", None)
        parts = process.processes if isinstance(process, Product) else {}
        if not parts or not all(isinstance(part, Gaussian | Masked) for part in parts.values()):
            raise SfumatoError("The loss of tables is for products of numbers and masked symbols: leave it out.")
        numbers: Any = parts.get(NUMBERS)
        if numbers is None:
            return
        one = torch.ones(1, 1)
        known = numbers.read(one, one, torch.zeros(1, dtype=torch.float64))
        if not bool(numbers.loss(known, one, one, None, None).isfinite().all()):
            raise SfumatoError(
                f"Known numbers of a table stand at t = 0, where the target {numbers.target} of this schedule is "
                "infinite: take target='F'."
            )
