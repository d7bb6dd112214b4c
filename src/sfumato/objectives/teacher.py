"""Targets with less variance: E[x | z] from a teacher or a reference batch, instead of the single x behind z.

    |x - D(z)|^2 = |E[x|z] - D(z)|^2 + tr Cov(x|z)   in expectation

so D has the same optimum, but the loss goes to 0 there, as does the variance of the gradient. A target is passed as
`denoising_loss(..., clean=...)`: a function Corrupted -> (x, eps) of the two signals that the network should predict.

    Teacher        (E[x|z], E[eps|z]) of any model
    GuidedTeacher  the same, guided by the scale that each sample is given
    StableTarget   x^ = sum_i r_i x_i, r_i ~ N(z; alpha x_i, sigma^2), over a reference that includes the sample itself

The second is unbiased for any size of the reference: given z and the set, sample i is the one behind z with probability
r_i, so x^ = E[x | z, set] and E[x^ | z] = E[x | z]. Without the sample itself the bias would be O(1/n).
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
from sfumato.guidance import GuidedByCondition
from sfumato.model import Model
from sfumato.process.gaussian import require_numbers
from sfumato.schedule import Schedule

_LARGEST_RATIO = 1e8  # alpha / sigma beyond which z determines its sample


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """The draws of a loss: z = alpha x + sigma eps at times t of a process, for samples `index` of `seed`."""

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
    """(E[x|z], E[eps|z]) of any `Model`, without gradients; its schedule may differ from the student's.

    The loss is |D_teacher(z) - D(z)|^2 in the units and weights of the denoising loss, and 0 at its optimum.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def _under(self, schedule: Schedule) -> Model:
        """The teacher under the student's schedule."""
        return self.model if self.model.process.schedule == schedule else Rescheduled(self.model, schedule)

    @torch.no_grad()
    def __call__(self, at: Corrupted) -> tuple[Tensor, Tensor]:
        require_numbers(at.process, "The target of a teacher", "train it by denoising_loss on the data")
        belief = self._under(at.process.schedule)(at.z, at.t, **at.cond)
        return belief.x.to(at.z.dtype), belief.eps.to(at.z.dtype)


class GuidedTeacher(Teacher):
    """The same under guidance, by the scale that each sample has as its condition `name`: guidance distilled.

        target = base + scale (conditional - base),   loss 0 where the student says so in one call

    The student's data have a column of scales, drawn apart from all else, such as exp(uniform(0, log 8)); a sample
    without one is taught scale 1. known: the student's declared condition, `spec.conditions["scale"]`, which says what
    its normalised values are; None: they are the scales. Source: Meng et al. 2023 (2210.03142), Eq. 3.
    """

    def __init__(self, model: Model, name: str = "scale", known: Any = None) -> None:
        super().__init__(GuidedByCondition(model, known, name))
        self.name = name

    def __call__(self, at: Corrupted) -> tuple[Tensor, Tensor]:
        if self.name not in at.cond:
            raise SfumatoError(f"A guided teacher needs the scale of each sample, as the condition {self.name!r}.")
        return super().__call__(at)


class StableTarget:
    """E[x | z, set]: the posterior mean over the sample itself and `size` samples of a pool (2302.00670).

    pool: normalised data (N, ...), such as the training set; labels: int64 (N,), if the network is conditioned on them,
    to restrict a sample's reference to its class (no restriction for label -1, hidden). Each block of `block`
    consecutive indices shares a reference, drawn by (seed, block), so the targets do not depend on how the batches are
    split. A pool sample equal to the sample itself is not counted twice.
    """

    def __init__(self, pool: Tensor, size: int = 1024, labels: Tensor | None = None, block: int = 64) -> None:
        if not 1 <= size <= len(pool):
            raise SfumatoError(f"A reference needs 1 to {len(pool)} samples of the pool, not {size}.")
        if block < 1:
            raise SfumatoError(f"A block must have at least 1 sample, not {block}.")
        if labels is not None and len(labels) != len(pool):
            raise SfumatoError(f"The pool has {len(pool)} samples but {len(labels)} labels: pass one label per sample.")
        self.pool, self.size, self.labels, self.block = pool, size, labels, block

    @torch.no_grad()
    def __call__(self, at: Corrupted) -> tuple[Tensor, Tensor]:
        alpha, sigma = at.process.schedule(at.t)
        ratio = (alpha / sigma).clamp_max(_LARGEST_RATIO).to(at.x.device)
        other = next((name for name in at.cond if name != "label"), None)
        if other is not None:
            raise SfumatoError(
                f"A reference batch supports only labels, but the samples have the condition {other!r}: leave it out."
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
        """Distinct rows of the pool for one block of samples."""
        keys = noise.bits(seed, torch.arange(len(self.pool)), 1, noise.REFERENCE, block % (1 << 24))[:, 0]
        return torch.argsort(keys, stable=True)[: self.size]


def away(x: Tensor, eps: Tensor, ratio: Tensor, reference: Tensor, allowed: Tensor | None = None) -> Tensor:
    """x - sum_i r_i x_i over the sample x and the reference (n, ...), like x (B, ...).

    With d_i = x - x_i and k = alpha / sigma, log r_i = -k eps.d_i - k^2 |d_i|^2 / 2 + const, without cancellation for
    small sigma. ratio: k, (B,). allowed: which reference samples to include, bool (B, n).
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
