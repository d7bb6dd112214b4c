"""What an unCLIP pair is trained on: embeddings of pictures, computed once, and pictures with their embedding.

`embeddings.npy` beside the embedder's file holds e of each sample, and `embeddings.json` the hash of the embedder and
of the data that it was made of, as for codes (`codes.stored`).
"""

from __future__ import annotations

import dataclasses
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato import noise, serialization
from sfumato.conditions import EMBEDDING as CONDITION
from sfumato.conditions import of_data
from sfumato.data import DataSpec, Source
from sfumato.data.column import Column
from sfumato.data.spec import fitted
from sfumato.embedder import Embedder
from sfumato.errors import SfumatoError, an
from sfumato.features import encoder_folder, usual
from sfumato.process import Gaussian
from sfumato.regression_prior import MOST, RegressionPrior
from sfumato.schedule import schedule_of
from sfumato.training import codes
from sfumato.training.config import TrainConfig

EMBEDDING = "embedding"  # the folder of the embedder within that of a run
FILE = "embeddings.npy"
_FITTED_TO = 20_000  # most samples that the components are those of
SHARPENED = 0.25  # the temperature of a regression: at 1 what captions leave open hides what they say


def embedder(source: Source, embedding: Any, holdout: float) -> Embedder:
    """The embedder of a run: the one that is given, that of a file, or one fitted to the training samples.

    embedding: an Embedder, its file or run, the name of features, the folder of an image encoder, or None for the usual
    features of such data.
    """
    if source.text is not None or source.table is not None or source.missing:
        raise SfumatoError(
            f"{source.name} has no embeddings, which whole samples of numbers have (no text, tables or missing "
            "values): leave unclip and embedding out."
        )
    if isinstance(embedding, Embedder):
        return embedding
    encodes = embedding is not None and encoder_folder(embedding) is not None
    if embedding is not None and not encodes and Path(embedding).expanduser().exists():
        return loaded(embedding)
    rows, _ = source.split(holdout)
    rows = rows[noise.permutation(0, 0, len(rows))[:_FITTED_TO]].sort().values
    word = usual(source.kind, source.shape) if embedding is None else os.fspath(embedding)
    return Embedder.fit(source.x[rows], word, bounds=source.bounds)


def heard_by_regression(source: Source, settings: TrainConfig) -> str:
    """The one condition of the data that a prior by regression hears.

    Raises SfumatoError unless that is a vector, or a text that an encoder embeds.
    """
    rows, _ = source.split(settings.holdout)
    kinds = {name: fitted(name, column, rows).network()["kind"] for name, column in source.conditions.items()}
    if len(kinds) != 1 or set(kinds.values()) - {"text", "vector"}:
        heard = ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"
        raise SfumatoError(
            f"prior='regression' needs one condition, a caption that an encoder embeds or a vector, and these are "
            f"{heard}: take conditions={{'caption': 'text(minilm)'}} and leave others out (NAME:ignore), or a network."
        )
    return next(iter(kinds))


def regression(source: Source, settings: TrainConfig) -> RegressionPrior:
    """The prior by regression of embeddings on the condition of the training samples, at most MOST of them."""
    name, (rows, _) = heard_by_regression(source, settings), source.split(settings.holdout)
    spec = DataSpec.fit(source, rows)
    chosen = rows[noise.permutation(settings.seed, 0, len(rows))[:MOST]].sort().values
    given = of_data(spec, source, chosen).given(name)
    values, e = given.values[given.present], spec.normalise(source.x[chosen[given.present]])
    y = values[:, 0] if values.ndim == 3 else values
    made = RegressionPrior.fit(y, e, Gaussian(schedule_of(settings.schedule), settings.target), name, spec)
    made.temperature = SHARPENED
    return made


def loaded(place: Any) -> Embedder:
    """The embedder of a file or folder. SfumatoError for another model."""
    found = serialization.load(place)
    if not isinstance(found, Embedder):
        raise SfumatoError(
            f"{place} holds {an(type(found).__name__)}, and pictures are embedded by an Embedder: give the file of one "
            "(RUN/embedding), or the name of features."
        )
    return found


def embedded(source: Source, place: str, decodes: bool) -> Source:
    """The embeddings of the samples under their conditions, or, for a decoder, the samples under their embedding."""
    own = loaded(place)
    e = codes.stored(place, source, own, Embedder.__call__, FILE)
    if decodes:
        column = Column(e.numpy(), np.ones(len(e), bool), kind="vector")
        return dataclasses.replace(source, conditions={CONDITION: column})
    known = source.identity
    if known is not None:  # statistics are cached under it
        known = blake2b(f"{known} {codes.file_hash(place)}".encode(), digest_size=20).hexdigest()
    note = f"Embeddings of {own.size} numbers, by {own.features}."
    return dataclasses.replace(
        source, x=torch.as_tensor(e), kind="array", bounds=None, identity=known, stored={}, notes=[*source.notes, note]
    )
