"""Attention over all tokens, with the faster kernel for the device."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .forward_mode import differentiating_forward

# On a CPU the backward pass of the fused kernel is two to four times slower than plain matrix products (torch 2.13,
# bfloat16, 49 to 512 tokens). Beyond this many tokens the attention matrix that plain products store is too large.
FEW = 512


def attend(qkv: Tensor, heads: int, extra: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in each head (Vaswani et al. 2017): (B, N, 3 C) -> (B, N, C), with C = heads d.

    extra: keys and values (B, L, 2 C) of extra_kv tokens, which are attended to but have no queries.
    """
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if extra is not None:
        extra_kv = extra.to(k.dtype).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = torch.cat([k, extra_kv[0]], dim=2), torch.cat([v, extra_kv[1]], dim=2)
    if differentiating_forward() or (qkv.device.type == "cpu" and qkv.shape[1] <= FEW):
        mixed = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(dim=-1).to(v.dtype) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).flatten(2)
