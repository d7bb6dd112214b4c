"""A law of `sf.exact` as the data of a board: samples in the units of a model, and what no model can be better than.

    floor at a level = E |eps - E[eps|z]|^2 / d = (alpha / sigma)^2 E tr Cov(x|z) / d
    excess           = E |eps_hat - E[eps|z]|^2 / d,   loss = floor + excess

A model with a spec sees (x - m) / s. With one s in all channels z' = s z + alpha m is the state alpha x + sigma s eps
of the law itself; a mixture of Gaussians is restated in the normalised units, whatever s is.
Source: Guo, Shamai and Verdu 2005 for the floor; the excess by the Pythagorean rule of conditional expectations.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from sfumato.data import DataSpec
from sfumato.diagnostics.draws import ByLevel, Drawn, Draws
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.exact.truth import At, Truth


@final
class Law:
    """What a board asks of a law whose samples are normalised by `spec` (not at all without one)."""

    def __init__(self, truth: Truth, spec: DataSpec | None) -> None:
        self.truth, self.shift, self.scale = truth, torch.zeros(()), 1.0
        if spec is None:
            return
        if tuple(spec.shape) != truth.shape:
            raise SfumatoError(f"The law has samples of shape {truth.shape}, and the model's data {tuple(spec.shape)}.")
        columns = [-1, *[1] * (len(spec.shape) - 1)]
        mean, std = (
            torch.tensor(v, dtype=torch.float64).reshape(columns).expand(spec.shape)
            for v in (spec.normaliser.mean, spec.normaliser.std)
        )
        if isinstance(truth, GaussianMixture):
            m, s = mean.flatten(), std.flatten()
            covs = truth.covs / (s[:, None] * s)
            self.truth = GaussianMixture(truth.weights, (truth.means - m) / s, covs, truth.labels, truth.shape)
        elif bool((std == std.flatten()[0]).all()):
            self.shift, self.scale = mean, float(std.flatten()[0])
        else:
            raise SfumatoError(
                "The model scales its channels differently: the floor is then known for mixtures of Gaussians alone."
            )

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """(x normalised, float64 (count, *shape); the class of each)."""
        x, labels = self.truth.labelled(count, seed)
        return (x - self.shift) / self.scale, labels

    def moments(self) -> tuple[Tensor, float]:
        """E[x], like a sample, and tr Cov(x) / d, both normalised: no signal leaves the law itself."""
        zero = torch.zeros(1, *self.truth.shape, dtype=torch.float64)
        variance = float(self.truth.total_variance(zero, alpha=0.0, sigma=1.0)) / self.truth.dim
        return (self.truth.mean.reshape(self.truth.shape) - self.shift) / self.scale, variance / self.scale**2

    def compare(self, draws: Draws, drawn: Drawn, guess: Tensor | None = None) -> Tensor:
        """|eps - E[eps|z]|^2 / d in expectation over eps, (B,); with a guess eps_hat, |eps_hat - E[eps|z]|^2 / d."""
        alpha, sigma = draws.process.schedule(drawn.t)
        columns = alpha.reshape(-1, *[1] * len(self.truth.shape))
        z = self.scale * drawn.z.double().cpu() + columns * self.shift
        at: At = {"alpha": alpha, "sigma": sigma * self.scale}
        if "label" in drawn.cond:
            at["label"] = drawn.cond["label"].cpu()
        if guess is None:
            return (alpha / (sigma * self.scale)) ** 2 * self.truth.total_variance(z, **at) / self.truth.dim
        return (guess.double().cpu() - self.truth.moments(z, **at).eps).flatten(1).square().mean(1)

    def floor(self, draws: Draws) -> Tensor:
        """The floor at the states drawn, (count K,)."""
        return draws.each(None, lambda _, part: self.compare(draws, draws.take(part)))

    def excess(self, draws: Draws, model: Any) -> ByLevel:
        """What a model loses above the floor, by level, in evaluation mode: no noise of the draws is left in it."""

        def above(model: Any, part: Tensor) -> Tensor:
            drawn = draws.take(part)
            return self.compare(draws, drawn, model(drawn.z, drawn.t, **drawn.cond).eps)

        return draws.by_level(draws.each(model, above))
