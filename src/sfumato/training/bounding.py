"""The goal of training by the bound itself: L_vlb of mean and variance, its levels drawn by their loss history."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from sfumato.conditions import Conditions
from sfumato.objectives.history import LossHistory
from sfumato.objectives.hybrid import STEPS, vlb_loss
from sfumato.objectives.times import TimeDensity, UniformTime
from sfumato.schedule import Schedule
from sfumato.training.goal import Batch
from sfumato.training.validation import Held, Rows


@final
class Bounding:
    """Nats a number of x: T L_k / (p(t) D), an unbiased estimate of the bound of T levels less its prior term.

    steps: T. variance: posterior, beta or learned; what the model has learned by default. history: by which the levels
    are drawn (2102.09672, Eq. 18), of T levels by default; a checkpoint holds it. Held-out samples are judged on
    uniform levels.
    """

    def __init__(
        self, steps: int = STEPS, variance: str | None = None, history: LossHistory | None = None, seed: int = 0
    ) -> None:
        self.steps, self.variance, self.seed = steps, variance, seed
        self.history = LossHistory(steps) if history is None else history
        self._schedule: Schedule | None = None

    def losses(self, model: Any, batch: Batch) -> Tensor:
        self._schedule = model.process.schedule
        return self._nats(model, batch, self.history)

    def _nats(self, model: Any, batch: Batch, times: TimeDensity) -> Tensor:
        schedule = model.process.schedule
        variance = self.variance or ("learned" if model.variance == "learned" else "posterior")
        t = schedule.time(times.logsnr(batch.u, schedule))
        nats = vlb_loss(
            model, batch.x, t, times, self.seed, batch.index, steps=self.steps, variance=variance, cond=batch.cond
        )
        return nats / batch.x[0].numel()

    def observe(self, batch: Batch, losses: Tensor) -> None:
        assert self._schedule is not None
        self.history.observe(self.history.logsnr(batch.u, self._schedule).detach(), losses)

    def parameters(self) -> list[nn.Parameter]:
        return []

    def tensors(self) -> dict[str, Tensor]:
        return self.history.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.history.load(tensors)

    def measure(
        self, model: Any, x: Tensor, cond: Conditions, count: int, batch: int, train: Rows | None = None
    ) -> Held:
        return Held(
            lambda by, rows: self._nats(by, Batch(*rows), UniformTime()), x, cond, self.seed, count, batch, train
        )
