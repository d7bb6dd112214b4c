"""Blocks of transformers: plain, modulated by a vector, and of two streams with weights of their own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import CrossAttention, Tokens, attend, mix, split
from .rotary import rotated

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class HeadNorm(nn.Module):
    """g x / rms(x) over the last axis, the width of a head; g learned, 1 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=1e-6) * self.weight.to(x.dtype)


class MLPBlock(nn.Module):
    """h <- h + W2 gelu(W1 LN(h)), h (B, N, width)."""

    def __init__(self, width: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.norm, inner = nn.LayerNorm(width), int(ratio * width)
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(self.dropout(F.gelu(self.first(self.norm(h)))))


class PlainBlock(nn.Module):
    """h <- h + W softmax(q k^T / sqrt(d)) v of LN(h), then an `MLPBlock` (Vaswani et al. 2017, norms first)."""

    def __init__(self, width: int, heads: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.norm, self.mlp = heads, nn.LayerNorm(width), MLPBlock(width, ratio, dropout)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: bool (B, N), the tokens that are attended to; None for all."""
        h = h + self.out(attend(self.qkv(self.norm(h)), self.heads, mask=mask))
        return self.mlp(h)


class TransformerBlock(nn.Module):
    """h <- h + g1 Attn((1 + s1) N(h) + b1), h <- h + Cross(h) with a context, h <- h + g2 MLP((1 + s2) N(h) + b2).

    Gates g, scales s and shifts b are linear in the conditioning vector and 0 at initialisation (Peebles and Xie 2023).
    norm: N is LayerNorm, "layer", or x / rms(x), "rms" (Zhang and Sennrich 2019). qk_norm: queries and keys are divided
    by their root mean square in each head, times a learned factor, so that |q k| <= d max|factors| (Dehghani et al.
    2023, 2302.05442). context: the width of the tokens of `Cross`, 0 for none.
    """

    def __init__(
        self, width: int, heads: int, embed_dim: int, ratio: float, dropout: float, norm: str = "layer",
        qk_norm: bool = False, context: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, inner = heads, int(ratio * width)
        self.norm = NORMS[norm](width, elementwise_affine=False, eps=1e-5)
        self.modulation = nn.Linear(embed_dim, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        self.queries, self.keys = (HeadNorm(width // heads) if qk_norm else nn.Identity() for _ in range(2))
        self.cross = CrossAttention(width, heads, context) if context else None
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, h: Tensor, vector: Tensor, mask: Tensor | None = None, turn: Tensor | None = None,
        tokens: Tokens | None = None,
    ) -> Tensor:  # fmt: skip
        """h (B, N, width). mask: bool (B, N), the tokens that are attended to, None for all; turn: their rotary
        positions (2, N, width / heads / 2); tokens: the context of `Cross`."""
        modulation = self.modulated(vector)
        q, k, v = self.read(h, modulation, turn)
        return self.write(h, modulation, mix(q, k, v, mask), tokens)

    def modulated(self, vector: Tensor) -> tuple[Tensor, ...]:
        """(s1, b1, g1, s2, b2, g2), each (B, 1, width)."""
        return self.modulation(vector)[:, None].chunk(6, dim=2)

    def read(self, h: Tensor, modulation: tuple[Tensor, ...], turn: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, N, d)."""
        scale, shift, *_ = modulation
        q, k, v = split(self.qkv(torch.addcmul(shift, self.norm(h).to(shift.dtype), 1 + scale)), 3, self.heads)
        q, k = self.queries(q), self.keys(k)
        return (q, k, v) if turn is None else (rotated(q, turn), rotated(k, turn), v)

    def write(
        self, h: Tensor, modulation: tuple[Tensor, ...], mixed: Tensor, tokens: Tokens | None = None
    ) -> Tensor:  # fmt: skip
        """h after attention, whose values are `mixed` (B, N, width), and the MLP."""
        _, _, gate1, scale2, shift2, gate2 = modulation
        h = h + gate1 * self.out(mixed)
        if self.cross is not None and tokens is not None:
            h = self.cross(h, *tokens)
        y = torch.addcmul(shift2, self.norm(h).to(shift2.dtype), 1 + scale2)
        return h + gate2 * self.second(self.dropout(F.gelu(self.first(y))))


class JointBlock(nn.Module):
    """Two `TransformerBlock`s, of the patches and of all other tokens, that share one attention over both.

    Source: Esser et al. 2024, MM-DiT (2403.03206), Fig. 2b.
    """

    def __init__(self, patches: TransformerBlock, others: TransformerBlock) -> None:
        super().__init__()
        self.patches, self.others = patches, others

    def forward(
        self, h: Tensor, vector: Tensor, mask: Tensor | None, turn: Tensor | None, count: int
    ) -> Tensor:  # fmt: skip
        """h (B, N, width), the first `count` of which are patches; otherwise as a `TransformerBlock`."""
        patches, others = h[:, :count], h[:, count:]
        m, n = self.patches.modulated(vector), self.others.modulated(vector)
        own = self.patches.read(patches, m, None if turn is None else turn[:, :count])
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(own, self.others.read(others, n, None), strict=True))
        mixed = mix(q, k, v, mask)
        wrote = self.patches.write(patches, m, mixed[:, :count]), self.others.write(others, n, mixed[:, count:])
        return torch.cat(wrote, dim=1)
