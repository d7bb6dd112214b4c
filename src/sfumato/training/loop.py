"""The training loop: a generator that takes one optimiser step per value it yields.

    loss = mean over the batch of loss.losses(model, batch);   Muon or AdamW;   EMA

Every step is a function of (seed, samples seen, state). With a budget in minutes the learning rate follows the
fraction of the budget used; the seconds used are part of the state.
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
from sfumato.machine import out_of_memory, release_memory
from sfumato.objectives.loss import Batch, Loss, one_a_sample
from sfumato.process import source_of
from sfumato.training.batches import Batches
from sfumato.training.compiling import compiled, compiling
from sfumato.training.config import TrainConfig
from sfumato.training.evaluation_schedule import log_every
from sfumato.training.guard import STRIKES, WINDOW, Incident, find, precision
from sfumato.training.parallel import average_whole, clip, finite, no_sync, shared
from sfumato.training.state import State
from sfumato.training.validation import Judge

_WARMUP_SHARE = 0.03  # longest warm-up, as a fraction of the run


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run after a step.

    loss, grad_norm: means over the steps since they were last reported, None in between. lr: learning rate of this
    step. rate: samples per second. eta, elapsed: seconds. fraction, before: fraction of the budget used after and
    before the step. validation: present after some steps. micro: samples computed at once. incident: why the step was
    skipped, if it was. data_wait: fraction of the time spent waiting for data, with each loss. advice: how to wait
    less, given once.
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
    """The learning rate as a fraction of its peak: a linear rise, a plateau, a linear fall to zero.

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
    loss: Loss | None = None,
    world: World = ALONE,
) -> Iterator[Progress]:
    """Train a model; yields after each step and keeps all results in `state`.

    model: a denoiser, or any module with `net` (which is trained), `spec` and `device`. loss: by default the one that
    the settings name. x: (N, *shape) in the units of model.spec (normalised floats without one); cond: the samples'
    conditions, encoded for the network (`Conditions.of`), or labels alone as int64 (N,). holdout: (x, cond) for
    validation. state: that of a run to continue, with its loss (default: a new one). world: the processes that train
    together, each of which makes this call with the same arguments.
    config needs a budget, steps or minutes. The caller may stop iterating at any time and continue later with the same
    state. A step whose loss or gradient is not finite is skipped and reported (`guard`). Raises SfumatoError if that
    happens STRIKES times within WINDOW steps, unless the caller goes back to an earlier state first.
    """
    if config.steps is None and config.minutes is None:
        raise SfumatoError("Training needs a budget: set steps or minutes.")
    state = state or State(model, config, loss, world)
    judge, known = None, Conditions.of(cond)
    if holdout is not None and len(holdout[0]):
        judge = Judge(state, config, (x, known), holdout)
    kept = source_of(getattr(model, "process", None))
    batches = Batches(x, known, model.spec, config.seed, config.drop, model.device, state.dtype, config.workers, kept)
    with closing(batches), _threads(config.threads):
        yield from _steps(model, batches, config, state, judge, world)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set torch's number of threads within the block; None leaves it unchanged."""
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
    report, share = _Reporter(state, config, len(batches.x), judge, world), world.share(config.batch)
    model.train()
    losses = shared(compiled(model, world) if config.compile else model, state.loss, world)
    if state.unlogged:
        before = state.before(config)
        progress = report.progress(before, _rate(state, config, state.samples, before))
        state.reported = True
        yield progress
    while state.fraction(config) < 1:
        if state.reported:
            state.sums.zero_()
            state.line_due, state.reported = False, False
        before = state.fraction(config)
        lr = _rate(state, config, state.samples + config.batch, before)
        batch = Batch(*batches.take(state.samples, config.batch, share), world)
        with compiling(config.compile):
            taken = _step(losses, batch, config, state, lr, world)
        incident = None if taken else _skip(state, config, batch, batches, lr, world)
        report.tick(taken)
        progress = report.progress(before, lr)
        waits = batches.waiting.report() if state.line_due else {}
        progress = dataclasses.replace(progress, incident=incident, **waits)
        state.reported = state.line_due
        yield progress
        if len(state.strikes) >= STRIKES:  # the caller did not go back to an earlier state
            raise SfumatoError(
                f"Training stopped at step {state.step:,}: {STRIKES} of {WINDOW} steps were skipped; in the last one, "
                f"{incident.where if incident else 'the loss was not finite'}. Continue from an earlier state with a "
                "lower --lr or --precision float32."
            )


def _rate(state: State, config: TrainConfig, samples: int, fraction: float) -> float:
    """The learning rate of a step that ends after `samples` samples and begins at `fraction` of the budget."""
    return config.lr * state.slower * rate_factor(samples, fraction, config)


class _Reporter:
    """Builds the Progress of each step: time, rate, mean loss and gradient norm, validation."""

    def __init__(self, state: State, config: TrainConfig, rows: int, judge: Judge | None, world: World) -> None:
        self.state, self.config, self.rows, self.judge, self.world = state, config, rows, judge, world
        self._start, self._samples = time.monotonic() - state.elapsed - state.waited, state.samples
        self._first = state.elapsed

    def tick(self, taken: bool) -> None:
        """Count the time of the step that ends now; taken: whether it was applied."""
        state, config = self.state, self.config
        elapsed = time.monotonic() - self._start - state.waited
        # a budget in minutes must end at the same step in all processes
        state.elapsed = self.world.broadcast(elapsed) if config.steps is None else elapsed
        state.line_due = state.fraction(config) >= 1 or state.step % log_every(config) == 0
        if taken:
            state.midway = False

    def progress(self, before: float, lr: float) -> Progress:
        """The progress after a step that began at the fraction `before` of the budget."""
        state, config = self.state, self.config
        fraction = state.fraction(config)
        loss = norm = None
        if state.line_due:
            total, norms, count = state.sums.tolist()
            loss, norm = (total / count, norms / count) if count else (None, None)
        samples, seconds = state.samples - self._samples, state.elapsed - self._first
        if not samples:  # this process has not taken a step yet
            samples, seconds = state.samples, state.elapsed
        rate = samples / max(1e-9, seconds)
        validation = None if self.judge is None else self.judge.at(before, fraction, self.world)
        return Progress(
            state.step, state.samples, state.samples / self.rows, min(1.0, fraction), lr, state.elapsed,
            self._eta(rate), rate, loss, norm, validation, fraction >= 1, min(state.micro, config.batch), before,
        )  # fmt: skip

    def _eta(self, rate: float) -> float:
        if self.config.steps is None:
            return max(0.0, 60 * (self.config.minutes or 0.0) - self.state.elapsed)
        return (self.config.steps - self.state.step) * self.config.batch / max(1e-9, rate)


def _step(shared: nn.Module, batch: Batch, config: TrainConfig, state: State, lr: float, world: World) -> bool:
    """Step the optimiser and the averages. Returns False, with nothing applied, if loss or gradient is not finite.

    Also returns False if the step itself made weights infinite or NaN; only an earlier state can then help. The state
    stays `midway` until the step is counted.
    """
    losses = world.all_gather(gradients(shared, batch, config.batch, state, world))
    loss = losses.mean()
    largest = config.clip or math.inf
    norm = clip(state.parameters, largest)
    if not math.isfinite(float(loss + norm)):
        return False
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("rate", 1.0)
    state.midway = True
    state.optimizer.step()
    if not finite(state.parameters):
        return False
    state.players.step(state.denoiser, batch.split(state.micro), config.batch, lr, world)
    if world.size > 1:
        index = torch.arange(state.samples, state.samples + config.batch)
        batch = dataclasses.replace(batch, index=index, u=world.all_gather(batch.u))
    state.loss.observe(batch, losses)
    state.average(config.batch)
    state.sums += torch.stack((loss, norm.detach(), torch.ones_like(loss))).double()
    return True


def gradients(shared: nn.Module, batch: Batch, total: int, state: State, world: World) -> Tensor:
    """The losses (B,) of this process's share of a batch of `total`; gradients of the batch mean go to `.grad`.

    Computed in parts of `state.micro` samples. When memory runs out the parts are halved, for good; the batch and its
    gradient stay the same. Several processes must use equal parts, so there the error is raised instead.
    """
    while True:
        try:
            losses = _in_parts(shared, batch, world.size / total, state)
            average_whole(state.parameters, world)
            return losses
        except (RuntimeError, MemoryError) as error:
            largest = min(state.micro, len(batch.x))
            if not out_of_memory(error) or largest == 1 or world.size > 1:
                raise
            state.micro = -(-largest // 2)
        release_memory()


def _in_parts(shared: nn.Module, batch: Batch, scale: float, state: State) -> Tensor:
    """The losses (B,) of a batch computed in parts; the gradient of their sum times `scale` goes to `.grad`.

    DistributedDataParallel then averages it over the processes.
    """
    state.optimizer.zero_grad(set_to_none=True)
    for parameter in state.loss.parameters():
        parameter.grad = None
    found, parts = [], list(batch.split(state.micro))
    for i, part in enumerate(parts):
        with no_sync(shared, last=i + 1 == len(parts)):
            losses = one_a_sample(shared(part), len(part.x), state.loss)
            (losses.sum() * scale).backward()
        found.append(losses.detach())
    return torch.cat(found)


def _skip(state: State, config: TrainConfig, batch: Batch, batches: Batches, lr: float, world: World) -> Incident:
    """Find the cause of a skipped step and count its batch as seen."""
    where, lost = find(state.denoiser, state.loss, batch, world)
    state.step += 1
    rows = batches.rows(state.samples, config.batch).tolist()
    if state.unseen == state.samples:
        state.unseen += config.batch
    state.samples += config.batch
    recent = [step for step in state.strikes if step > state.step - WINDOW]
    state.strikes = [*recent, *[state.step] * (STRIKES if lost else 1)]
    samples = list(range(state.samples - config.batch, state.samples))
    return Incident(state.step, samples, rows, where, lr, precision(state.denoiser))
