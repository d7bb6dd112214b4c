"""The samples that a model is judged on, normalised for it, and their law if that is known.

    floor at a level = E |eps - E[eps|z]|^2 / d = (alpha / sigma)^2 E tr Cov(x|z) / d
    excess           = E |eps_hat - E[eps|z]|^2 / d,   loss = floor + excess

A model with a spec sees (x - m) / s. If s is the same in all channels, z' = s z + alpha m is the state
alpha x + sigma s eps in the law's own units; a mixture of Gaussians is converted to normalised units for any s.
Source: Guo, Shamai and Verdu 2005 for the floor; the excess follows from the orthogonality of conditional expectations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from sfumato import data, noise
from sfumato.conditions import Conditions, of_data, resolve
from sfumato.data import DataSpec, Source
from sfumato.diagnostics.draws import ByLevel, Draws, Trivial
from sfumato.errors import SfumatoError, counted
from sfumato.exact import GaussianMixture, Truth
from sfumato.exact.truth import At
from sfumato.latent_diffusion import latent_of
from sfumato.model import compute_dtype
from sfumato.noised import NoisedBatch
from sfumato.process import Gaussian


@final
class NormalisedLaw:
    """A law of `sf.exact` in the units of a model whose data are normalised by `spec` (None: not at all)."""

    def __init__(self, truth: Truth, spec: DataSpec | None) -> None:
        self.truth, self.shift, self.scale = truth, torch.zeros(()), 1.0
        if spec is None:
            return
        if tuple(spec.shape) != truth.shape:
            raise SfumatoError(f"The law's samples have shape {truth.shape}, but the model's data {tuple(spec.shape)}.")
        if spec.normaliser.kind != "affine":
            raise SfumatoError(
                f"The model normalises by {spec.normaliser.kind}: a floor is known of affine ones alone."
            )
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
                "The model scales its channels differently: only mixtures of Gaussians have a known floor then."
            )

    def sample(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """(normalised x, float64 (count, *shape); the class of each)."""
        x, labels = self.truth.labelled(count, seed)
        return (x - self.shift) / self.scale, labels

    def moments(self) -> tuple[Tensor, float]:
        """E[x], shaped like a sample, and tr Cov(x) / d, both normalised; taken from the belief at alpha = 0."""
        zero = torch.zeros(1, *self.truth.shape, dtype=torch.float64)
        variance = float(self.truth.total_variance(zero, alpha=0.0, sigma=1.0)) / self.truth.dim
        return (self.truth.mean.reshape(self.truth.shape) - self.shift) / self.scale, variance / self.scale**2

    def floor(self, draws: Draws) -> Tensor:
        """The floor at the drawn states, (count K,)."""

        def below(part: Tensor) -> Tensor:
            z, at = self._states(draws.process, draws.take(part))
            return (at["alpha"] / at["sigma"]) ** 2 * self.truth.total_variance(z, **at) / self.truth.dim

        return draws.each(None, below)

    def excess(self, draws: Draws, model: Any) -> ByLevel:
        """The loss of a model above the floor, by level, in evaluation mode, free of the noise of the draws."""

        def above(part: Tensor) -> Tensor:
            drawn = draws.take(part)
            z, at = self._states(draws.process, drawn)
            guess = model(drawn.z, drawn.t, **drawn.cond).eps
            return (guess.double().cpu() - self.truth.moments(z, **at).eps).flatten(1).square().mean(1)

        return draws.by_level(draws.each(model, above))

    def _states(self, process: Gaussian, drawn: NoisedBatch) -> tuple[Tensor, At]:
        """The states in the law's own units, float64, and their levels and labels in those units."""
        alpha, sigma = process.schedule(drawn.t)
        columns = alpha.reshape(-1, *[1] * len(self.truth.shape))
        at: At = {"alpha": alpha, "sigma": sigma * self.scale}
        if "label" in drawn.cond:
            at["label"] = drawn.cond["label"].cpu()
        return self.scale * drawn.z.double().cpu() + columns * self.shift, at


class EvaluationSet(NamedTuple):
    """Normalised samples with their conditions, on the model's device, and their law if that is known."""

    x: Tensor
    cond: Conditions
    law: NormalisedLaw | None


def evaluation_set(
    model: Any, given: Any, labels: Any, conditional: bool | None, count: int, seed: int, notes: list[str]
) -> EvaluationSet:
    """Up to `count` samples of a law or of whatever `data.open` takes, normalised for the model.

    conditional: whether to include conditions; None: if data set and model have any. Notes which rows were chosen.
    """
    device, spec = getattr(model, "device", torch.device("cpu")), getattr(model, "spec", None)
    if isinstance(given, Truth):
        law = NormalisedLaw(given, spec)
        x, classes = law.sample(count, seed)
        cond = Conditions({"label": classes} if conditional else {})
        return EvaluationSet(_fitting(model, x).to(device), cond.to(device), law)
    source = data.open(given, labels=labels, conditions=spec)
    chosen = _held_out(source, model, notes)
    chosen = chosen[noise.permutation(seed, 0, len(chosen))[:count]].sort().values
    cond = Conditions() if conditional is False else of_data(model, source, chosen)
    if conditional and not cond:
        raise SfumatoError("conditional=True needs data with conditions, such as classes, and a model that knows them.")
    x, cond = seen(model, source, chosen, cond)
    return EvaluationSet(x.to(device), cond.to(device), None)


def with_conditions(model: Any, x: Any, cond: Mapping[str, Any], most: int, seed: int) -> EvaluationSet:
    """All of x (B, *shape) in user units, or up to `most` samples of a law or of whatever `data.open` takes.

    cond: conditions by name, as `sample` takes them, in addition to those of the data.
    """
    if isinstance(x, Tensor | np.ndarray | list):
        spec, device = getattr(model, "spec", None), getattr(model, "device", torch.device("cpu"))
        x = _fitting(model, torch.as_tensor(x) if spec is None else spec.normalise(x)).to(device)
        x, mask = (x, Conditions()) if spec is None else spec.apart(x, Conditions())
        found = EvaluationSet(x, mask, None)
    else:
        found = evaluation_set(model, x, None, None, most, seed, [])
    own = resolve(model, cond, len(found.x)).to(found.x.device)
    return found._replace(cond=Conditions({**found.cond, **own}))


def seen(
    model: Any, source: Source, rows: Tensor, cond: Conditions, judged: bool = True
) -> tuple[Tensor, Conditions]:  # fmt: skip
    """These rows of a source, normalised for the model, on the CPU; their conditions with the mask of missing values.

    judged: whether values outside its spec are an error. Raises SfumatoError also for samples of another shape.
    """
    fits(model, source)
    x, spec = source.x[rows].cpu(), getattr(model, "spec", None)
    if spec is None:
        return _fitting(model, x), cond
    if judged:
        spec.check(x, whole=not spec.missing)
    return spec.apart(_fitting(model, spec.normalise(x)), cond)


def fits(model: Any, source: Source) -> None:
    """Raise SfumatoError if the model cannot take samples of this shape or kind, or with missing values."""
    shape, process = getattr(model, "shape", None), getattr(model, "process", None)
    shape = model.spec.shape if latent_of(model) is not None else shape  # that of a sample, not of its code
    if isinstance(shape, tuple) and shape != source.shape:
        raise SfumatoError(f"{source.name} has samples of shape {source.shape}, but the model needs {shape}.")
    if source.missing and not getattr(getattr(model, "spec", None), "missing", ()):
        raise SfumatoError(f"{source.name} has {source.gaps}, and the model knows whole samples alone: give it such.")
    bare = getattr(model, "spec", None) is None and isinstance(process, Gaussian)
    if bare and not source.x.dtype.is_floating_point:
        raise SfumatoError(f"{source.name} holds whole numbers, which a model without a data spec cannot normalise.")


def _held_out(source: Source, model: Any, notes: list[str]) -> Tensor:
    """The rows to evaluate on; for the training data, only those that were held out."""
    every = torch.arange(len(source))
    trained = trained_on(model, source)
    rest = source.split(model.provenance["holdout"])[1] if trained and model.provenance.get("holdout") else every[:0]
    if len(rest):
        notes.append(f"Judged on the {counted(len(rest), 'sample')} of {source.name} that training held out.")
        return rest
    if trained:
        notes.append(f"Judged on {source.name}, which the model was trained on.")
    return every


def trained_on(model: Any, source: Source) -> bool:
    """Whether the model records that it was trained on this data set."""
    made = getattr(model, "provenance", None) or {}
    return made.get("data") == source.name and made.get("samples") == len(source)


def _fitting(model: Any, x: Tensor) -> Tensor:
    """x in the precision of the model: float64 for models in float64, such as exact ones, otherwise float32."""
    return x.double() if compute_dtype(model) == torch.float64 else x.float()


def trivial(model: Any, found: EvaluationSet) -> Trivial:
    """The trivial predictor: mean 0 and deviation sigma_data for normalised data, else those of the law or samples."""
    if getattr(model, "spec", None) is not None:
        return Trivial(model.process, 0.0, model.sigma_data**2)
    if found.law is not None:
        return Trivial(model.process, *found.law.moments())
    mean = found.x.double().mean(0)
    return Trivial(model.process, mean, float((found.x.double() - mean).square().mean()))
