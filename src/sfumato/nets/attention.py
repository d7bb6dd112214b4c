"""Attention over all tokens, by the kernel that is fastest where it runs."""

import torch
from torch import Tensor
from torch.nn import functional as F

# On a CPU the fused kernel's backward pass takes twice to four times as long as that of plain products (torch 2.13,
# bfloat16, 49 to 512 tokens). Beyond this many tokens the matrix of weights that the products keep is too large.
FEW = 512


def attend(qkv: Tensor, heads: int, beside: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in each head (Vaswani et al. 2017): (B, N, 3 C) -> (B, N, C), with C = heads d.

    beside: keys and values (B, L, 2 C) of what is attended to and does not attend itself.
    """
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if beside is not None:
        further = beside.to(k.dtype).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = torch.cat([k, further[0]], dim=2), torch.cat([v, further[1]], dim=2)
    if qkv.device.type == "cpu" and qkv.shape[1] <= FEW:
        mixed = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(dim=-1).to(v.dtype) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).flatten(2)
