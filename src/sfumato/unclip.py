"""The unCLIP pair: a prior draws the embedding of a picture from its caption, and a decoder the picture from that.

    p(x | y) = int p(x | e) p(e | y) de,   e = embedder(x)

e is a function of x in training, so that the pair has the law of the data if both parts have theirs. The embedding of a
picture, in the place of one that the prior has drawn, gives variations of it, and the way from one embedding to another
pictures between two. Source: Ramesh et al. 2022 (2204.06125), Sec. 2 and 3.

A decoder that was trained on e' = e + s eta is told as noisy ones: x then has the law of the data for every s, and what
the prior gets wrong by less than s hardly shows. Of a linear Gaussian chain E[x | y] = B C_e (C_e + s^2)^-1 A y.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, final

import torch
from torch import Tensor

from sfumato.cascade import Staged
from sfumato.conditions import EMBEDDING, Given
from sfumato.embedder import Embedder
from sfumato.errors import SfumatoError
from sfumato.latent_diffusion import LatentSpec
from sfumato.model import usable
from sfumato.noise import Noise
from sfumato.registry import register


def noised(e: Given, level: float, noise: Noise) -> Given:
    """e + level eta of embeddings (B, k) as the decoder is told them; those that are absent stay so."""
    eta = noise.fold(EMBEDDING).normal(tuple(e.values.shape[1:]), e.values.device, e.values.dtype)
    return Given(e.values + level * eta, e.present).masked() if level else e


@register("model", "UnCLIP")
@final
class UnCLIP(Staged):
    """prior: a denoiser of embeddings (k,) under captions and other conditions; decoder: one of pictures under the
    condition "embedding", a vector; embedder: picture -> embedding, needed for variations alone; noise: s, that of the
    decoder's training (`objectives.decoding`), in units of the deviation of each number, or 0 for embeddings as they
    are.

    `sf.sample(model, n, caption=...)` runs both, and `embedding=` (n or 1, k) takes the place of the prior, which is
    itself a model, as the decoder is. `sf.guide(model, w)` guides both; otherwise guide each and put them together.
    """

    told = EMBEDDING

    def __init__(self, prior: Any, decoder: Any, embedder: Embedder | None = None, noise: float = 0.0) -> None:
        if not 0 <= noise < math.inf:
            raise SfumatoError(f"The noise on the embeddings of a pair is a number of at least 0, not {noise!r}.")
        self.prior, self.decoder = usable(prior, "The prior"), usable(decoder, "The decoder")
        self.embedder, self.noise = embedder, float(noise)
        self.provenance: dict[str, Any] = {}
        sizes = [
            getattr(prior, "shape", None), getattr(self._condition, "shape", None),
            None if embedder is None else (embedder.size,),
        ]  # fmt: skip
        if len({tuple(size) for size in sizes if size is not None}) > 1:
            raise SfumatoError(
                f"Prior, decoder and embedder have embeddings of shapes {', '.join(map(str, sizes))}: take those that "
                "were trained together."
            )

    @property
    def first(self) -> Any:
        return self.prior

    @property
    def last(self) -> Any:
        return self.decoder

    def put_together(self, first: Any, last: Any) -> UnCLIP:
        return UnCLIP(first, last, self.embedder, self.noise)

    @property
    def spec(self) -> Any:
        """That of the pictures, with the conditions of the prior."""
        spec, own = getattr(self.decoder, "spec", None), getattr(self.prior, "spec", None)
        if spec is None or own is None:
            return spec
        if isinstance(spec, LatentSpec):
            codes = dataclasses.replace(spec.latent, conditions=own.conditions) if spec.latent else None
            return LatentSpec(spec.normaliser.autoencoder, codes)
        return dataclasses.replace(spec, conditions=own.conditions)

    @property
    def _condition(self) -> Any:
        return (getattr(getattr(self.decoder, "spec", None), "conditions", None) or {}).get(EMBEDDING)

    def conditions(self, drawn: Tensor, noise: Noise, normalised: bool = False) -> dict[str, Any]:
        spec = getattr(self.prior, "spec", None)
        e = torch.as_tensor(drawn if spec is None or not normalised else spec.denormalise(drawn)).cpu()
        here = torch.ones(len(e), dtype=torch.bool)
        heard = Given(e, here) if self._condition is None else self._condition.encode(e, len(e))
        return {EMBEDDING: noised(heard, self.noise, noise)}

    def embed(self, x: Any) -> Tensor:
        """e (B, k) of pictures x (B, *shape) in user units. SfumatoError without an embedder, or for other pictures."""
        if self.embedder is None:
            raise SfumatoError("This unCLIP pair has no embedder, so that no picture has an embedding: give it one.")
        spec = getattr(self.decoder, "spec", None)
        if spec is not None:
            spec.check(torch.as_tensor(x))
        return self.embedder(x)
