"""The interface of losses: a training step minimises the batch mean of losses(model, batch); a loss may learn itself.

Any `nn.Module` with `losses` qualifies. `Loss` lists the optional methods and their defaults.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from sfumato.conditions import Conditions
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError, an
from sfumato.objectives.density import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Batch:
    """The data of one training step.

    x: normalised samples (B, *shape); cond: conditions; index: numbers of the samples in the run, int64 (B,);
    u: numbers in (0, 1), spread evenly over the batch, float64 (B,); world: the processes that share the batch; x and
    cond are this process's part.
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
    """How held-out samples are evaluated by noise level: a fixed density, the weight, and the training density."""

    times: TimeDensity
    weight: Weight | None
    trained: TimeDensity


class Loss(nn.Module, abc.ABC):
    """The base class of losses for `sf.train(loss=...)`; losses are means over the elements of a sample.

    carries: whether the network also hears its own estimate of the call before (`conditions.PREVIOUS`).
    network: the name of the network that "auto", "tiny" etc. stand for, if the loss trains no denoiser network. mask:
    what an output of a `nets.Transformer` may hear. by_noise: whether the noise of a sample rises with its number u, so
    that held-out losses are told apart by it. skips: whether missing values (`conditions.missing`) are left out.
    watched: what a held-out loss measures, if a run is to stop where it keeps rising.
    rate: the players' learning rate over the network's. turns: their steps for each of the network's, where there are
    `player_losses`; turn: the number of the present one, from 0, which the engine sets.
    """

    network: str | None = None
    mask: str = "full"
    by_noise: bool = False
    skips: bool = False
    carries: bool = False
    watched: str | None = None
    rate: float = 1.0
    turns: int = 1
    turn: int = 0

    @abc.abstractmethod
    def losses(self, model: Any, batch: Any) -> Tensor:
        """One loss per sample, (B,), with gradients; a batch may be split into parts, with one call each."""

    def observe(self, batch: Any, losses: Tensor) -> None:
        """Called after the optimiser's step with the losses (B,), index and u of the whole batch.

        With several processes, each has x and cond of its own part and must do the same: to learn from more than the
        losses, use `batch.world.all_gather`. The gradients of `parameters` are those of the step's loss.
        """

    def players(self) -> Iterable[nn.Parameter]:
        """Parameters with an optimiser of their own: a critic, a fake score, learned weights.

        It uses the gradients from `losses`, or, if the loss defines `player_losses(model, batch)` -> (B,), those of
        their mean.
        """
        return ()

    def held(self, model: Any, batch: Any) -> Tensor:
        """The losses (B,) of held-out samples; by default the training losses."""
        return self.losses(model, batch)

    def levels(self) -> Levels | None:
        """How held-out samples are evaluated by noise level; None for a loss without levels."""
        return None

    def inputs(self, shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
        """What a network for samples of `shape` is told besides the conditions of the data (`Condition.network`)."""
        return {}

    def model(self, net: nn.Module, spec: Any) -> Any:
        """The model to train around the network; None for the denoiser of the settings."""
        return None

    def begun(self, model: Any) -> Any:
        """What is trained where a given model is trained further: the model itself, or a student that starts at it."""
        return model

    def suits(self, model: Any) -> None:
        """Raise SfumatoError for a model that this loss cannot train."""

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint needs for an exact resume."""
        return dict(self.state_dict())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        self.load_state_dict(dict(tensors))


class LearnsLevels(Loss):
    """A loss whose density of levels, `times`, may learn from the losses in `observe`; it is all the loss's state.

    `losses` sets `clock`, the schedule under which it draws, and divides by the density.
    """

    by_noise = True
    times: TimeDensity
    clock: Schedule | None = None

    def observe(self, batch: Any, losses: Tensor) -> None:
        assert self.clock is not None
        self.times.observe(self.times.logsnr(batch.u, self.clock).detach(), losses)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the density, which updates them itself."""
        return iter(self.times.parameters())

    def tensors(self) -> dict[str, Tensor]:
        return self.times.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.times.load(dict(tensors))


def one_a_sample(losses: Any, count: int, whose: Any, what: str = "losses", trains: bool = True) -> Tensor:
    """`losses`, checked to be one per sample, (count,); SfumatoError names what was returned and what is needed."""
    whose = getattr(whose, "module", whose)
    got = f"{an(type(losses).__name__)}"
    if isinstance(losses, Tensor):
        got = f"a tensor of shape {tuple(losses.shape)}"
        if losses.shape == (count,) and (losses.requires_grad or not trains):
            return losses
        got += " without a gradient" if losses.shape == (count,) else ""
    raise SfumatoError(
        f"{what} of {type(whose).__name__} returned {got} for {count} samples: it must return a tensor of shape "
        f"({count},){' that depends on the weights' if trains else ''}."
    )


class CompletedLoss(Loss):
    """A module with `losses` and any other methods of `Loss`, completed by the defaults."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        for name in ("observe", "players", "player_losses", "held", "levels", "model", "begun"):
            if hasattr(module, name):
                setattr(self, name, getattr(module, name))
        self.network, self.mask = getattr(module, "network", None), getattr(module, "mask", "full")
        self.by_noise = getattr(module, "by_noise", False)
        self.skips = getattr(module, "skips", False)
        self.carries = getattr(module, "carries", False)

    def losses(self, model: Any, batch: Any) -> Tensor:
        losses: Tensor = self.module.losses(model, batch)  # type: ignore[operator]
        return losses
