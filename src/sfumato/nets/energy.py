"""A network whose output is the gradient of a scalar: conservative by construction, where a free one is not.

    y(x) = grad_x E(x),   E = <x, f(x)> = sum_i x_i f_i(x),   y = f + (df/dx)^T x

dy/dx is the Hessian of E, so that it is symmetric, and every line integral of y is a difference of E. A score that is a
linear map of (y, z) is then the gradient of a log-density: any target of a denoiser (`sfumato.energy` reads it).
f is any network of this package, with the same conditions. The inner product keeps what a denoiser needs: f = 0 gives
y = 0, with a gradient for the weights of f; and a linear f gives a linear y, so that far from the data, where E is
quadratic, f need not be.
Sources: Salimans and Ho 2021, "Should EBMs model the energy or the score?"; Du et al. 2023 (2302.11552), Sect. 5, for
the inner product.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import SfumatoError
from ..registry import register
from ..trees import tree


@register("network", "Energy")
class Energy(nn.Module):
    """net(x, noise_level, label) -> grad_x <x, f(x, noise_level, label)>, x and y (B, *shape).

    Args: `net`, the network f, one of this room with `outputs=1`. It costs twice the products of f, in training and in
    sampling, and the memory of a backward pass: it switches autograd on by itself, in no_grad and inference_mode too.
    Raises SfumatoError for a network of more outputs.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if getattr(net, "outputs", 1) != 1:
            raise SfumatoError("An energy is made of a network with one output a value: build it with outputs=1.")
        self.net, self.outputs = net, 1
        with suppress(SfumatoError):  # of a network that no file could describe, nor could this one be
            self.config = {"name": "Energy", "args": {"net": tree(net)}}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.net.shape  # type: ignore[return-value]

    def energy(self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None, **cond: Any) -> Tensor:
        """E = <x, f(x)>, (B,), in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        f = self.net(x, noise_level, label, **cond)
        return (x.to(wide) * f.to(wide)).flatten(1).sum(1)

    def forward(
        self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        training = torch.is_grad_enabled()
        # the fused kernels of attention have no second derivative, which training takes
        kernels = sdpa_kernel(SDPBackend.MATH) if training else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), kernels:
            own = x if training and x.requires_grad else x.detach().clone().requires_grad_()
            values: dict[str, Any] = {name: _outside(value) for name, value in cond.items()}
            if present is not None:
                values["present"] = {name: _outside(value) for name, value in present.items()}
            label = None if label is None else _outside(label)
            total = self.energy(own, _outside(noise_level), label, **values).sum()
            (y,) = torch.autograd.grad(total, own, create_graph=training)
        return y


def _outside(value: Tensor) -> Tensor:
    """A tensor that autograd takes, also of one that was made in inference mode."""
    return value.clone() if value.is_inference() else value
