"""Embeddings of samples: principal components of features, between the prior and the decoder of an unCLIP pair.

    e = V^T (f(x) - m) / (s r),   r^2 = the mean of the k kept variances, so that E |e|^2 = k

f: features of x (`features`); m, s: their mean and deviation, s = 1 where they have one unit; V (F, k): the first
eigenvectors of their covariance. Source: Ramesh et al. 2022 (2204.06125), Sec. 2.2, where f is the encoder of CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import features as named
from sfumato import registry
from sfumato.data.spec import declared_bounds
from sfumato.errors import SfumatoError, suggest
from sfumato.machine import default_cpu
from sfumato.registry import register

SIZE = 48  # numbers of an embedding, where the features and the samples allow as many


@register("model", "Embedder")
class Embedder(nn.Module):
    """embedder(x): x (B, *shape) in user units -> e (B, size), float32. `Embedder.fit(x)` makes one for samples x.

    features: their name, "convolutions", those that `@sf.register("features", NAME)` made, or the folder of an image
    encoder of CLIP, whose name alone is kept; sha: the hash of their
    weights, "" of a function, which has none; width: their number. A file holds m, V / (s r) and the hash, and none of
    the features' weights: features of the same name with another hash are refused when they are first needed.
    """

    mean: Tensor
    basis: Tensor

    def __init__(
        self, shape: Sequence[int], features: str, sha: str, width: int, size: int,
        bounds: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.bounds = None if bounds is None else tuple(map(float, bounds))
        self.shape, self.features, self.sha = tuple(shape), features, sha
        self.width, self.size = width, size
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, size))
        self.provenance: dict[str, Any] = {}
        self._made: list[Any] = []  # the features; no part of the file

    @classmethod
    @default_cpu()
    def fit(
        cls, x: Tensor, features: str = "convolutions", size: int = SIZE, bounds: Sequence[float] | None = None
    ) -> Embedder:
        """From samples x (N, *shape) in user units, within `bounds`, which an image encoder needs.

        Raises SfumatoError for unknown features, and where all samples have the same ones.
        """
        bounds = declared_bounds(x.dtype) if bounds is None else bounds
        made = _built(features, x.shape[1:], bounds)
        f = named.applied(made, x)
        if (folder := named.encoder_folder(features)) is not None:
            features = folder.resolve().name
        size = max(1, min(size, f.shape[1], len(f) - 1))
        own = cls(x.shape[1:], features, _hash(made, features), f.shape[1], size, bounds)
        mean = f.mean(0)
        scale = f.std(0) if getattr(made, "standardised", False) else torch.ones_like(mean)
        scale = torch.where(scale > 0, scale, 1.0)
        variances, vectors = torch.linalg.eigh(((f - mean) / scale).T.cov(correction=0).reshape(f.shape[1], -1))
        variances, vectors = variances[-own.size :].flip(0), vectors[:, -own.size :].flip(1)
        if not float(variances.sum()) > 0:
            raise SfumatoError(f"The features {features} are the same for all samples: take others.")
        sign = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # which eigenvectors leave open
        own.mean.copy_(mean)
        own.basis.copy_(vectors * sign / (scale[:, None] * variances.mean().sqrt()))
        own._made.append(made)
        return own.eval().requires_grad_(False)

    @default_cpu()
    @torch.no_grad()
    def forward(self, x: Any) -> Tensor:
        x = torch.as_tensor(x)
        if tuple(x.shape[1:]) != self.shape:
            raise SfumatoError(f"Samples to embed have shape (B, *{self.shape}), not {tuple(x.shape)}.")
        if not self._made:
            made = _built(self.features, self.shape, self.bounds)
            if (own := _hash(made, self.features)) != self.sha:
                raise SfumatoError(
                    f"The features {self.features} here are not those of the file: their hash is {own or 'none'} "
                    f"instead of {self.sha or 'none'}. Register those that it was made with."
                )
            self._made.append(made)
        f = named.applied(self._made[0], x).to(self.mean)
        return ((f - self.mean) @ self.basis).float().cpu()


def _built(features: str, shape: Sequence[int], bounds: Sequence[float] | None) -> Any:
    """The features by name; of the values themselves a function."""
    known = (*registry.names("features"), named.NUMBERS)
    if registry.bare(features) not in known and named.encoder_folder(features) is None:
        raise SfumatoError(
            f"There are no features {features!r} to embed by: {suggest(str(features), known)}, or the folder of an "
            f"image encoder of CLIP, which {named.PLACE} lists."
        )
    made = named.build(features, shape, bounds)
    return _values if made is None else made


def _values(x: Tensor) -> Tensor:
    return x.flatten(1)


def _hash(made: Any, word: str) -> str:
    return named.identity(made, word)["features_hash"] or ""
