"""The autoregressive model of symbols, beside which diffusion models of text stand: one symbol after another.

log p(x) = sum_i log p(x_i | x_1 .. x_{i-1})        exact, in one call of a causal network
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import noise
from sfumato.belief import tempered
from sfumato.conditions import network_inputs
from sfumato.errors import SfumatoError
from sfumato.model import running_in
from sfumato.normaliser import Normaliser
from sfumato.registry import register


@register("model", "Autoregressive")
class Autoregressive(nn.Module):
    """model.log_prob(x) -> nats (B,), model.extended(x, length) -> x with drawn symbols behind; x int64 (B, 1, L).

    net: a `nets.Transformer` with mask="causal", whose output i hears the symbols before i alone. spec: the data spec.
    Raises SfumatoError for another network.
    """

    def __init__(self, net: nn.Module, spec: Any = None) -> None:
        super().__init__()
        if getattr(net, "mask", None) != "causal":
            raise SfumatoError(
                "An autoregressive model needs a network that hears what came before alone: "
                "nets.Transformer(shape, mask='causal')."
            )
        self.net: Any = net
        self.spec = None if spec is None else dataclasses.replace(spec, normaliser=Normaliser((0.0,), (1.0,)))
        self.compute_dtype: torch.dtype | None = None
        self.provenance: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, (1, L)."""
        return (1, self.net.shape[1])

    def logits(self, x: Tensor, **cond: Any) -> Tensor:
        """log p(x_i | x_1 .. x_{i-1}) up to a constant, (B, 1, L, K)."""
        x, low = x.to(self.device), self.compute_dtype
        level, values = torch.zeros(len(x), device=x.device), network_inputs(cond, self.net)
        with running_in(low, x.device):
            return self.net(x, level, **values).float()

    def log_prob(self, x: Tensor, **cond: Any) -> Tensor:
        """log p(x) of symbols x (B, 1, L), in nats, (B,)."""
        x = x.to(self.device).round().long()
        nats = self.logits(x, **cond).log_softmax(-1).gather(-1, x[..., None])[..., 0]
        return nats.flatten(1).sum(1)

    @torch.no_grad()
    def extended(
        self, x: Tensor, length: int, seed: int, index: Tensor, temperature: float = 1.0, top_p: float = 1.0,
        **cond: Any,
    ) -> Tensor:  # fmt: skip
        """x (B, 1, n) with further symbols up to `length`, at most L; each depends on (seed, number of the sample).

        temperature, top_p: of the distribution that symbols are drawn from (`belief.tempered`). Each symbol is one call
        for one position, since the network keeps what it has read.
        """
        x = unread = x.to(self.device)
        level, values = torch.zeros(len(x), device=self.device), network_inputs(cond, self.net)
        memory = self.net.memory()
        for place in range(x.shape[2], length):
            with running_in(self.compute_dtype, self.device):
                logits = self.net.following(unread, level, memory, **values)
            law = tempered(logits.double(), temperature, top_p).exp().cumsum(-1)
            u = noise.uniform(seed, index, (1,), noise.STEP, place, dtype=torch.float64).to(law) * law[:, -1:]
            unread = (u >= law).sum(-1)[:, None, None].clamp_max(law.shape[-1] - 1)
            x = torch.cat([x, unread], dim=2)
        return x

    def forward(self, x: Tensor, **cond: Any) -> Tensor:
        """The logits of each symbol given those before it."""
        return self.logits(x, **cond)
