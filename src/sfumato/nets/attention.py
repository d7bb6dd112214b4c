"""Attention over all tokens, or over those that a mask leaves, with the faster kernel for the device."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# On a CPU the backward pass of the fused kernel is two to four times slower than plain matrix products (torch 2.13,
# bfloat16, 49 to 512 tokens). Beyond this many tokens the attention matrix that plain products store is too large.
FEW = 512


class Tokens(NamedTuple):
    """Context to attend to: `values` (B, L, width), and `known`, bool (B, L), which of them are; at least one a row."""

    values: Tensor
    known: Tensor

    def behind(self, count: int) -> Tensor:
        """The mask, bool (B, count + L), of these tokens behind `count` others that are all attended to."""
        return F.pad(self.known, (count, 0), value=True)


def split(x: Tensor, parts: int, heads: int) -> Tensor:
    """(B, N, parts heads d) -> (parts, B, heads, N, d): queries, keys and values of each head."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4)


def mix(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in each head (Vaswani et al. 2017): q (B, heads, N, d), k, v (B, heads, M, d) ->
    (B, N, heads d).

    mask: bool (B, M), the keys that are attended to, at least one in each row; None for all.
    """
    seen = None if mask is None else mask[:, None, None]
    if q.device.type == "cpu" and q.shape[2] <= FEW:
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        scores = scores if seen is None else scores.masked_fill(~seen, -torch.inf)
        mixed = scores.softmax(dim=-1).to(v.dtype) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, seen)
    return mixed.transpose(1, 2).flatten(2)


def attend(qkv: Tensor, heads: int, extra: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """`mix` of the queries, keys and values of N tokens, (B, N, 3 C) -> (B, N, C), with C = heads d.

    extra: keys and values (B, L, 2 C) of tokens that have no queries. mask: bool, of the N tokens and then of these.
    """
    q, k, v = split(qkv, 3, heads)
    if extra is not None:
        extra_kv = split(extra.to(k.dtype), 2, heads)
        k, v = torch.cat([k, extra_kv[0]], dim=2), torch.cat([v, extra_kv[1]], dim=2)
    return mix(q, k, v, mask)


class CrossAttention(nn.Module):
    """h <- h + W softmax(q k^T / sqrt(d)) v, q of LN(h) (B, N, width), k and v of the context; W = 0 initially."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width, elementwise_affine=False)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.context = nn.Linear(context, 2 * width)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, tokens: Tokens) -> Tensor:
        (q,), (k, v) = split(self.query(self.norm(h)), 1, self.heads), split(self.context(tokens.values), 2, self.heads)
        return h + self.out(mix(q, k, v, tokens.known))
