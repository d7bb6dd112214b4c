"""The goal of autoencoders: the ELBO of a KL bottleneck, the loss of a VQ bottleneck, by the loop of all models."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from sfumato.conditions import Conditions
from sfumato.nets import QuantisedCode
from sfumato.objectives.vae import COMMITMENT, elbo_loss, vq_loss
from sfumato.training.goal import Batch, WithoutState
from sfumato.training.validation import Held, Rows


@final
class Autoencoding(WithoutState):
    """Nats a number of x: (-fit + beta KL) / D, or (-fit + commitment |f - sg(e)|^2) / D, for a `Codec`.

    A codebook, which is part of the network, learns after each step of the optimiser; `restarted` counts the codes that
    were started anew so far. Of many processes each learns from what all have encoded, so that codebooks stay equal.
    """

    def __init__(
        self, beta: float = 1.0, free_bits: float = 0.0, commitment: float = COMMITMENT, seed: int = 0
    ) -> None:
        self.beta, self.free_bits, self.commitment, self.seed = beta, free_bits, commitment, seed
        self.restarted = 0
        self._seen: dict[int, QuantisedCode] = {}  # number of a part's first sample -> what was encoded of the part
        self._quantiser: Any = None

    def losses(self, model: Any, batch: Batch) -> Tensor:
        net, size = model.net, batch.x[0].numel()
        if net.quantiser is None:
            return elbo_loss(net, batch.x, self.beta, self.free_bits, self.seed, batch.index) / size
        found = vq_loss(net, batch.x, self.commitment)
        if model.training:
            self._quantiser, self._seen[int(batch.index[0])] = net.quantiser, found.code
        return found.loss / size

    def observe(self, batch: Batch, losses: Tensor) -> None:
        first, last = int(batch.index[0]), int(batch.index[-1])
        parts = [code for start, code in sorted(self._seen.items()) if first <= start <= last]
        if parts:
            code = QuantisedCode(*(batch.world.whole(torch.cat(each)) for each in zip(*parts, strict=True)))
            self.restarted += self._quantiser.learn(code)
        self._seen.clear()

    def measure(
        self, model: Any, x: Tensor, cond: Conditions, count: int, batch: int, train: Rows | None = None
    ) -> Held:
        return Held(lambda by, rows: self.losses(by, Batch(*rows)), x, cond, self.seed, count, batch, train)
