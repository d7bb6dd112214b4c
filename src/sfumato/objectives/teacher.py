"""Targets of less variance: E[x | z] by a teacher or by a reference batch, in place of the one x behind z.

    |x - D(z)|^2 = |E[x|z] - D(z)|^2 + tr Cov(x|z)   in the mean

so that D has the same optimum, the loss loses its floor, and the gradient its variance there. A target is what
`denoising_loss(..., clean=...)` takes: Corrupted -> (x, eps), the two signals that the network is to predict.

    Teacher        (E[x|z], E[eps|z]) of any model
    StableTarget   x^ = sum_i r_i x_i, r_i ~ N(z; alpha x_i, sigma^2), over a reference that holds the sample itself

The second is unbiased at any size of the reference: given z and the set, the sample behind z is the i-th with chance
r_i, so that x^ = E[x | z, set] and E[x^ | z] = E[x | z]. Without the sample itself it would be biased by O(1/n).
Sources: Vincent 2011, "A connection between score matching and denoising autoencoders"; Xu, Tong and Jaakkola 2023
(2302.00670), Eq. 5 and Algorithm 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import broadcast
from sfumato.compose import Rescheduled
from sfumato.conditions import Given
from sfumato.errors import SfumatoError
from sfumato.model import Model
from sfumato.process.gaussian import require_numbers

_LARGEST_RATIO = 1e8  # of alpha to sigma: beyond, z is the sample and nothing is shared


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """The draws of a loss: z = alpha x + sigma eps at times t of a process, of the samples `index` under `seed`."""

    process: Any  # Gaussian
    x: Tensor
    eps: Tensor
    z: Tensor
    t: Tensor
    seed: int
    index: Tensor
    cond: Mapping[str, Any]


Clean = Callable[[Corrupted], tuple[Tensor, Tensor]]


class Teacher:
    """(E[x|z], E[eps|z]) of a model, without gradients: any `Model`, under its own schedule or another.

    The loss is |D_teacher(z) - D(z)|^2 in the units and weights of the denoising loss, and 0 at its optimum.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, at: Corrupted) -> tuple[Tensor, Tensor]:
        require_numbers(at.process, "The target of a teacher", "train it by denoising_loss on the data")
        schedule = at.process.schedule
        same = self.model.process.schedule == schedule
        belief = (self.model if same else Rescheduled(self.model, schedule))(at.z, at.t, **at.cond)
        return belief.x.to(at.z.dtype), belief.eps.to(at.z.dtype)


class StableTarget:
    """E[x | z, set]: the posterior mean over `size` samples of a pool and the sample itself (2302.00670).

    pool: normalised data (N, ...), such as the training set; labels: int64 (N,), where the network is conditioned on
    them, so that a sample's reference is of its class (of any where the label is -1, hidden). Samples of one block of
    `block` indices share a reference, which is drawn by (seed, block): batches may be cut anywhere between blocks, or
    within, and the targets stay. A pool sample equal to the sample itself is not counted twice.
    """

    def __init__(self, pool: Tensor, size: int = 1024, labels: Tensor | None = None, block: int = 64) -> None:
        if not 1 <= size <= len(pool):
            raise SfumatoError(f"A reference needs 1 to {len(pool)} samples of the pool, not {size}.")
        if block < 1:
            raise SfumatoError(f"A block holds at least 1 sample, not {block}.")
        if labels is not None and len(labels) != len(pool):
            raise SfumatoError(f"The pool has {len(pool)} samples and {len(labels)} labels: give one label each.")
        self.pool, self.size, self.labels, self.block = pool, size, labels, block

    @torch.no_grad()
    def __call__(self, at: Corrupted) -> tuple[Tensor, Tensor]:
        alpha, sigma = at.process.schedule(at.t)
        ratio = (alpha / sigma).clamp_max(_LARGEST_RATIO).to(at.x.device)
        other = next((name for name in at.cond if name != "label"), None)
        if other is not None:
            raise SfumatoError(
                f"A reference batch knows of labels alone, and the samples have {other!r}: leave it out."
            )
        label = None if self.labels is None else at.cond.get("label")
        label = label.values if isinstance(label, Given) else label
        blocks = at.index // self.block
        shift = torch.empty_like(at.x)
        for block in blocks.unique().tolist():
            rows = torch.nonzero(blocks == block)[:, 0]
            chosen = self._reference(at.seed, block)
            allowed = None
            if label is not None and self.labels is not None:
                own = label[rows.to(label.device)].cpu()[:, None]
                allowed = (own < 0) | (own == self.labels[chosen].cpu())
            rows = rows.to(at.x.device)
            reference = self.pool[chosen.to(self.pool.device)].to(at.x)
            shift[rows] = away(at.x[rows], at.eps[rows], ratio[rows], reference, allowed)
        return at.x - shift, at.eps + (broadcast(ratio, at.x) * shift)

    def _reference(self, seed: int, block: int) -> Tensor:
        """Rows of the pool, all different, for one block of samples."""
        keys = noise.bits(seed, torch.arange(len(self.pool)), 1, noise.REFERENCE, block % (1 << 24))[:, 0]
        return torch.argsort(keys, stable=True)[: self.size]


def away(x: Tensor, eps: Tensor, ratio: Tensor, reference: Tensor, allowed: Tensor | None = None) -> Tensor:
    """x - sum_i r_i x_i over the sample x and the reference (n, ...), like x (B, ...).

    With d_i = x - x_i and k = alpha / sigma, log r_i = -k eps.d_i - k^2 |d_i|^2 / 2 + const: no term of it cancels
    where sigma is small. ratio: k, (B,). allowed: bool (B, n), which of the reference may count.
    """
    own, noised, others = (v.flatten(1).to(torch.float64) for v in (x, eps, reference))
    k = ratio.to(torch.float64)[:, None]
    across = (noised * own).sum(1, keepdim=True) - noised @ others.T
    square = torch.cdist(own, others, compute_mode="donot_use_mm_for_euclid_dist").square()
    log_r = -k * across - 0.5 * k**2 * square
    counts = square > 0 if allowed is None else (square > 0) & allowed.to(square.device)
    log_r = torch.where(counts, log_r, -torch.inf)
    r = torch.softmax(torch.cat((torch.zeros_like(k), log_r), 1), 1)[:, 1:]
    return (r.sum(1, keepdim=True) * own - r @ others).to(x.dtype).reshape(x.shape)
