"""The bound of masked symbols with exact counts: draw how many symbols are masked, then which.

    -log p(x) <= sum_{n=1}^{D} 1/n E_{|M| = n} sum_{i in M} -log p(x_i | x outside M),   D symbols, M a uniform subset

It equals the integral of the path KL over all levels, for every schedule and any model, right or wrong, and is the mean
code length over all orders of the symbols (Hoogeboom et al. 2021, 2110.02037, Eq. 4; Ou et al. 2024, 2406.03736). Masks
that are drawn independently at a time t have the same mean, but their number varies, and with t uniform and alpha =
1 - t the variance is infinite. Here n is spread evenly over a batch, and only what is masked enters the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sfumato import noise
from sfumato.conditions import unfolded
from sfumato.errors import SfumatoError, suggest
from sfumato.model import Denoiser
from sfumato.objectives.loss import Loss
from sfumato.process import Masked
from sfumato.process.mixing import mask_times
from sfumato.registry import register

COUNTS = ("uniform", "cosine")


def counted(u: Tensor, x: Tensor) -> Tensor:
    """n = ceil(u D) for u in (0, 1), int64 like u: how many of the D symbols of a sample of x to mask."""
    size = x[0].numel()
    return (u.double() * size).ceil().long().clamp(1, size)


def masked(process: Masked, x: Tensor, n: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """(z, t): x with n of its symbols masked, those of the smallest eps (like x), and the time, (B,), at which the
    expected share of masks is n / D."""
    place = noise.ranks(eps.flatten(1)).reshape(x.shape)
    z = torch.where(place < n.to(x.device).reshape(-1, *[1] * (x.ndim - 1)), process.mask, x)
    return z, mask_times(process, x[0].numel())[n.cpu()]


def masked_logits(model: Any, z: Tensor, t: Tensor, at: Tensor, **cond: Any) -> Tensor:
    """log p(x_i | z) up to a constant of the masks `at` (bool, like z), (m, K): a network that `selects` computes no
    others, unless it is compiled, which needs fixed shapes."""
    net = getattr(model, "net", None)
    selects = getattr(net, "selects", False) and getattr(net, "_compiled_call_impl", None) is None
    if selects and isinstance(model, Denoiser) and model.process.row in ("other", "x"):  # which are one at a mask
        return model.raw(z, t, at, **cond)
    logits: Tensor = model(z, t, **cond).of_masks(at)
    return logits


def masked_nats(logits: Tensor, x: Tensor, at: Tensor, n: Tensor, smoothing: float = 0.0) -> Tensor:
    """D / n times the sum over masks of -log p(x_i | z), (B,), at least float32; logits (m, K) of the m masks `at`.

    smoothing: the share of each target that is spread evenly over all symbols.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = cross_entropy(logits, x[at], reduction="none", label_smoothing=smoothing)
    sums = each.new_zeros(len(x)).index_add(0, at.nonzero()[:, 0], each)
    return sums * (x[0].numel() / n.to(sums))


def masked_loss(
    model: Any,
    x: Tensor,
    u: Tensor | None = None,
    seed: int = 0,
    index: Tensor | Sequence[int] | None = None,
    eps: Tensor | None = None,
    smoothing: float = 0.0,
    **cond: Any,
) -> Tensor:
    """An unbiased estimate of the bound for each sample from one n, (B,) in nats; x int64 (B, *shape).

    u: numbers in (0, 1), float64 (B,), by default spread evenly over the samples. eps: numbers like x, of which the
    smallest are masked, by default drawn. Draws depend on (seed, index) alone; index defaults to 0 .. B-1.
    """
    require_masks(model)
    index = torch.arange(len(x)) if index is None else torch.as_tensor(index)
    u = noise.spread(seed, index, noise.TRAIN_TIME) if u is None else u
    eps = noise.uniform(seed, index, tuple(x.shape[1:]), noise.TRAIN_NOISE, device=x.device) if eps is None else eps
    n = counted(u, x)
    z, t = masked(model.process, x, n, eps)
    at = z == model.process.mask
    return masked_nats(masked_logits(model, z, t, at, **unfolded(cond)), x, at, n, smoothing)


def require_masks(model: Any) -> None:
    """Raise SfumatoError unless the model's process is `Masked`."""
    process = getattr(model, "process", model)
    if not isinstance(process, Masked):
        raise SfumatoError(
            f"Exact counts of masks need process='masked', not {type(process).__name__}: take loss='denoising'."
        )


@register("loss", "masked")
@register("loss", "mask-predict", power=1.0)
@register("loss", "maskgit", power=1.0, counts="cosine", smoothing=0.1)
@final
class CountedMasks(Loss):
    """The bound in nats per symbol from one count n of masks per sample, for `process="masked"` (2110.02037), or

        (n / D)^power 1/n sum over masks of -log p(x_i | z),   n = ceil(m D),   m = u ("uniform") or sin(pi u / 2)

    with a sample's number u in (0, 1), so that a batch spreads over all counts. As a function of the share m of masks,
    the weight relative to the bound is m^power p(m). Mask-Predict (1904.09324) has the plain cross entropy at uniform
    counts, the weight m; MaskGIT (2202.04200) the same at cosine counts, 2 m / (pi sqrt(1 - m^2)), which attends to the
    first calls of sampling, and targets of which `smoothing` is spread over all symbols.
    """

    by_noise = True

    def __init__(self, seed: int = 0, power: float = 0.0, counts: str = "uniform", smoothing: float = 0.0) -> None:
        super().__init__()
        if counts not in COUNTS:
            raise SfumatoError(f"Masks are not counted by {counts!r}: {suggest(counts, COUNTS)}")
        if not 0 <= smoothing < 1:
            raise SfumatoError(f"The smoothing of targets is a share in [0, 1), not {smoothing:g}.")
        self.seed, self.power, self.counts, self.smoothing = seed, power, counts, smoothing

    def losses(self, model: Any, batch: Any) -> Tensor:
        x, u = model.process.data(batch.x), self.share(batch.u)
        nats = masked_loss(model, x, u, self.seed, batch.index, smoothing=self.smoothing, cond=batch.cond)
        size = x[0].numel()
        return nats * (counted(u, x) / size).to(nats) ** self.power / size

    def share(self, u: Tensor) -> Tensor:
        """m, the share of masks at u, like u."""
        return u if self.counts == "uniform" else torch.sin(math.pi / 2 * u)

    def suits(self, model: Any) -> None:
        require_masks(model)
