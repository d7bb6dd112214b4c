"""Few calls of masked symbols: a student says in one call what its teacher says in several.

    z_0 = z,  z_k = z_{k-1} with some masks revealed from the teacher's p(x_i | z_{k-1}),  p~_i = p(x_i | z_{k(i)-1})
    loss = mean over masks i of KL(p~_i || p_student(x_i | z)),  k(i) the teacher's call that reveals x_i

Each p~ is a draw, and the best student is its mean: the marginals of what the teacher samples from z in so many calls.
A teacher whose answers are those of one law has these marginals already, and the loss is then the information
I(x_i; what is revealed before it | z) and no less: there is nothing to distil but the errors by which its first calls
differ from its later ones.

What a student of independent symbols cannot learn is how those of one call depend on each other. Its samples of one
call from z are a product of marginals, whose KL from the teacher's law is at least sum_i H(x_i | z) - H(x | z), the
total correlation: 0 for products alone. Dependent symbols need several calls, whatever the student.
Source: Deschenaux and Gulcehre 2024 (2410.21035), Alg. 1; the reverse divergence, which prefers probable symbols to
the marginals, is left out.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from sfumato import noise
from sfumato.errors import SfumatoError, whole
from sfumato.noise import Noise
from sfumato.objectives.counts import counted, masked, masked_logits, require_masks
from sfumato.objectives.taught import TaughtLoss, Teacher
from sfumato.registry import register

_LEAST = -1e3  # in the place of log 0, which no target counts


@torch.no_grad()
def revealed(teacher: Any, z: Tensor, window: Tensor, steps: int, source: Noise, **cond: Any) -> Tensor:
    """log p~ of the masks of z (B, *shape), (m, K): those of the teacher's call at which each is revealed.

    window: how many masks are revealed in `steps` calls, in an order and by draws of the source, int64 (B,); the others
    have what the last call says of them.
    """
    process, at, shape = teacher.process, z == teacher.process.mask, tuple(z.shape[1:])
    keys = source.fold("order").uniform(shape, z.device).where(at, torch.inf)
    place = noise.ranks(keys.flatten(1)).reshape(z.shape)
    call = (place * steps // window.to(z.device).reshape(-1, *[1] * len(shape))).clamp_max(steps - 1)
    draws = source.normal(shape, z.device)
    found: Any = None
    for k in range(steps):
        now = at & (call == k)
        if not bool(now.any()):
            continue
        t = process.time((z == process.mask).flatten(1).double().mean(1))
        log_p = _log_prob(teacher, z, t, now, **cond).clamp_min(_LEAST)
        found = log_p.new_empty(int(at.sum()), log_p.shape[-1]) if found is None else found
        found[now[at]] = log_p
        z = z.masked_scatter(now, process.draw(log_p.exp(), draws[now]))
    return found


def _log_prob(model: Any, z: Tensor, t: Tensor, at: Tensor, **cond: Any) -> Tensor:
    """log p(x_i | z) of the masks `at`, (m, K), at least float32."""
    said = masked_logits(model, z, t, at, **cond)
    return said.to(torch.promote_types(said.dtype, torch.float32)).log_softmax(-1)


@register("loss", "sdtt")
@final
class ThroughTime(TaughtLoss):
    """The divergence in nats per mask of a student from its teacher's `steps` calls, for models of `process="masked"`.

    Masks are counted as in the bound (`CountedMasks`). calls: the numbers of calls that the student is for, of which
    each sample has one: the teacher reveals in `steps` calls what the student would in one, 1 / calls of the symbols.
    """

    by_noise = True

    def __init__(
        self, teacher: Teacher | None = None, steps: int = 2, calls: tuple[int, ...] = (1, 2, 4), seed: int = 0
    ) -> None:
        super().__init__(teacher, calls, seed)
        self.steps = whole("steps", steps, least=2)

    def losses(self, model: Any, batch: Any) -> Tensor:
        process, x = model.process, model.process.data(batch.x)
        source = Noise(self.seed, batch.index, noise.TRAIN_NOISE)
        n = counted(batch.u, x)
        z, t = masked(process, x, n, source.uniform(tuple(x.shape[1:]), x.device))
        at = z == process.mask
        window = self._window(n, x, source)
        target = revealed(self.beside(z), z, window, self.steps, source.fold("teacher"), **batch.cond)
        log_p = _log_prob(model, z, t, at, **batch.cond)
        each = kl_div(log_p, target.to(log_p), reduction="none", log_target=True).sum(-1)
        sums = each.new_zeros(len(x)).index_add(0, at.nonzero()[:, 0], each)
        return sums / n.to(sums)

    def _window(self, n: Tensor, x: Tensor, source: Noise) -> Tensor:
        """How many of n masks the student reveals in one of its calls, int64 (B,)."""
        chosen = (source.fold("calls").uniform(dtype=torch.float64).cpu() * len(self.calls)).long()
        most = torch.tensor([-(-x[0].numel() // count) for count in self.calls])[chosen]
        return torch.minimum(n.cpu(), most)

    def suits(self, model: Any) -> None:
        require_masks(model)
        if self.teacher is None:
            raise SfumatoError("A student's calls are compared with a teacher's, and there is none: pass teacher=.")
        require_masks(self.teacher)
        if self.teacher.process.states != model.process.states:
            raise SfumatoError(
                f"The teacher has {self.teacher.process.states} symbols and the student {model.process.states}: take a "
                "student that starts at the teacher."
            )
        super().suits(model)
