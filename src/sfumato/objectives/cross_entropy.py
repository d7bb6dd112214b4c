"""The cross-entropy of symbols at drawn levels, the loss of SED and CDCD ("score interpolation").

    CE = E -log p(x_i | z_t) in nats per symbol,   x_hat = sum_k p(k) E_k

It has the same minimum as the squared error of x_hat, p(x_i = k | z), and vectors that are trained along
(`process.Embedded`, learned) cannot lower it by falling together, as they lower a squared error. A network of vectors
may hear its own estimate of the call before, and the vectors of known symbols without noise, by which prompts and
infillings are exact for an exact model: p(x_i | z, known).
Sources: Strudel et al. 2022 (2211.04236), Eq. 6; Dieleman et al. 2022 (2211.15089), Sect. 3 and 4.2.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import KNOWN, Given
from sfumato.errors import SfumatoError
from sfumato.model import hears
from sfumato.noise import Noise
from sfumato.objectives.density import TimeDensity
from sfumato.objectives.loss import LearnsLevels
from sfumato.objectives.losses import fixed, own_estimate, require_remembering
from sfumato.process import Embedded
from sfumato.registry import register


@register("loss", "cross-entropy")
@final
class CrossEntropy(LearnsLevels):
    """-log p(x_i | z_t) in nats per symbol, at levels drawn by `times`, for any process of symbols.

    The density is the weight of the levels: nothing is divided by it. With times="warped" the loss rises evenly over
    the draws (2211.15089, Sect. 4.2). Held-out samples stand at fixed levels, and hear nothing of what follows.
    Of `Embedded`: previous, the share of the samples that hear the network's own x of a first call, as with
    `SelfConditioned`; known, the share that hear some of their symbols, the first n or any n, n uniform
    (`conditions.KNOWN`).
    """

    def __init__(self, times: TimeDensity, seed: int = 0, previous: float = 0.0, known: float = 0.0) -> None:
        super().__init__()
        if not (0 <= previous <= 1 and 0 <= known <= 1):
            raise SfumatoError(f"Shares of the samples lie in [0, 1], not previous={previous:g} and known={known:g}.")
        self.times, self.seed, self.previous, self.known = times, seed, previous, known
        self.carries = previous > 0

    def losses(self, model: Any, batch: Any) -> Tensor:
        self.clock = model.process.clock
        return self._nats(model, batch, self.times, self.previous, self.known)

    def held(self, model: Any, batch: Any) -> Tensor:
        return self._nats(model, batch, fixed(self.times), 0.0, 0.0)

    def _nats(self, model: Any, batch: Any, times: TimeDensity, previous: float, known: float) -> Tensor:
        process, cond = model.process, dict(batch.cond)
        t = process.clock.time(times.logsnr(batch.u, process.clock))
        x = process.data(batch.x)
        z = process.corrupt(x, t, Noise(self.seed, batch.index, noise.TRAIN_NOISE))
        if known:
            cond[KNOWN] = some_known(process, x, known, Noise(self.seed, batch.index, noise.DROP).fold(KNOWN))
        if previous:
            cond |= own_estimate(model, z, t, cond, previous, self.seed, batch.index)
        nats: Tensor = model(z, t, **cond).nats(x) / batch.x[0].numel()
        return nats

    def inputs(self, shape: tuple[int, ...]) -> dict[str, dict[str, Any]]:
        return {KNOWN: {"kind": "field", "shape": list(shape)}} if self.known else {}

    def observe(self, batch: Any, losses: Tensor) -> None:
        assert self.clock is not None
        logsnr = self.times.logsnr(batch.u, self.clock).detach()
        super().observe(batch, losses / self.times.density(logsnr, self.clock).to(losses))

    def suits(self, model: Any) -> None:
        process = getattr(model, "process", None)
        if not hasattr(process, "states"):
            raise SfumatoError(
                f"The cross-entropy is of symbols, and a {type(process).__name__} process has none: take "
                "loss='denoising', or process='embedded'."
            )
        if (self.previous or self.known) and not isinstance(process, Embedded):
            raise SfumatoError("previous and known are for symbols that are vectors: take process='embedded'.")
        if self.previous:
            require_remembering(model)
        if self.known and not hears(model, KNOWN):
            raise SfumatoError(
                "known trains a network that hears known symbols: leave net to a name such as 'small', or give it the "
                "condition 'known', a field of the shape of a state."
            )


def some_known(process: Embedded, x: Tensor, share: float, source: Noise) -> Given:
    """The vectors (B, d C, ..) of some symbols of clean vectors x, 0 for the others, in a share of the samples: the
    first n of the D symbols in half of them, any n in the others, n uniform on 0 .. D - 1."""
    u = source.uniform((3,), dtype=torch.float64)
    sites = (x.shape[1] // process.dim, *x.shape[2:])
    order = noise.ranks(source.fold("order").normal(sites).flatten(1))
    place = torch.where(u[:, :1] < 0.5, torch.arange(order.shape[1]), order)
    some = (place < (u[:, 1:2] * order.shape[1]).floor()).reshape(-1, *sites)
    field = x * some.repeat(1, process.dim, *(1,) * (x.ndim - 2)).to(x)
    return Given(field, (u[:, 2] < share).to(x.device)).masked()
