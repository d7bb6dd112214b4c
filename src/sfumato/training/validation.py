"""How held-out samples are judged: fixed triples (sample, noise, noise level), by level, beside a trivial predictor.

The trivial predictor knows the data's mean and standard deviation sd alone,

    x_hat = alpha sd^2 z / (alpha^2 sd^2 + sigma^2),

the best linear guess without looking at neighbours. A network that learned something is below it at every level.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Estimate, broadcast
from sfumato.model import Denoiser
from sfumato.objectives import denoising_loss
from sfumato.objectives.times import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.process import Gaussian
from sfumato.schedule import Time

BINS = 8
_HELD_OUT = 1 << 60


@dataclasses.dataclass(frozen=True)
class Validation:
    """Losses per element of the raw weights, the moving average and the trivial guess.

    By noise level, cleanest first, with the middle of each bin in logsnr; one number each where a goal has no levels.
    """

    logsnr: list[float] | None
    raw: list[float]
    ema: list[float] | None
    trivial: list[float] | None

    def to_dict(self) -> dict[str, list[float] | float | None]:
        """The bins and their means, JSON-able."""
        losses = {"raw": self.raw, "trivial": self.trivial, "ema": self.ema}
        means = {f"valid_{name}": _mean(values) for name, values in losses.items() if values is not None}
        bins = {} if self.logsnr is None else {f"bins_{name}": v for name, v in dataclasses.asdict(self).items()}
        return {**means, **bins}

    @property
    def best(self) -> float:
        """The mean loss of the weights to use."""
        return _mean(self.raw if self.ema is None else self.ema)


class Measure(Protocol):
    """What judges a model on held-out samples."""

    def measure(self, raw: Any, ema: Any) -> Validation:
        """The losses of both sets of weights, in evaluation mode."""


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _both(losses: Callable[[Any], list[float]], raw: Any, ema: Any) -> tuple[list[float], list[float] | None]:
    """Losses of both sets of weights; the raw model is left in the mode that it was in."""
    training = raw.training
    raw.eval()
    found = losses(raw)
    raw.train(training)
    return found, None if ema is None else losses(ema)


@final
class Held:
    """The mean of any loss (model, batch) -> (B,) over fixed draws, the places u filling (0, 1) evenly."""

    def __init__(
        self, losses: Callable[[Any, Any], Tensor], x: Tensor, cond: dict[str, Any], seed: int, count: int, batch: int
    ) -> None:
        index = torch.arange(count)
        chosen = noise.permutation(seed, 0, len(x))[index % len(x)]
        self.x, self.cond = x[chosen], {name: value[chosen] for name, value in cond.items()}
        self.u = (index.double() + 0.5) / count
        self._losses, self.index, self.batch = losses, index, batch

    @torch.no_grad()
    def losses(self, model: Any) -> list[float]:
        found = []
        for part in self.index.split(self.batch):
            cond = {name: value[part] for name, value in self.cond.items()}
            # numbers that no training sample has: other noise
            found.append(self._losses(model, (self.x[part], cond, part + _HELD_OUT, self.u[part])).double().cpu())
        return [float(torch.cat(found).mean())]

    def measure(self, raw: Any, ema: Any) -> Validation:
        return Validation(None, *_both(self.losses, raw, ema), None)


class Trivial:
    """The linear guess in place of a network: what `denoising_loss` asks of a denoiser."""

    def __init__(self, process: Gaussian, target: str, sigma_data: float) -> None:
        self.process, self.target, self.sigma_data = process, target, sigma_data

    def predict(self, z: Tensor, t: Time, **cond: Tensor) -> Tensor:
        alpha, sigma = self.process.schedule(t)
        variance = self.sigma_data**2
        x = broadcast(alpha * variance / (alpha**2 * variance + sigma**2), z) * z
        return Estimate(z, t, self.process.schedule, x=x, sigma_data=self.sigma_data).target(self.target)


@final
class Validator:
    """`BINS` noise levels of equal weight under the training density, each with the same number of triples."""

    def __init__(
        self,
        x: Tensor,
        cond: dict[str, Any],
        denoiser: Denoiser,
        times: TimeDensity,
        weight: Weight | None,
        seed: int,
        count: int,
        batch: int,
    ) -> None:
        """x: normalised held-out samples (N, *shape), used in turn; count: triples, a multiple of BINS."""
        schedule = denoiser.process.schedule
        index = torch.arange(count)
        chosen = noise.permutation(seed, 0, len(x))[index % len(x)]
        self.x, self.cond = x[chosen], {name: value[chosen] for name, value in cond.items()}
        # sample j sits in bin j mod BINS, at places that fill the bin evenly
        u = (index % BINS + (index // BINS + 0.5) / (count // BINS)) / BINS
        self.t = schedule.time(times.logsnr(u.double(), schedule))
        middle = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        self.logsnr = times.logsnr(middle, schedule).tolist()
        self.index, self.times, self.weight, self.seed, self.batch = index, times, weight, seed, batch
        self.trivial = self.losses(Trivial(denoiser.process, denoiser.target, denoiser.sigma_data))  # type: ignore[arg-type]

    @torch.no_grad()
    def losses(self, denoiser: Denoiser) -> list[float]:
        """Mean loss per element in each bin."""
        found = []
        for part in self.index.split(self.batch):
            x = self.x[part]
            cond = {name: value[part] for name, value in self.cond.items()}
            eps = noise.normal(self.seed, part, tuple(x.shape[1:]), noise.VALID_NOISE, device=x.device)
            found.append(
                denoising_loss(denoiser, x, self.t[part], weight=self.weight, times=self.times, eps=eps, **cond).cpu()
            )
        per_element = 2 * torch.cat(found).double() / self.x[0].numel()
        return per_element.reshape(-1, BINS).mean(0).tolist()

    def measure(self, raw: Any, ema: Any) -> Validation:
        return Validation(self.logsnr, *_both(self.losses, raw, ema), self.trivial)
