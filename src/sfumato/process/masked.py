"""The masking process: each symbol is kept with probability alpha_t, or else replaced by a mask, the symbol K.

    q(z_t | x)    = alpha_t 1[z = x] + (1 - alpha_t) 1[z = mask],   the prior is all masks
    reverse       a mask becomes x ~ p(x_i | z) with probability (alpha_s - alpha_t) / (1 - alpha_t); others stay
    rate          = alpha sum over masks of -log p(x_i | z)   in nats per unit of the level

Hence -log p(x) <= int alpha E[sum over masks -log p(x_i | z)] dlevel = int -alpha' / (1 - alpha) E[..] dt.
Sources: Austin et al. 2021 (2107.03006), absorbing; Sahoo et al. 2024 (2406.07524), Eq. 10; Shi et al. 2024
(2406.04329), Eq. 5.
"""

from __future__ import annotations

import dataclasses
from typing import final

import torch
from torch import Tensor

from sfumato.belief import Logits, broadcast
from sfumato.errors import SfumatoError
from sfumato.process.symbols import Symbols
from sfumato.registry import register

_LEFT = 1e-3  # largest alpha(1) of a schedule, which is then treated as 0


@register("process", "masked")
@final
@dataclasses.dataclass(frozen=True)
class Masked(Symbols):
    """Symbols 0 .. states - 1, kept with probability alpha(t) of the schedule, or else masked: z = states."""

    def __post_init__(self) -> None:
        super().__post_init__()
        left = float(self.schedule.alpha(1.0))
        if left > _LEFT:
            raise SfumatoError(
                f"{type(self.schedule).__name__} keeps {left:.3g} of the symbols at t = 1, where a masking process "
                "must mask all: use a schedule that ends at alpha = 0, such as Flow or Cosine."
            )

    @property
    def size(self) -> int:
        return self.states + 1

    @property
    def mask(self) -> int:
        """The mask symbol."""
        return self.states

    @property
    def law(self) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self.states), self.size).double()

    def _kept(self, t: Tensor) -> Tensor:
        return torch.where(t == 1, 0.0, super()._kept(t))

    def replaced(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.mask, dtype=torch.int64)

    def rate(self, belief: Logits, x: Tensor) -> Tensor:
        masked = belief.z == self.mask
        nats = -belief.log_prob.gather(-1, x[..., None])[..., 0]
        keep = broadcast(self.keep(belief.t), nats)
        return keep * torch.where(masked, nats, 0.0)
