"""The samples that a board judges by, as the model sees them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import data, noise
from sfumato.conditions import Conditions, of_data
from sfumato.data import Source
from sfumato.diagnostics.draws import Trivial
from sfumato.diagnostics.law import Law
from sfumato.errors import SfumatoError
from sfumato.exact import Truth
from sfumato.process import Gaussian


class Rows(NamedTuple):
    """Normalised samples with their conditions, and the law that they are of where it is known."""

    x: Tensor
    cond: Conditions
    law: Law | None


def rows(
    model: Any, given: Any, labels: Any, conditional: bool | None, count: int, seed: int, notes: list[str]
) -> Rows:
    """Up to `count` samples of a law or of what `data.open` takes, in the units and on the device of the model.

    conditional: with their conditions; None where data set and model have some. What was done is added to `notes`.
    """
    device, spec = getattr(model, "device", torch.device("cpu")), getattr(model, "spec", None)
    if isinstance(given, Truth):
        law = Law(given, spec)
        x, classes = law.sample(count, seed)
        cond = Conditions({"label": classes} if conditional else {})
        return Rows(_fitting(model, x).to(device), cond.to(device), law)
    source = data.open(given, labels=labels, conditions=spec)
    chosen = _held_out(source, getattr(model, "provenance", None) or {}, notes)
    chosen = chosen[noise.permutation(seed, 0, len(chosen))[:count]].sort().values
    cond = Conditions() if conditional is False else of_data(model, source, chosen)
    if conditional and not cond:
        raise SfumatoError("conditional=True needs data with conditions, such as classes, and a model that knows them.")
    return Rows(seen(model, source, chosen).to(device), cond.to(device), None)


def seen(model: Any, source: Source, rows: Tensor, judged: bool = True) -> Tensor:
    """These rows of a source as the model sees them, on the CPU.

    judged: whether values that its spec does not know are an error. SfumatoError for samples of another shape, too.
    """
    fits(model, source)
    x, spec = source.x[rows].cpu(), getattr(model, "spec", None)
    if spec is not None:
        if judged:
            spec.check(x)
        x = spec.normalise(x)
    return _fitting(model, x)


def fits(model: Any, source: Source) -> None:
    """SfumatoError where the samples are none that the model could be asked about."""
    shape, process = getattr(model, "shape", None), getattr(model, "process", None)
    if isinstance(shape, tuple) and shape != source.shape:
        raise SfumatoError(f"{source.name} has samples of shape {source.shape}, and those of the model are {shape}.")
    bare = getattr(model, "spec", None) is None and isinstance(process, Gaussian)
    if bare and not source.x.dtype.is_floating_point:
        raise SfumatoError(f"{source.name} holds whole numbers, and a model without a data spec cannot normalise them.")


def _held_out(source: Source, made: dict[str, Any], notes: list[str]) -> Tensor:
    """The rows to judge by: of the training data those that were held out."""
    every = torch.arange(len(source))
    trained = made.get("data") == source.name and made.get("samples") == len(source)
    rest = source.split(made["holdout"])[1] if trained and made.get("holdout") else every[:0]
    if len(rest):
        notes.append(f"Judged on the {len(rest):,} samples of {source.name} that training held out.")
        return rest
    if trained:
        notes.append(f"Judged on {source.name}, which the model was trained on.")
    return every


def _fitting(model: Any, x: Tensor) -> Tensor:
    """In the precision of the model: float32 for a network of that or less, float64 for exact models."""
    listed = getattr(model, "parameters", None)
    first = next(iter(listed()), None) if listed is not None else None
    return x.float() if first is not None and first.dtype != torch.float64 else x.double()


def trivial(model: Any, found: Rows) -> Trivial:
    """Normalised data have mean 0 and deviation sigma_data; else both are those of the law or of the samples."""
    if getattr(model, "spec", None) is not None:
        return Trivial(model.process, 0.0, model.sigma_data**2)
    if found.law is not None:
        return Trivial(model.process, *found.law.moments())
    mean = found.x.double().mean(0)
    return Trivial(model.process, mean, float((found.x.double() - mean).square().mean()))
