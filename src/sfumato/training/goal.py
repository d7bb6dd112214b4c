"""What a training step minimises, and what it learns on the way: the loop knows nothing else of a method.

    loss = mean over the batch of goal.losses(model, batch)

`Denoising` is the goal of every denoiser. `Plain` makes a goal of any function (model, batch) -> losses, so that an
autoencoder is trained by the same loop, with the same averages, checkpoints and budgets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, final, runtime_checkable

from torch import Tensor, nn

from sfumato.conditions import Conditions
from sfumato.errors import SfumatoError
from sfumato.objectives import denoising_loss
from sfumato.objectives.hybrid import Defensive, hybrid_loss
from sfumato.objectives.teacher import Clean
from sfumato.objectives.times import TimeDensity, UniformLogSNR
from sfumato.objectives.weights import Weight
from sfumato.schedule import Schedule
from sfumato.training.config import TrainConfig
from sfumato.training.objective import times_of, weight_of
from sfumato.training.validation import Held, Measure, Rows, Validator
from sfumato.world import ALONE, World


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one step sees.

    x: normalised samples (B, *shape); cond: conditions; index: numbers of the samples in the run, int64 (B,);
    u: places in (0, 1) that spread evenly over the batch, float64 (B,); world: the processes that share the batch, of
    which x and cond are this one's part.
    """

    x: Tensor
    cond: Conditions
    index: Tensor
    u: Tensor
    world: World = ALONE

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of at most `size` samples."""
        for start in range(0, len(self.x), size):
            part = slice(start, start + size)
            yield Batch(self.x[part], self.cond.rows(part), self.index[part], self.u[part], self.world)


@runtime_checkable
class Goal(Protocol):
    """What `fit` asks of an objective. Losses are means over the elements of a sample."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """One loss a sample, (B,), with gradients; a batch may come in parts, each with a call of its own."""

    def observe(self, batch: Batch, losses: Tensor) -> None:
        """Called after the step of the optimiser with the losses (B,), index and u of the whole batch.

        Of many processes each has x and cond of its share, and does the same: what it learns from more than losses
        comes from `batch.world.whole`. The gradients of `parameters` are then those of the step's loss.
        """

    def parameters(self) -> list[nn.Parameter]:
        """What is learned beside the network, by `observe`; the loop clears their gradients before each step."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold so that training goes on exactly."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""

    def measure(
        self, model: Any, x: Tensor, cond: Conditions, count: int, batch: int, train: Rows | None = None
    ) -> Measure:
        """How held-out samples x (N, *shape), normalised, are judged, on `count` fixed draws in batches.

        train: training samples to put beside them."""


@runtime_checkable
class Learner(Protocol):
    """A time density that learns from the losses: what such a one has beside `TimeDensity`."""

    def observe(self, logsnr: Tensor, losses: Tensor) -> None:
        """losses (B,): w |eps - eps_hat|^2 / p at the levels logsnr (B,), as they were drawn."""

    def parameters(self) -> list[nn.Parameter]: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def load(self, tensors: dict[str, Tensor]) -> None: ...


class WithoutState:
    """What a goal has that keeps nothing from step to step beside the network."""

    def parameters(self) -> list[nn.Parameter]:
        return []

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        pass


class Settled(WithoutState):
    """What a goal has that learns nothing from its losses either."""

    def observe(self, batch: Batch, losses: Tensor) -> None:
        pass


@final
class Denoising:
    """1/2 w(logsnr) / p(logsnr) |eps - eps_hat|^2 over the elements, times 2: for w None the target's mean square.

    clean: targets of less variance than the sample itself, those of a teacher or a reference (`objectives.teacher`);
    held-out samples are measured by themselves all the same.
    """

    def __init__(self, times: TimeDensity, weight: Weight | None, seed: int, clean: Clean | None = None) -> None:
        if times.moves and weight is None:
            raise SfumatoError(
                "A time density that adapts needs a weight, since the plain error of a target would change with it: "
                "choose one, such as weight='sigmoid' or 'elbo', or another density."
            )
        self.times, self.weight, self.seed, self.clean = times, weight, seed, clean
        self._learner = times if isinstance(times, Learner) else None
        self._schedule: Schedule | None = None

    def losses(self, model: Any, batch: Batch) -> Tensor:
        self._schedule = schedule = model.process.clock
        t = schedule.time(self.times.logsnr(batch.u, schedule))
        losses = denoising_loss(
            model, batch.x, t, weight=self.weight, times=self.times, seed=self.seed, index=batch.index,
            clean=self.clean, cond=batch.cond,
        )  # fmt: skip
        return losses * (2 / batch.x[0].numel())

    def observe(self, batch: Batch, losses: Tensor) -> None:
        if self._learner is not None:
            assert self._schedule is not None
            self._learner.observe(self.times.logsnr(batch.u, self._schedule).detach(), losses)

    def parameters(self) -> list[nn.Parameter]:
        return [] if self._learner is None else self._learner.parameters()

    def tensors(self) -> dict[str, Tensor]:
        return {} if self._learner is None else self._learner.tensors()

    def load(self, tensors: dict[str, Tensor]) -> None:
        if self._learner is not None:
            self._learner.load(tensors)

    def measure(
        self, model: Any, x: Tensor, cond: Conditions, count: int, batch: int, train: Rows | None = None
    ) -> Validator:
        # what moves would measure another set of levels each time, and draws by one density and divides by another
        times = UniformLogSNR() if self.times.moves else self.times
        return Validator(x, cond, model, times, self.weight, self.seed, count, batch, self.times, train)


@final
class Hybrid(Settled):
    """`Denoising` at the levels k / T, and the bound that the variance of the steps learns by (`hybrid_loss`).

    A quarter of the levels is uniform in t whatever the density of the others, since the bound asks for all of them.
    """

    def __init__(self, times: TimeDensity, weight: Weight | None, seed: int) -> None:
        if times.moves:
            raise SfumatoError("A learned variance needs a fixed time density, such as times='uniform'.")
        self.times, self.weight, self.seed = Defensive(times), weight, seed
        self._judge = Denoising(times, weight, seed)

    def losses(self, model: Any, batch: Batch) -> Tensor:
        schedule = model.process.schedule
        t = schedule.time(self.times.logsnr(batch.u, schedule))
        losses = hybrid_loss(model, batch.x, t, self.weight, self.times, self.seed, batch.index, cond=batch.cond)
        return losses * (2 / batch.x[0].numel())

    def measure(
        self, model: Any, x: Tensor, cond: Conditions, count: int, batch: int, train: Rows | None = None
    ) -> Validator:
        """By the denoising loss under the density that was asked for."""
        return self._judge.measure(model, x, cond, count, batch, train)


@final
class Plain(Settled):
    """A goal that learns nothing beside the network: `losses` is a function (model, batch) -> (B,)."""

    def __init__(self, losses: Callable[[Any, Batch], Tensor], seed: int = 0) -> None:
        self._losses, self.seed = losses, seed

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._losses(model, batch)

    def measure(
        self, model: Any, x: Tensor, cond: Conditions, count: int, batch: int, train: Rows | None = None
    ) -> Held:
        return Held(lambda by, rows: self._losses(by, Batch(*rows)), x, cond, self.seed, count, batch, train)


def goal_of(config: TrainConfig) -> Denoising | Hybrid:
    """The goal that the settings of a run name."""
    kind = Hybrid if config.variance == "learned" else Denoising
    return kind(times_of(config.times), weight_of(config.weight), config.seed)
