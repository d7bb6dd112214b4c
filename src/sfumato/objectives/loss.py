"""A loss: what a training step minimises, the mean over the batch of losses(model, batch), and what it learns itself.

Any `nn.Module` with `losses` is one. `Loss` lists what else one may define, and the defaults.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from sfumato.conditions import Conditions
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError
from sfumato.objectives.density import TimeDensity
from sfumato.objectives.weights import Weight


@dataclasses.dataclass(frozen=True)
class Batch:
    """The data of one training step.

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


class Levels(NamedTuple):
    """How held-out samples are judged level by level: a fixed density, the weight, and the density of training."""

    times: TimeDensity
    weight: Weight | None
    trained: TimeDensity


class Loss(nn.Module, abc.ABC):
    """The losses that `sf.train(loss=...)` takes; they are means over the elements of a sample.

    network: the word for a network of a size ("auto", "tiny" ..), where a loss trains another than a denoiser's.
    """

    network: str | None = None

    @abc.abstractmethod
    def losses(self, model: Any, batch: Any) -> Tensor:
        """One loss a sample, (B,), with gradients; a batch may come in parts, each with a call of its own."""

    def observe(self, batch: Any, losses: Tensor) -> None:
        """Called after the step of the optimiser with the losses (B,), index and u of the whole batch.

        Of many processes each has x and cond of its share, and does the same: what it learns from more than losses
        comes from `batch.world.all_gather`. The gradients of `parameters` are then those of the step's loss.
        """

    def players(self) -> Iterable[nn.Parameter]:
        """Parameters that an optimiser of their own steps: a critic, a fake score, learned weights.

        By the gradients that `losses` left, or, where the loss has `player_losses(model, batch)` -> (B,), by those of
        their mean.
        """
        return ()

    def held(self, model: Any, batch: Any) -> Tensor:
        """The losses (B,) of held-out samples; those of training unless said otherwise."""
        return self.losses(model, batch)

    def levels(self) -> Levels | None:
        """How held-out samples are judged by noise level; None for a loss without levels."""
        return None

    def model(self, net: nn.Module, spec: Any) -> Any:
        """The model that is trained around the network; None is the denoiser of the settings."""
        return None

    def suits(self, model: Any) -> None:
        """Raise SfumatoError for a model that this loss cannot train."""

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint must hold for an exact resume."""
        return dict(self.state_dict())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        self.load_state_dict(dict(tensors))


def one_a_sample(found: Any, count: int, whose: Any, what: str = "losses", trains: bool = True) -> Tensor:
    """`found`, checked to be one loss for each of `count` samples; SfumatoError says what came and what is needed."""
    whose = getattr(whose, "module", whose)
    got = f"a {type(found).__name__}"
    if isinstance(found, Tensor):
        got = f"a tensor of shape {tuple(found.shape)}"
        if found.shape == (count,) and (found.requires_grad or not trains):
            return found
        got += " without a gradient" if found.shape == (count,) else ""
    raise SfumatoError(
        f"{what} of {type(whose).__name__} gives {got} for {count} samples: a tensor of one number a sample is needed, "
        f"of shape ({count},){', that depends on the weights' if trains else ''}."
    )


class CompletedLoss(Loss):
    """A module with `losses` and perhaps more of what a `Loss` may define, completed by the defaults."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        for name in ("observe", "players", "player_losses", "held", "levels", "model"):
            if hasattr(module, name):
                setattr(self, name, getattr(module, name))
        self.network = getattr(module, "network", None)

    def losses(self, model: Any, batch: Any) -> Tensor:
        found: Tensor = self.module.losses(model, batch)  # type: ignore[operator]
        return found
