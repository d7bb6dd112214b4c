"""The training loop: a generator that does one step of the optimiser for each value taken from it.

    loss = mean over the batch of goal.losses(model, batch);   Muon or AdamW;   EMA

Every step is a function of (seed, samples seen, state). Under a budget in minutes the learning rate follows the
fraction of the budget that is used; the seconds used are part of the state.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.conditions import Conditions
from sfumato.data.rows import Samples
from sfumato.diagnostics.validation import Validation
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError
from sfumato.machine import out_of_memory, released
from sfumato.objectives.loss import one_a_sample
from sfumato.training.batches import Batches
from sfumato.training.compiling import compiled, compiling
from sfumato.training.config import TrainConfig
from sfumato.training.evaluation_schedule import log_every
from sfumato.training.goal import Batch, Goal
from sfumato.training.guard import STRIKES, WINDOW, Incident, find, precision
from sfumato.training.parallel import clip, finite, quiet, settle, shared
from sfumato.training.state import State
from sfumato.training.validation import Judge

_WARMUP_SHARE = 0.03  # of a run is the longest warm-up


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after a step.

    loss and grad_norm are means since the last step that had them, None between; lr the rate of this step; rate in
    samples a second; eta and elapsed in seconds; fraction of the budget used, and before the step; validation at some
    steps; micro: samples that are computed at once, incident: where the step was skipped. data_wait: the fraction of
    the time that steps waited for their data, with each loss; advice: what a user should know, once.
    """

    step: int
    samples: int
    epoch: float
    fraction: float
    lr: float
    elapsed: float
    eta: float
    rate: float
    loss: float | None = None
    grad_norm: float | None = None
    validation: Validation | None = None
    done: bool = False
    micro: int = 0
    before: float = 0.0
    incident: Incident | None = None
    data_wait: float | None = None
    advice: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        apart = ("validation", "incident", "micro", "before", "advice")
        line = {name: value for name, value in vars(self).items() if value is not None and name not in apart}
        return line if self.validation is None else {**line, **self.validation.to_dict()}


def rate_factor(samples: int, fraction: float, config: TrainConfig) -> float:
    """The learning rate over its highest: a linear rise, a plateau, a linear fall to zero.

    min(1, max(samples / warmup, fraction / 0.03)) * min(1, (1 - fraction) / decay)
    """
    rise = 1.0 if config.warmup == 0 else min(1.0, max(samples / config.warmup, fraction / _WARMUP_SHARE))
    fall = 1.0 if config.decay == 0 else min(1.0, max(0.0, 1 - fraction) / config.decay)
    return rise * fall


def fit(
    model: Any,
    x: Samples,
    config: TrainConfig,
    cond: Mapping[str, Any] | Tensor | None = None,
    holdout: tuple[Samples, Mapping[str, Any] | Tensor | None] | None = None,
    state: State | None = None,
    goal: Goal | None = None,
    world: World = ALONE,
) -> Iterator[Progress]:
    """Train a model; yields after each step, and leaves everything in `state`.

    model: a denoiser, or any module with `net` (what is trained), `spec` and `device`. goal: what is minimised, the
    denoising loss of the settings by default. x: (N, *shape) in the units of model.spec (normalised floats without
    one); cond: the conditions of the samples as the network hears them (`Conditions.of`), labels alone as int64 (N,).
    holdout: (x, cond) for validation. state: continues a run (default: a new one), and
    brings its goal. world: the processes that train together, each of which calls this with the same arguments.
    config needs a budget, steps or minutes. The caller may stop taking values at any time and go on later with the
    same state. A step whose loss or gradient is not finite is skipped and says so (`guard`); SfumatoError where that
    happens STRIKES times within WINDOW steps, unless the caller has gone back to an earlier state by then.
    """
    if config.steps is None and config.minutes is None:
        raise SfumatoError("Training needs a budget: set steps or minutes.")
    state = state or State(model, config, goal, world)
    judge, known = None, Conditions.of(cond)
    if holdout is not None and len(holdout[0]):
        judge = Judge(state, config, (x, known), holdout)
    batches = Batches(x, known, model.spec, config.seed, config.drop, model.device, state.dtype, config.workers)
    with closing(batches), _threads(config.threads):
        yield from _steps(model, batches, config, state, judge, world)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Within the block torch has so many threads; None leaves them alone."""
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _steps(
    model: Any, batches: Batches, config: TrainConfig, state: State, judge: Judge | None, world: World
) -> Iterator[Progress]:
    clock, share = _Clock(state, config, world), world.share(config.batch)
    model.train()
    losses = shared(compiled(model, world) if config.compile else model, state.goal, world)
    while clock.fraction() < 1:
        before = clock.fraction()
        lr = config.lr * state.slower * rate_factor(state.samples + config.batch, before, config)
        batch = Batch(*batches.take(state.samples, config.batch, share), world)
        with compiling(config.compile):
            taken = _step(losses, batch, config, state, lr, world)
        incident = None if taken else _skip(state, config, batch, batches, lr, world)
        clock.tick()
        progress = _progress(state, config, clock, before, lr, len(batches.x), judge, world)
        told = batches.waiting.told() if progress.loss is not None or progress.done else {}
        yield dataclasses.replace(progress, incident=incident, **told)
        if len(state.strikes) >= STRIKES:  # whoever takes the values did not go back
            raise SfumatoError(
                f"Training stopped at step {state.step:,}: {STRIKES} steps of {WINDOW} could not be taken; in the last "
                f"one {incident.where if incident else 'the loss was not finite'}. Go on from an earlier state with a "
                "lower --lr or --precision float32."
            )


class _Clock:
    """The fraction of the budget used, and the pace."""

    def __init__(self, state: State, config: TrainConfig, world: World) -> None:
        self.state, self.config, self.world = state, config, world
        self._start, self._samples = time.monotonic() - state.elapsed - state.waited, state.samples
        self._first = state.elapsed

    def tick(self) -> None:
        elapsed = time.monotonic() - self._start - self.state.waited
        # a budget in time must end for all at the same step
        self.state.elapsed = self.world.broadcast(elapsed) if self.config.steps is None else elapsed

    def fraction(self) -> float:
        if self.config.steps is not None:
            return self.state.step / self.config.steps
        return self.state.elapsed / (60 * (self.config.minutes or 1.0))

    def rate(self) -> float:
        """Samples a second since this process began."""
        return (self.state.samples - self._samples) / max(1e-9, self.state.elapsed - self._first)

    def eta(self) -> float:
        if self.config.steps is None:
            return max(0.0, 60 * (self.config.minutes or 0.0) - self.state.elapsed)
        return (self.config.steps - self.state.step) * self.config.batch / max(1e-9, self.rate())


def _step(shared: nn.Module, batch: Batch, config: TrainConfig, state: State, lr: float, world: World) -> bool:
    """One step of the optimiser and the average; False where it is not finite, with nothing applied but to weights that
    the step itself has made infinite: `find` sees these, and only an earlier state can help."""
    losses = world.all_gather(gradients(shared, batch, config.batch, state, world))
    loss = losses.mean()
    largest = config.clip or math.inf
    norm = clip(state.parameters, largest)
    if not math.isfinite(float(loss + norm)):
        return False
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.midway = True
    state.optimizer.step()
    if not finite(state.parameters):
        return False
    state.players.step(state.denoiser, batch.split(state.micro), config.batch, lr, world)
    if world.size > 1:
        index = torch.arange(state.samples, state.samples + config.batch)
        batch = dataclasses.replace(batch, index=index, u=world.all_gather(batch.u))
    state.goal.observe(batch, losses)
    state.average(config.batch)
    state.sums += torch.stack((loss, norm.detach(), torch.ones_like(loss))).double()
    state.midway = False
    return True


def gradients(shared: nn.Module, batch: Batch, total: int, state: State, world: World) -> Tensor:
    """The losses (B,) of a share of a batch of `total`, and the gradients of the batch's mean in the parameters.

    In parts of `state.micro` samples. Where memory does not suffice the parts are halved, for good; the batch and its
    gradient stay what they are. With more than one process that is left to the settings: all must take equal parts.
    """
    while True:
        try:
            losses = _in_parts(shared, batch, world.size / total, state)
            settle(state.parameters, world)
            return losses
        except (RuntimeError, MemoryError) as error:
            largest = min(state.micro, len(batch.x))
            if not out_of_memory(error) or largest == 1 or world.size > 1:
                raise
            state.micro = -(-largest // 2)
        released()


def _in_parts(shared: nn.Module, batch: Batch, scale: float, state: State) -> Tensor:
    """Losses times `scale` are summed; DistributedDataParallel takes the mean over the processes."""
    state.optimizer.zero_grad(set_to_none=True)
    for parameter in state.goal.parameters():
        parameter.grad = None
    found, parts = [], list(batch.split(state.micro))
    for i, part in enumerate(parts):
        with quiet(shared, last=i + 1 == len(parts)):
            losses = one_a_sample(shared(part), len(part.x), state.goal)
            (losses.sum() * scale).backward()
        found.append(losses.detach())
    return torch.cat(found)


def _skip(state: State, config: TrainConfig, batch: Batch, batches: Batches, lr: float, world: World) -> Incident:
    """Count a step that is not taken, and say why."""
    where, lost = find(state.denoiser, state.goal, batch, world)
    state.step += 1
    rows = batches.rows(state.samples, config.batch).tolist()
    if state.unseen == state.samples:
        state.unseen += config.batch
    state.samples += config.batch
    recent = [step for step in state.strikes if step > state.step - WINDOW]
    state.strikes = [*recent, *[state.step] * (STRIKES if lost else 1)]
    samples = list(range(state.samples - config.batch, state.samples))
    return Incident(state.step, samples, rows, where, lr, precision(state.denoiser))


def _progress(
    state: State, config: TrainConfig, clock: _Clock, before: float, lr: float, rows: int, judge: Judge | None,
    world: World,
) -> Progress:  # fmt: skip
    fraction = clock.fraction()
    done = fraction >= 1
    loss = norm = None
    if done or state.step % log_every(config) == 0:
        total, norms, count = state.sums.tolist()
        loss, norm = (total / count, norms / count) if count else (None, None)
        state.sums.zero_()
    validation = None if judge is None else judge.at(before, fraction, world)
    return Progress(
        state.step, state.samples, state.samples / rows, min(1.0, fraction), lr, state.elapsed, clock.eta(),
        clock.rate(), loss, norm, validation, done, min(state.micro, config.batch), before,
    )  # fmt: skip
