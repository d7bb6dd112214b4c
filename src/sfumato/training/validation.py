"""The loss on fixed triples (held-out sample, noise, noise level), by noise level, beside that of a trivial predictor.

The trivial predictor knows the data's mean and standard deviation sd alone,

    x_hat = alpha sd^2 z / (alpha^2 sd^2 + sigma^2),

the best linear guess without looking at neighbours. A network that learned something is below it at every level.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

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


@dataclasses.dataclass(frozen=True)
class Validation:
    """Losses per element by noise level, cleanest first: of the raw weights, the moving average and the trivial guess.

    logsnr: the middle of each bin.
    """

    logsnr: list[float]
    raw: list[float]
    ema: list[float] | None
    trivial: list[float]

    def to_dict(self) -> dict[str, list[float] | float | None]:
        """The bins and their means, JSON-able."""
        means = {"valid_raw": _mean(self.raw), "valid_trivial": _mean(self.trivial)}
        if self.ema is not None:
            means["valid_ema"] = _mean(self.ema)
        return {**means, **{f"bins_{name}": value for name, value in dataclasses.asdict(self).items()}}

    @property
    def best(self) -> float:
        """The mean loss of the weights to use."""
        return _mean(self.raw if self.ema is None else self.ema)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


class Trivial:
    """The linear guess in place of a network: what `denoising_loss` asks of a denoiser."""

    def __init__(self, process: Gaussian, target: str, sigma_data: float) -> None:
        self.process, self.target, self.sigma_data = process, target, sigma_data

    def predict(self, z: Tensor, t: Time, **cond: Tensor) -> Tensor:
        alpha, sigma = self.process.schedule(t)
        variance = self.sigma_data**2
        x = broadcast(alpha * variance / (alpha**2 * variance + sigma**2), z) * z
        return Estimate(z, t, self.process.schedule, x=x, sigma_data=self.sigma_data).target(self.target)


class Validator:
    """`BINS` noise levels of equal weight under the training density, each with the same number of triples."""

    def __init__(
        self,
        x: Tensor,
        labels: Tensor | None,
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
        self.x, self.label = x[chosen], None if labels is None else labels[chosen]
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
            cond: dict[str, Any] = {} if self.label is None else {"label": self.label[part]}
            eps = noise.normal(self.seed, part, tuple(x.shape[1:]), noise.VALID_NOISE, device=x.device)
            found.append(
                denoising_loss(denoiser, x, self.t[part], weight=self.weight, times=self.times, eps=eps, **cond).cpu()
            )
        per_element = 2 * torch.cat(found).double() / self.x[0].numel()
        return per_element.reshape(-1, BINS).mean(0).tolist()

    def measure(self, raw: Denoiser, ema: Denoiser | None) -> Validation:
        """The losses of both sets of weights, in evaluation mode."""
        training = raw.training
        raw.eval()
        losses = self.losses(raw)
        raw.train(training)
        return Validation(self.logsnr, losses, None if ema is None else self.losses(ema), self.trivial)
