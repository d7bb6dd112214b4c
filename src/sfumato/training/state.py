"""Everything that a training step changes, as tensors and numbers; with the seed it determines all later steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sfumato import registry
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError
from sfumato.files import first_line
from sfumato.nets.layout import channels_last
from sfumato.objectives.loss import Loss
from sfumato.registry import register
from sfumato.training import averages
from sfumato.training.config import TrainConfig
from sfumato.training.ema import EMA
from sfumato.training.muon import Muon, split
from sfumato.training.parallel import assign, sharding
from sfumato.training.parts import loss_of
from sfumato.training.players import Players

_COUNTERS = ("step", "samples", "elapsed", "strikes", "rollbacks", "slower", "triples", "spent", "unseen")


class State:
    """Weights, optimiser, moving averages, what the loss learns, counters.

    denoiser: the model that is trained, not necessarily a `Denoiser`. loss: by default the one that the settings name.
    players: parameters of the loss that have an optimiser of their own.
    step, samples: counted over the whole run. unseen: samples in steps skipped before the first successful one.
    elapsed: seconds of training; waited: seconds of this process that do not count as training; spent: seconds used
    besides the steps, by purpose.
    sums: (loss, gradient norm, steps) since the last line of the log.
    micro: samples computed at once. triples: number of fixed draws per validation, 0 before the first.
    strikes: the recently skipped steps; rollbacks: how often the run went back; slower: the resulting factor on the
    learning rate.
    given: whether training started from the caller's weights rather than from the seed's.
    midway: whether a step, or `load`, is half applied; such a state must not be saved.
    line_due: whether the last step completes a line of the log; reported: whether the loop has yielded that line, so
    that `sums` restart with the next step.
    sharded: whether this process holds shards of a network distributed over `world`.
    """

    def __init__(self, denoiser: Any, config: TrainConfig, loss: Loss | None = None, world: World = ALONE) -> None:
        self.denoiser, self.loss = denoiser, loss_of(config, loss)
        self.loss.suits(denoiser)
        self.sharded = world.size > 1 and config.parallel == "fsdp"
        shard = sharding(world) if self.sharded else None
        if not self.sharded:
            channels_last(denoiser.net)
        self.ema = EMA(denoiser, config.ema, shard) if config.ema else None
        self.averages = [EMA(denoiser, width, shard) for width in averages.WIDTHS if config.snapshots]
        if shard is not None:
            shard(denoiser.net)
        self.parameters = [p for p in denoiser.net.parameters() if p.requires_grad]
        self.optimizer = optimizer(denoiser.net, config, getattr(denoiser, "compute_dtype", None))
        self.loss.to(denoiser.device)
        self.players = Players(self.loss, config.lr)
        self.step, self.samples, self.elapsed = 0, 0, 0.0
        self.waited = 0.0
        self.micro = config.micro or config.batch
        self.strikes: list[int] = []
        self.rollbacks, self.slower = 0, 1.0
        self.triples = 0
        self.spent: dict[str, float] = {}
        self.unseen = 0
        self.given, self.midway = False, False
        self.line_due, self.reported = False, False
        self.sums = torch.zeros(3, dtype=torch.float64, device=denoiser.device)

    @contextmanager
    def spending(self, on: str) -> Iterator[None]:
        """Add the time of the block to `spent[on]`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.spent[on] = self.spent.get(on, 0.0) + time.monotonic() - start

    def average(self, batch: int) -> None:
        """Update the averages after a step of `batch` samples, and count the step."""
        before = 0 if self.samples == self.unseen else self.samples  # the first real step replaces the initial weights
        for each in (self.ema, *self.averages):
            if each is not None:
                each.update(before, self.samples + batch)
        self.step += 1
        self.samples += batch

    def fraction(self, config: TrainConfig) -> float:
        """The fraction of the budget used."""
        if config.steps is not None:
            return self.step / config.steps
        return self.elapsed / (60 * (config.minutes or 1.0))

    @property
    def unlogged(self) -> bool:
        """Whether the run was interrupted after its last step but before that step's line of the log was written."""
        return self.line_due and not self.reported

    def before(self, config: TrainConfig) -> float:
        """The fraction of the budget at which the last step began; approximate for a budget in minutes."""
        if config.steps is not None:
            return (self.step - 1) / config.steps
        return self.fraction(config) * (self.step - 1) / self.step

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of samples, noise and weights: float64 if the network has it, otherwise float32."""
        return next((p.dtype for p in self.parameters if p.dtype == torch.float64), torch.float32)

    @property
    def best(self) -> Any:
        """The model to use: the moving average if there is one."""
        return self.ema.denoiser if self.ema else self.denoiser

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for a checkpoint."""
        found = {f"net.{name}": value for name, value in self.denoiser.net.state_dict().items()}
        if self.ema:
            found |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        if self.averages:
            found |= {f"averages.{name}": value for name, value in averages.tensors(self.averages).items()}
        for whose, (optimizer, parameters) in self._optimizers().items():
            for i, parameter in enumerate(parameters):
                found |= {f"{whose}.{i}.{name}": value for name, value in optimizer.state[parameter].items()}
        found |= {f"goal.{name}": value for name, value in self.loss.tensors().items()}
        return found | {"sums": torch.zeros_like(self.sums) if self.reported else self.sums}

    def _optimizers(self) -> dict[str, tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]]:
        found = {"optimizer": (self.optimizer, self.parameters)}
        if self.players.optimizer is not None:
            found["players"] = (self.players.optimizer, self.players.parameters)
        return found

    def counters(self) -> dict[str, Any]:
        found: dict[str, Any] = {name: copy.copy(getattr(self, name)) for name in _COUNTERS}
        return found | {"unlogged": self.unlogged}

    def load(self, tensors: Mapping[str, Tensor], counters: dict[str, Any]) -> None:
        """Load the results of `tensors` and `counters`, from whichever number of processes, whole or sharded."""
        self.midway, self.reported = True, False
        try:
            self._make_moments(tensors)
            own = {name: value for name, value in self.tensors().items() if not name.startswith("goal.")}
            for name, value in own.items():
                assign(value, tensors[name])
            learned = [name for name in tensors if name.startswith("goal.")]
            self.loss.load({name.removeprefix("goal."): tensors[name] for name in learned})
            for name in _COUNTERS:
                setattr(self, name, copy.copy(counters[name]))
            self.line_due = counters.get("unlogged", False)
            self.midway = False
        except (KeyError, RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
            first = first_line(error)
            raise SfumatoError(f"The checkpoint belongs to another network or other settings ({first}).") from None

    def _make_moments(self, names: Iterable[str]) -> None:
        """Allocate the optimisers' state for each parameter, in the parameter's memory layout."""
        optimizers = self._optimizers()
        for optimizer, _ in optimizers.values():
            optimizer.state.clear()
        for name in names:
            whose, _, rest = name.partition(".")
            if whose not in optimizers:
                continue
            optimizer, parameters = optimizers[whose]
            number, kind = rest.split(".")
            like: Any = parameters[int(number)]
            scalar = torch.zeros((), dtype=torch.float32, device=like.device)
            optimizer.state[like][kind] = scalar if kind == "step" else torch.empty_like(like, requires_grad=False)


def optimizer(net: torch.nn.Module, config: TrainConfig, dtype: torch.dtype | None = None) -> torch.optim.Optimizer:
    """The optimiser that the settings name, for a network. dtype: compute dtype of the network and of Muon's msign."""
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    found: torch.optim.Optimizer = registry.get("optimizer", config.optimizer)(named, config, dtype)
    return found


@register("optimizer", "muon")
def muon(
    named: list[tuple[str, torch.nn.Parameter]], config: TrainConfig, dtype: torch.dtype | None
) -> torch.optim.Optimizer:
    """Muon for the matrices between hidden states and AdamW for the rest."""
    matrices, others, scales = split(named)
    return Muon(
        matrices, others, config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, dtype=dtype, scales=scales
    )


@register("optimizer", "adamw")
def adamw(
    named: list[tuple[str, torch.nn.Parameter]], config: TrainConfig, dtype: torch.dtype | None
) -> torch.optim.Optimizer:
    """AdamW (fused) for all parameters."""
    matrices, others, scales = split(named)
    return Muon([], matrices + others, config.lr, (0.9, 0.99), weight_decay=config.weight_decay, scales=scales)
