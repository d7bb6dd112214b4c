"""Published losses of symbols beside the path KL (`denoising`), exact counts (`masked`) and T steps (`nonequilibrium`).

    score-entropy    1/p sum_y R(y -> z) [s_y - r_y log s_y + r_y (log r_y - 1)],   r of the truth, s of the network
    ratio-matching   -log p(z_i | z_j for j != i), of a network that does not hear z_i
    sundae           the mean of -log p(x | z) and of -log p(x | z'), z' ~ p(. | z) without a gradient

The first is the path KL itself once s belongs to a distribution: `Logits.ratio`, or the loss "denoising" of any row.
The second has its minimum at the same h, but is no bound, and without the condition its minimum is 0 for any data.
Sources: Lou et al. 2023 (2310.16834), Eq. 9; Sun et al. 2022 (2211.16750), Eq. 17; Savinov et al. 2021 (2112.06749).
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato import noise, registry
from sfumato.errors import SfumatoError
from sfumato.noise import Noise
from sfumato.objectives.loss import LearnsLevels, Loss
from sfumato.objectives.losses import fixed
from sfumato.objectives.times import TimeDensity
from sfumato.process import Masked, Symbols
from sfumato.registry import register


class Drawn(NamedTuple):
    """What a loss of symbols is computed of: x and z int64 (B, *shape), t and level float64 (B,)."""

    x: Tensor
    z: Tensor
    t: Tensor
    level: Tensor


def drawn(model: Any, batch: Any, times: TimeDensity, seed: int) -> Drawn:
    """z ~ q(z_t | x) at levels of the density."""
    process = model.process
    x, level = process.data(batch.x), times.logsnr(batch.u, process.clock)
    t = process.clock.time(level)
    return Drawn(x, process.corrupt(x, t, Noise(seed, batch.index, noise.TRAIN_NOISE)), t, level)


def require_symbols(model: Any, what: str) -> None:
    """Raise SfumatoError unless the states of the model are symbols."""
    process = getattr(model, "process", model)
    if not isinstance(process, Symbols):
        raise SfumatoError(f"{what} needs a process of symbols, not {type(process).__name__}: take loss='denoising'.")


def require_fixed(times: TimeDensity, what: str) -> None:
    """Raise SfumatoError for a density that learns, which changes a loss that is not divided by it."""
    if times.moves:
        raise SfumatoError(
            f"{what} is not divided by the density of its levels, and would change with one that learns: take a fixed "
            "one, such as times='uniform'."
        )


@register("loss", "score-entropy")
@final
class ScoreEntropy(LearnsLevels):
    """The denoising score entropy in nats per symbol, of levels drawn from `times` (2310.16834), which may learn.

    normalised: whether the ratios are those of a distribution, as of every belief; then it is half the denoising loss
    of weight 1. If not, s = exp(y) of a network of row "ratio", which may be any numbers: where a mask is, their sum
    relative to the truth, c, costs c - 1 - log c more, and tells nothing.
    """

    def __init__(self, times: TimeDensity, seed: int = 0, normalised: bool = True) -> None:
        super().__init__()
        self.times, self.seed, self.normalised = times, seed, normalised

    def losses(self, model: Any, batch: Any) -> Tensor:
        self.clock = model.process.clock
        return self._nats(model, batch, self.times)

    def held(self, model: Any, batch: Any) -> Tensor:
        return self._nats(model, batch, fixed(self.times))

    def _nats(self, model: Any, batch: Any, times: TimeDensity) -> Tensor:
        process = model.process
        x, z, t, level = drawn(model, batch, times, self.seed)
        if self.normalised:
            nats = process.rate(model(z, t, **batch.cond), x)
        else:
            said = torch.nn.functional.pad(model.predict(z, t, **batch.cond).exp(), (0, process.size - process.states))
            nats = process.score_entropy(said.scatter(-1, z[..., None], 1.0), x, z, t)
        return nats.flatten(1).mean(1) / times.density(level, process.clock).to(nats)

    def suits(self, model: Any) -> None:
        require_symbols(model, "The score entropy")
        process = model.process
        said = process.row == "ratio" and (process.size == process.states or isinstance(process, Masked))
        if not self.normalised and not (said and hasattr(model, "predict")):
            raise SfumatoError(
                "Ratios as the network says them need row='ratio', and a process whose ratios are all said, such as "
                "masked or uniform: leave out normalised=False."
            )


@register("loss", "ratio-matching")
@final
class RatioMatching(Loss):
    """-log p(z_i | z_j for j != i) per symbol, at levels drawn from `times`, not divided by their density (2211.16750).

    The network must not hear z_i: `nets.Transformer(mask="hollow")`, which text takes by itself, or one of your own.
    """

    mask = "hollow"

    def __init__(self, times: TimeDensity, seed: int = 0) -> None:
        require_fixed(times, "Ratio matching")
        super().__init__()
        self.times, self.seed = times, seed

    def losses(self, model: Any, batch: Any) -> Tensor:
        _, z, t, _ = drawn(model, batch, self.times, self.seed)
        own = model(z, t, **batch.cond).zeta.gather(-1, z[..., None])
        return -own.clamp_min(torch.finfo(own.dtype).tiny).log().flatten(1).mean(1)

    def suits(self, model: Any) -> None:
        require_symbols(model, "Ratio matching")
        net = getattr(model, "net", None)
        if registry.ships("network", type(net).__name__) and getattr(net, "mask", None) != "hollow":
            raise SfumatoError(
                f"Ratio matching needs a network that does not hear z_i where it says what z_i is, and this "
                f"{type(net).__name__} does: take net='Transformer(mask=hollow)', for samples of shape (1, length)."
            )


@register("loss", "sundae")
@final
class Sundae(Loss):
    """The mean of -log p(x | z_k) per symbol over z_0 ~ q(z_t | x) and z_{k + 1} ~ p(. | z_k), k < steps (2112.06749).

    It trains a network to repair its own samples; no gradient passes through these. All are heard at the same t. With
    row="x" the network alone says how far z is to be trusted, as in the paper. It is no bound, and needs symbols that
    may be wrong where they are visible, such as of process="uniform".
    """

    def __init__(self, times: TimeDensity, seed: int = 0, steps: int = 2) -> None:
        require_fixed(times, "SUNDAE")
        super().__init__()
        if steps < 1:
            raise SfumatoError(f"SUNDAE needs at least 1 step, not {steps}.")
        self.times, self.seed, self.steps = times, seed, steps

    def losses(self, model: Any, batch: Any) -> Tensor:
        x, z, t, _ = drawn(model, batch, self.times, self.seed)
        source = Noise(self.seed, batch.index, noise.TRAIN_NOISE).fold("unrolled")
        nats: Any = 0.0
        for k in range(self.steps):
            belief = model(z, t, **batch.cond)
            nats = nats + belief.nats(x)
            z = model.process.draw(belief.prob.detach(), source.at(k))
        return nats / (self.steps * x[0].numel())

    def suits(self, model: Any) -> None:
        require_symbols(model, "SUNDAE")
        if isinstance(model.process, Masked):
            raise SfumatoError(
                "SUNDAE corrects symbols that are visible, which of process='masked' are always right: take "
                "process='uniform'."
            )
