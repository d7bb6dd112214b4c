"""Affine couplings: an invertible network of vectors, whose determinant is a product."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SfumatoError
from ..registry import register
from .conditions import arguments, described, refuse
from .mlp import MLP

_MOST = 3.0  # |log scale| of one coupling, so that no layer explodes


@register("network", "Couplings")
class Couplings(nn.Module):
    """net(x) -> (z, log|det dz/dx|), net.inverse(z) -> x: z_b = x_b e^{s(x_a)} + m(x_a), x_a as it is, in turn.

    x and z (B, dim), the determinant (B,). Layers in pairs keep one half a of the numbers and then the other, by a
    fixed random order of each pair; s and m are an MLP of the half and the label, and s = 3 tanh(s / 3). All layers are
    the identity at first.
    Args: `dim` D, at least 2; `layers`; `width` and `depth` of each MLP; `classes`, 0 for none; `conditions`: only
    vector-valued ones. Source: Dinh et al. 2017 (1605.08803), Eq. 7 and 8.
    """

    def __init__(
        self, dim: int, layers: int = 8, width: int = 64, depth: int = 1, classes: int = 0,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if dim < 2 or layers < 2:
            raise SfumatoError(f"couplings need vectors of 2 numbers and 2 layers at least; got {dim} and {layers}")
        given = described(classes, conditions)
        for kind in ("tokens", "field", "missing"):
            refuse(given, kind, "a coupling flow takes labels, numbers and vectors")
        args = {"dim": dim, "layers": layers, "width": width, "depth": depth, **arguments(given)}
        self.config = {"name": "Couplings", "args": args}
        self.shape, self.given = (dim,), given
        self.orders: Tensor
        draw = torch.Generator(device="cpu").manual_seed(0)
        first = torch.arange(dim, device="cpu")
        drawn = [torch.randperm(dim, generator=draw, device="cpu") for _ in range(layers // 2)]
        orders = [order for each in [first, *drawn] for order in (each, each.flip(0))][:layers]
        self.register_buffer("orders", torch.stack(orders), persistent=False)
        self.kept = dim // 2
        own: dict[str, Any] = arguments(given)
        self.nets = nn.ModuleList(MLP(dim, width, depth, outputs=2, **own) for _ in range(layers))

    def _parts(self, k: int, x: Tensor, told: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """(where a number moves, (D,); s and m of layer k, (B, D)), from the half that is kept."""
        moves = torch.zeros_like(x[0])
        moves[self.orders[k][self.kept :]] = 1.0
        s, m = self.nets[k](x * (1 - moves), x.new_zeros(len(x)), **told).chunk(2, 1)
        return moves, moves * _MOST * torch.tanh(s / _MOST), moves * m

    def forward(
        self, x: Tensor, /, label: Tensor | None = None, present: Mapping[str, Tensor] | None = None, **cond: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(z, log|det dz/dx|)."""
        told = {"label": label, "present": present, **cond}
        total = x.new_zeros(len(x))
        for k in range(len(self.nets)):
            moves, s, m = self._parts(k, x, told)
            x, total = (1 - moves) * x + moves * (x * s.exp() + m), total + s.sum(1)
        return x, total

    def inverse(
        self, z: Tensor, /, label: Tensor | None = None, present: Mapping[str, Tensor] | None = None, **cond: Tensor
    ) -> Tensor:
        """x with net(x) = z."""
        told = {"label": label, "present": present, **cond}
        for k in reversed(range(len(self.nets))):
            moves, s, m = self._parts(k, z, told)
            z = (1 - moves) * z + moves * (z - m) * (-s).exp()
        return z
