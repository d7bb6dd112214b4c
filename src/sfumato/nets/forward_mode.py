"""Forward differentiation of networks: parts without a forward derivative in torch take a composite form."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_on: ContextVar[bool] = ContextVar("differentiating_forward", default=False)


@contextmanager
def forward_mode() -> Iterator[None]:
    """Within the block networks can be differentiated by `torch.func.jvp`: plain attention, composite group norms."""
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)


def differentiating_forward() -> bool:
    """Whether the call is inside `forward_mode`; compiled code, which cannot be differentiated forward, never is."""
    return not torch.compiler.is_compiling() and _on.get()


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, as a mean and a variance inside `forward_mode`: (B, C, ...) -> the same shape.

    torch's own kernel has no forward derivative for channels-last memory (torch 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not differentiating_forward():
            return super().forward(x)
        groups = x.unflatten(1, (self.num_groups, -1))
        var, mean = torch.var_mean(groups, dim=tuple(range(2, groups.ndim)), keepdim=True, correction=0)
        y = ((groups - mean) * torch.rsqrt(var + self.eps)).reshape(x.shape)
        column = (-1, *[1] * (x.ndim - 2))
        return y * self.weight.reshape(column) + self.bias.reshape(column)
