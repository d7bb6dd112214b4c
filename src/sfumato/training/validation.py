"""How held-out samples are judged: fixed triples (sample, noise, noise level), by level, beside a trivial predictor.

The losses are those of training, and before their weight those of `levels.draws`; at some validations the gradient of
each level and its noise are measured, too (`levels.gradients`), on draws that change from one time to the next.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions
from sfumato.diagnostics import gradients
from sfumato.diagnostics.bins import make
from sfumato.diagnostics.draws import Draws, Trivial, evaluating, plain
from sfumato.model import Denoiser
from sfumato.objectives import Objective
from sfumato.objectives.times import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.training.triples import Triples
from sfumato.world import ALONE, World

BINS = 9  # a multiple of the bands of `triples`
MICRO = 4  # gradients a level
_HELD_OUT = 1 << 60
_SMALL = 4  # measured: one sample takes as long as 2.5 to 5 of a batch


@dataclasses.dataclass(frozen=True)
class Validation:
    """Losses per element of the raw weights, the moving average and the trivial guess.

    By noise level, cleanest first, with the middle of each bin in logsnr; one number each where a goal has no levels.
    board: more columns by noise level, in the log under `bins_...`: edges of the bins in logsnr; weight and density at
    their middle; loss_raw, loss_ema and loss_trivial, E|eps - eps_hat|^2 a number, which the weight has no part in;
    ..._stderr, standard errors; at some validations grad_square and grad_variance, |G|^2 and tr Sigma of the raw
    weights, both unbiased, grad_norm and noise_scale. gradient: |G|^2 and tr Sigma of the whole objective. triples: the
    losses one by one.
    """

    logsnr: list[float] | None
    raw: list[float]
    ema: list[float] | None
    trivial: list[float] | None
    board: dict[str, list[float | None]] = dataclasses.field(default_factory=dict)
    gradient: tuple[float, float] | None = None
    triples: Triples | None = None

    def to_dict(self) -> dict[str, Any]:
        """The bins and their means, JSON-able."""
        losses = {"raw": self.raw, "ema": self.ema, "trivial": self.trivial}
        means: dict[str, Any] = {f"valid_{name}": _mean(found) for name, found in losses.items() if found is not None}
        if self.gradient is not None:
            square, variance = self.gradient
            scale = variance / square if square > 0 else None
            means |= {"valid_grad_square": square, "valid_grad_variance": variance, "valid_noise_scale": scale}
        if self.triples is not None:
            means |= self.triples.to_dict()
        bins = {} if self.logsnr is None else {"logsnr": self.logsnr, **losses, **self.board}
        return {**means, **{f"bins_{name}": values for name, values in bins.items()}}

    @property
    def best(self) -> float:
        """The mean loss of the weights to use."""
        return _mean(self.raw if self.ema is None else self.ema)


class Cost(NamedTuple):
    """Work in samples of training: a pass forward alone is a third of one, a set of weights or of samples a pass."""

    losses: float
    gradients: float


Rows = tuple[Tensor, Conditions]  # normalised samples (N, *shape) and their conditions


class Measure(Protocol):
    """What judges a model on held-out samples."""

    @property
    def cost(self) -> Cost:
        """Of the losses of two sets of weights, and of training samples; of the gradients, 0 where there are none."""

    def measure(self, raw: Any, ema: Any, first: int | None = None, depth: int = 1, world: World = ALONE) -> Validation:
        """The losses of both sets of weights, in evaluation mode; with `first` also the gradients of the raw weights,
        on draws of that number and the next ones, `depth` times as many as their cost says. world: the processes that
        share the work, all of which get the figures."""


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _work(samples: int, batch: int, sets: int, device: torch.device) -> int:
    """Samples that pass, each batch in `sets` calls, of which a small one takes as long as one of `_SMALL` samples, or
    on an accelerator as a whole batch."""
    return max(samples, sets * (min(batch, _SMALL) if device.type == "cpu" else batch))


@final
class Held:
    """The mean of any loss (model, batch) -> (B,) over fixed draws, the places u filling (0, 1) evenly."""

    def __init__(
        self, losses: Callable[[Any, Any], Tensor], x: Tensor, cond: Conditions, seed: int, count: int, batch: int,
        train: Rows | None = None,
    ) -> None:  # fmt: skip
        index = torch.arange(count)
        self.sample = noise.permutation(seed, 0, len(x))[index % len(x)]
        self.rows = {"held": _taken((x, cond), self.sample)}
        if train is not None:
            self.rows["train"] = _taken(train, self.sample % len(train[0]))
        self.u = (index.double() + 0.5) / count
        self._losses, self.index, self.batch, self.device = losses, index, batch, x.device

    @property
    def cost(self) -> Cost:
        work = _work(len(self.index), self.batch, -(-len(self.index) // self.batch), self.device)
        return Cost((1 + len(self.rows)) * work / 3, 0.0)

    @torch.no_grad()
    def losses(self, model: Any, world: World = ALONE, of: str = "held") -> Tensor:
        """One loss a draw, float64 (count,), in evaluation mode, of the held-out or the training samples."""
        x, cond = self.rows[of]

        def own(index: Tensor) -> Tensor:
            found = []
            for part in index.split(-(-self.batch // world.size)):
                # numbers that no training sample has: other noise
                rows = (x[part], cond.rows(part), part + _HELD_OUT, self.u[part])
                found.append(self._losses(model, rows).double().cpu())
            return torch.cat(found)

        with evaluating(model):
            return world.parallel_map(own, self.index)

    def measure(self, raw: Any, ema: Any, first: int | None = None, depth: int = 1, world: World = ALONE) -> Validation:
        found = {"raw": self.losses(raw, world)} | ({} if ema is None else {"ema": self.losses(ema, world)})
        means = {name: [float(each.mean())] for name, each in found.items()}
        if "train" in self.rows:
            found["train"] = self.losses(raw if ema is None else ema, world, "train")
        triples = Triples(self.sample, torch.zeros_like(self.sample), 1, found)
        return Validation(None, means["raw"], means.get("ema"), None, triples=triples)


def _taken(rows: Rows, index: Tensor) -> Rows:
    x, cond = rows
    return x[index], Conditions.of(cond).rows(index)


@final
class Validator:
    """`BINS` noise levels of equal weight under the time density, each with the same number of triples."""

    def __init__(
        self,
        x: Tensor,
        cond: Conditions,
        denoiser: Denoiser,
        times: TimeDensity,
        weight: Weight | None,
        seed: int,
        count: int,
        batch: int,
        trained: TimeDensity | None = None,
        train: Rows | None = None,
    ) -> None:
        """x: normalised held-out samples (N, *shape), used in turn; count: triples, a multiple of BINS. times: of the
        triples, one that stays; trained: the density that training draws from, where it is another. train: training
        samples, as many, which are judged under the same noise and levels."""
        schedule = denoiser.process.schedule
        self._rows = (x, cond, denoiser.process)
        self.bins, self.per_bin, self.seed, self.batch = make(BINS, times, schedule), count // BINS, seed, batch
        self.draws = self._drawn(0, self.per_bin)
        self.beside = None if train is None else self._drawn(0, self.per_bin, train)
        self.objective = Objective(schedule, denoiser.target, times, weight, denoiser.sigma_data)
        self.trained = Objective(schedule, denoiser.target, trained or times, weight, denoiser.sigma_data)
        self.factor = self._factor(self.draws)
        self.logsnr = self.bins.middle.tolist()
        self.trivial = self.draws.losses(Trivial(denoiser.process, 0.0, denoiser.sigma_data**2))

    def _drawn(self, first: int, count: int, other: Rows | None = None) -> Draws:
        x, cond, process = self._rows
        x, cond = (x, cond) if other is None else other
        return Draws(x, cond, process, self.bins, count, self.seed, self.batch, first)

    def _factor(self, draws: Draws) -> Tensor:
        """What training multiplies the loss at each draw by: w / p."""
        return (self.objective.weight(draws.logsnr) / self.objective.density(draws.logsnr)).detach()

    @property
    def cost(self) -> Cost:
        count, device = self.per_bin * BINS, self.draws.x.device
        sets = 2 if self.beside is None else 3
        losses = sets * _work(count, self.batch, -(-count // self.batch), device) / 3
        return Cost(losses, float(_work(self._deep // MICRO * MICRO * BINS, self.batch, BINS * MICRO, device)))

    @property
    def _deep(self) -> int:
        """Draws a level that gradients take."""
        return max(MICRO, self.per_bin)

    def measure(self, raw: Any, ema: Any, first: int | None = None, depth: int = 1, world: World = ALONE) -> Validation:
        models = {"raw": raw} | ({} if ema is None else {"ema": ema})
        losses = {name: self.draws.losses(model, world) for name, model in models.items()}
        losses["trivial"] = self.trivial
        weighted = {name: self.draws.by_level(self.factor * found) for name, found in losses.items()}
        board = {
            "edges": plain(self.bins.edges),
            "weight": plain(self.trained.weight(self.bins.middle).detach()),
            "density": plain(self.trained.density(self.bins.middle).detach()),
        }
        for name, each in losses.items():
            value, error = self.draws.by_level(each)
            board |= {f"loss_{name}": plain(value), f"loss_{name}_stderr": plain(error)}
            board[f"{name}_stderr"] = plain(weighted[name].stderr)
        found = None if first is None else self._gradients(raw, first, depth * self._deep, world)
        if found is not None:
            board |= {"grad_norm": plain(found.norm.value), "noise_scale": plain(found.scale.value)}
            for name, column in {"square": found.square, "variance": found.variance}.items():
                board |= {f"grad_{name}": plain(column.value), f"grad_{name}_stderr": plain(column.stderr)}
        values = {name: column.value.tolist() for name, column in weighted.items()}
        total = None if found is None else found.total
        triples = self._triples({name: losses[name] for name in models}, raw if ema is None else ema, world)
        return Validation(self.logsnr, values["raw"], values.get("ema"), values["trivial"], board, total, triples)

    def _triples(self, losses: dict[str, Tensor], best: Any, world: World) -> Triples:
        """The losses as training counts them, with those of training samples beside them."""
        if self.beside is not None:
            losses = {**losses, "train": self.beside.losses(best, world)}
        weighted = {name: self.factor * found for name, found in losses.items()}
        return Triples(self.draws.sample, self.draws.index % BINS, BINS, weighted)

    def _gradients(self, model: Any, first: int, count: int, world: World) -> gradients.Gradients | None:
        draws = self._drawn(first, count)
        return gradients.measure(model, draws, self._factor(draws), MICRO, count // MICRO, world)
