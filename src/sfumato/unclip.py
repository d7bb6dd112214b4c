"""The unCLIP pair: a prior draws the embedding of a picture from its caption, and a decoder the picture from that.

    p(x | y) = int p(x | e) p(e | y) de,   e = embedder(x)

e is a function of x in training, so that the pair has the law of the data if both parts have theirs. The embedding of a
picture, in the place of one that the prior has drawn, gives variations of it, and the way from one embedding to another
pictures between two. Source: Ramesh et al. 2022 (2204.06125), Sec. 2 and 3.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import torch
from torch import Tensor

from sfumato.cascade import Staged
from sfumato.conditions import EMBEDDING, Given
from sfumato.embedder import Embedder
from sfumato.errors import SfumatoError
from sfumato.model import usable
from sfumato.noise import Noise
from sfumato.registry import register


@register("model", "UnCLIP")
@final
class UnCLIP(Staged):
    """prior: a denoiser of embeddings (k,) under captions and other conditions; decoder: one of pictures under the
    condition "embedding", a vector; embedder: picture -> embedding, needed for variations alone.

    `sf.sample(model, n, caption=...)` runs both, and `embedding=` (n or 1, k) takes the place of the prior, which is
    itself a model, as the decoder is. `sf.guide(model, w)` guides both; otherwise guide each and put them together.
    """

    told = EMBEDDING

    def __init__(self, prior: Any, decoder: Any, embedder: Embedder | None = None) -> None:
        self.prior, self.decoder = usable(prior, "The prior"), usable(decoder, "The decoder")
        self.embedder = embedder
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
        return UnCLIP(first, last, self.embedder)

    @property
    def spec(self) -> Any:
        """That of the pictures, with the conditions of the prior."""
        spec, own = getattr(self.decoder, "spec", None), getattr(self.prior, "spec", None)
        return spec if spec is None or own is None else dataclasses.replace(spec, conditions=own.conditions)

    @property
    def _condition(self) -> Any:
        return (getattr(getattr(self.decoder, "spec", None), "conditions", None) or {}).get(EMBEDDING)

    def conditions(self, drawn: Tensor, noise: Noise, normalised: bool = False) -> dict[str, Any]:
        spec = getattr(self.prior, "spec", None)
        e = torch.as_tensor(drawn if spec is None or not normalised else spec.denormalise(drawn)).cpu()
        if self._condition is not None:
            return {EMBEDDING: self._condition.encode(e, len(e))}
        return {EMBEDDING: Given(e, torch.ones(len(e), dtype=torch.bool))}

    def embed(self, x: Any) -> Tensor:
        """e (B, k) of pictures x (B, *shape) in user units. SfumatoError without an embedder, or for other pictures."""
        if self.embedder is None:
            raise SfumatoError("This unCLIP pair has no embedder, so that no picture has an embedding: give it one.")
        spec = getattr(self.decoder, "spec", None)
        if spec is not None:
            spec.check(torch.as_tensor(x))
        return self.embedder(x)
