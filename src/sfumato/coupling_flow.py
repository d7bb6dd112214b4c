"""A discrete normalising flow, beside which the continuous ones stand: one invertible network from data to noise.

log p(x) = log N(z; 0, I) + log|det dz/dx|,   z = net(x)        exact, in one call; a sample is net.inverse(eps)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.conditions import network_inputs, resolve
from sfumato.errors import SfumatoError, whole
from sfumato.machine import default_cpu
from sfumato.registry import register
from sfumato.state import numbered


@register("model", "CouplingFlow")
class CouplingFlow(nn.Module):
    """model.log_prob(x) -> nats (B,) of normalised vectors x (B, D); sf.sample(model, n) -> (n, D) in user units.

    net: a `nets.Couplings`, or any module with net(x) -> (z, log|det|) and net.inverse(z). spec: the data spec.
    Sources: Dinh et al. 2017 (1605.08803); for comparison with `loss="maximum-likelihood"` and the denoising losses.
    """

    def __init__(self, net: nn.Module, spec: Any = None) -> None:
        super().__init__()
        if not callable(getattr(net, "inverse", None)):
            raise SfumatoError("A coupling flow needs an invertible network: nets.Couplings(dim).")
        self.net: Any = net
        self.spec = spec
        self.compute_dtype: torch.dtype | None = None
        self.provenance: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, (D,)."""
        return tuple(self.net.shape)

    def forward(self, x: Tensor, **cond: Any) -> Tensor:
        """log p(x) of normalised x, (B,)."""
        return self.log_prob(x, **cond)

    def log_prob(self, x: Tensor, **cond: Any) -> Tensor:
        """log p(x) of normalised x (B, D), in nats, (B,)."""
        weight = next(self.net.parameters())
        z, change = self.net(x.to(weight), **network_inputs(cond, self.net))
        return change - 0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))

    @default_cpu()
    @torch.no_grad()
    def sample(
        self,
        n: int = 1,
        seed: int = 0,
        index: Sequence[int] | Tensor | None = None,
        normalised: bool = False,
        **cond: Any,
    ) -> Tensor:
        """n samples (n, D) in user units; sample i of a seed depends on both alone. Arguments as in `sf.sample`."""
        index = torch.arange(whole("n", n)) if index is None else numbered(index, of="numbers of samples")
        given = resolve(self, cond, len(index)).to(self.device)
        eps = noise.normal(seed, index, self.shape, noise.PRIOR, 0, self.device, torch.float32)
        x = self.net.inverse(eps.to(next(self.net.parameters())), **network_inputs(given, self.net)).cpu()
        return x if self.spec is None or normalised else self.spec.denormalise(x)
