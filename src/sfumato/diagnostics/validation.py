"""Validation on held-out samples: losses on fixed triples (sample, noise, noise level), next to a trivial predictor.

The losses are weighted as in training; without the weight they are those of `draws`. Some validations also measure the
gradient at each level and its noise (`gradients`), on draws that differ from one validation to the next.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato.conditions import Conditions
from sfumato.diagnostics.bins import make
from sfumato.diagnostics.draws import Draws, Trivial, plain
from sfumato.diagnostics.gradients import measure
from sfumato.diagnostics.triples import Triples
from sfumato.distributed import ALONE, World
from sfumato.intervals import Interval
from sfumato.objectives import Objective
from sfumato.objectives.loss import Batch, Levels, one_a_sample
from sfumato.process import Gaussian

BINS = 9  # a multiple of the bands of `triples`
MICRO = 4  # gradients per level
_HELD_OUT = 1 << 60
_SMALL = 4  # measured on CPUs: a single sample takes as long as 2.5 to 5 samples in a batch


@dataclasses.dataclass(frozen=True)
class Validation:
    """Losses per element of the raw weights, the moving average and the trivial predictor.

    By noise level, cleanest first, with the middle of each bin in logsnr; a single number for losses without levels.
    board: further columns by noise level, logged as `bins_...`: edges of the bins in logsnr; weight and density at
    their middle; loss_raw, loss_ema and loss_trivial, the unweighted E|eps - eps_hat|^2 per number; ..._stderr,
    standard errors; in some validations grad_square and grad_variance, unbiased |G|^2 and tr Sigma of the raw weights,
    grad_norm and noise_scale. gradient: |G|^2 and tr Sigma of the whole objective. triples: the individual losses.
    further: other figures by name, logged as `valid_...`.
    """

    logsnr: list[float] | None
    raw: list[float]
    ema: list[float] | None
    trivial: list[float] | None
    board: dict[str, list[float | None]] = dataclasses.field(default_factory=dict)
    gradient: tuple[float, float] | None = None
    triples: Triples | None = None
    further: Mapping[str, Interval] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The bins and their means, as plain values for JSON."""
        losses = {"raw": self.raw, "ema": self.ema, "trivial": self.trivial}
        means: dict[str, Any] = {f"valid_{name}": _mean(each) for name, each in losses.items() if each is not None}
        if self.gradient is not None:
            square, variance = self.gradient
            scale = variance / square if square > 0 else None
            means |= {"valid_grad_square": square, "valid_grad_variance": variance, "valid_noise_scale": scale}
        if self.triples is not None:
            means |= self.triples.to_dict()
        for name, found in self.further.items():
            means |= {f"valid_{name}": found.value, f"valid_{name}_low": found.low, f"valid_{name}_high": found.high}
        bins = {} if self.logsnr is None else {"logsnr": self.logsnr, **losses, **self.board}
        return {**means, **{f"bins_{name}": values for name, values in bins.items()}}

    @property
    def best(self) -> float:
        """The mean loss of the weights to use."""
        return _mean(self.raw if self.ema is None else self.ema)


class Cost(NamedTuple):
    """The cost of losses and of gradients in training samples; a forward pass counts as a third of one."""

    losses: float
    gradients: float


SampleSet = tuple[Tensor, Conditions]  # normalised samples (N, *shape) and their conditions


def validator_for(
    loss: Any, model: Any, x: Tensor, cond: Mapping[str, Any], count: int, batch: int, train: SampleSet | None = None,
    seed: int = 0,
) -> Validator:  # fmt: skip
    """A validator that measures a loss on `count` fixed draws of normalised held-out samples x (N, *shape).

    By noise level if the loss has levels, and by parts of (0, 1) if these are levels. batch: draws at once. train:
    training samples to compare with, under the same noise and levels. seed: of the draws, if the loss has none.
    """
    levels, seed, held = loss.levels(), getattr(loss, "seed", seed), (x, Conditions.of(cond))
    if levels is not None and isinstance(model.process, Gaussian):
        return LevelValidator(loss, levels, model, held, count, batch, train, seed)
    bins = BINS if loss.by_noise else 1
    drawn, beside = (
        None if samples is None else Draws(*samples, None, bins, count // bins, seed, batch)
        for samples in (held, train)
    )
    assert drawn is not None
    return Validator(loss, drawn, beside)


class Validator:
    """Measures a loss on fixed draws, at places u that fill (0, 1) evenly."""

    factor: Tensor | float = 1.0  # of each draw's loss, as training counts it
    further: Callable[[Any, World], Mapping[str, Interval]] | None = None  # what else is measured of the weights to use

    def __init__(self, loss: Any, draws: Draws, beside: Draws | None) -> None:
        """beside: training samples under the noise and the levels of the held-out ones."""
        self.loss, self.draws, self.beside = loss, draws, beside

    @property
    def cost(self) -> Cost:
        """The cost of the losses of two sets of weights and of the training samples; gradients are not measured."""
        count, batch = len(self.draws.index), self.draws.batch
        work = _work(count, batch, -(-count // batch), self.draws.x.device)
        return Cost((2 if self.beside is None else 3) * work / 3, 0.0)

    def measure(self, raw: Any, ema: Any, first: int | None = None, depth: int = 1, world: World = ALONE) -> Validation:
        """Measure the losses of both sets of weights, in evaluation mode. With `first`, also the gradients of the raw
        weights on new draws from that number on, `depth` times as many as `cost` counts. world: the processes that
        share the work; all get the result."""
        models = {"raw": raw} | ({} if ema is None else {"ema": ema})
        losses = {name: self._losses(self.draws, model, world) for name, model in models.items()}
        found = self._validation(losses, raw, None if first is None else (first, depth), world)
        best = raw if ema is None else ema
        if self.beside is not None:
            losses["train"] = self._losses(self.beside, best, world)
        weighted = {name: self.factor * each for name, each in losses.items()}
        levels = self.draws.levels
        found = dataclasses.replace(found, further={} if self.further is None else self.further(best, world))
        return dataclasses.replace(found, triples=Triples(self.draws.row, self.draws.index % levels, levels, weighted))

    def _losses(self, draws: Draws, model: Any, world: World) -> Tensor:
        """The loss of each draw, float64, without the factor."""

        def held(part: Tensor) -> Tensor:
            return one_a_sample(self.loss.held(model, taken(draws, part)), len(part), self.loss, "held", trains=False)

        return draws.each(model, held, world)

    def _validation(
        self, losses: dict[str, Tensor], raw: Any, gradients: tuple[int, int] | None, world: World
    ) -> Validation:
        """The mean losses; gradients: (number of the first draw, depth), or None not to measure them."""
        means = {name: [float(each.mean())] for name, each in losses.items()}
        return Validation(None, means["raw"], means.get("ema"), None)


def taken(draws: Draws, part: Tensor) -> Batch:
    """The draws with these numbers, as a loss takes them."""
    row = draws.row[part]
    # indices beyond those of training, so that the noise is new
    return Batch(draws.x[row], draws.cond.rows(row), part + _HELD_OUT, draws.t[part])


@final
class LevelValidator(Validator):
    """Measures a loss in `BINS` bins of equal mass under a fixed time density, with equally many draws in each."""

    def __init__(
        self, loss: Any, levels: Levels, model: Any, held: SampleSet, count: int, batch: int, train: SampleSet | None,
        seed: int,
    ) -> None:  # fmt: skip
        """count: a multiple of BINS."""
        schedule, per_bin = model.process.schedule, count // BINS
        bins = make(BINS, levels.times, schedule)

        def drawn(samples: SampleSet, first: int = 0, count: int = per_bin) -> Draws:
            return Draws(*samples, model.process, bins, count, seed, batch, first)

        super().__init__(loss, drawn(held), None if train is None else drawn(train))
        self._more, self._deep = partial(drawn, held), max(MICRO, per_bin)  # draws per level for gradients
        self.objective, self.trained = (
            Objective(schedule, model.target, times, levels.weight, model.sigma_data)
            for times in (levels.times, levels.trained)
        )
        self.factor = self.draws.factor(self.objective)
        self.trivial = self.draws.losses(Trivial(model.process, 0.0, model.sigma_data**2))

    @property
    def cost(self) -> Cost:
        work = _work(self._deep // MICRO * MICRO * BINS, self.draws.batch, BINS * MICRO, self.draws.x.device)
        return Cost(super().cost.losses, float(work))

    def _losses(self, draws: Draws, model: Any, world: World) -> Tensor:
        return draws.losses(model, world)

    def _validation(
        self, losses: dict[str, Tensor], raw: Any, gradients: tuple[int, int] | None, world: World
    ) -> Validation:
        bins, values = self.draws.bins, dict[str, list[float]]()
        with torch.no_grad():  # a learned density changes between validations
            columns = {"weight": self.trained.weight(bins.middle), "density": self.trained.density(bins.middle)}
        board = {"edges": plain(bins.edges), **{name: plain(column) for name, column in columns.items()}}
        for name, each in (losses | {"trivial": self.trivial}).items():
            (value, error), weighted = self.draws.by_level(each), self.draws.by_level(self.factor * each)
            board |= {f"loss_{name}": plain(value), f"loss_{name}_stderr": plain(error)}
            board[f"{name}_stderr"], values[name] = plain(weighted.stderr), weighted.value.tolist()
        found = None
        if gradients is not None:
            first, depth = gradients
            more = self._more(first, depth * self._deep)
            found = measure(raw, more, more.factor(self.objective), MICRO, more.count // MICRO, world)
        if found is not None:
            board |= {"grad_norm": plain(found.norm.value), "noise_scale": plain(found.scale.value)}
            for name, column in {"square": found.square, "variance": found.variance}.items():
                board |= {f"grad_{name}": plain(column.value), f"grad_{name}_stderr": plain(column.stderr)}
        return Validation(
            bins.middle.tolist(), values["raw"], values.get("ema"), values["trivial"], board,
            None if found is None else found.total,
        )  # fmt: skip


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _work(samples: int, batch: int, sets: int, device: torch.device) -> int:
    """Cost in samples of `sets` calls: each costs at least `_SMALL` samples, on an accelerator at least a batch."""
    return max(samples, sets * (min(batch, _SMALL) if device.type == "cpu" else batch))
