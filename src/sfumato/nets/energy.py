"""A network whose output is the gradient of a scalar, so that it is conservative by construction.

    y(x) = grad_x E(x),   E = <x, f(x)> = sum_i x_i f_i(x),   y = f + (df/dx)^T x

dy/dx is the Hessian of E, hence symmetric, and every line integral of y is a difference of E. A score that is linear in
(y, z), as for every target of a denoiser, is then the gradient of a log-density (`sfumato.energy` computes it).
f is any network of this package, with the same conditions. The inner product suits a denoiser: f = 0 gives y = 0 with a
non-zero gradient for the weights of f; and a linear f gives a linear y, so that f stays linear far from the data, where
E is quadratic.
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

    Args: `net`, the network f, one of this package with `outputs=1`. Training and sampling cost twice the compute of f
    and the memory of a backward pass: autograd is enabled internally, even under no_grad and inference_mode.
    Raises SfumatoError for a network with more outputs.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        if getattr(net, "outputs", 1) != 1:
            raise SfumatoError("Energy needs a network with one output per element of x: build it with outputs=1.")
        self.net, self.outputs = net, 1
        with suppress(SfumatoError):  # a network without a config leaves this one without a config too
            self.config = {"name": "Energy", "args": {"net": tree(net)}}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.net.shape  # type: ignore[return-value]

    def energy(self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None, **cond: Any) -> Tensor:
        """E = <x, f(x)>, (B,), in at least float32."""
        wide = torch.promote_types(x.dtype, torch.float32)
        f = self.net(x, noise_level, label, **cond)
        return (x.to(wide) * f.to(wide)).flatten(1).sum(1)

    def forward(
        self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        training = torch.is_grad_enabled()
        # training needs second derivatives, which the fused attention kernels lack
        kernels = sdpa_kernel(SDPBackend.MATH) if training else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), kernels:
            leaf = x if training and x.requires_grad else x.detach().clone().requires_grad_()
            values: dict[str, Any] = {name: _outside(value) for name, value in cond.items()}
            if present is not None:
                values["present"] = {name: _outside(value) for name, value in present.items()}
            label = None if label is None else _outside(label)
            total = self.energy(leaf, _outside(noise_level), label, **values).sum()
            (y,) = torch.autograd.grad(total, leaf, create_graph=training)
        return y


def _outside(value: Tensor) -> Tensor:
    """The tensor, copied if it was made in inference mode, so that autograd accepts it."""
    return value.clone() if value.is_inference() else value
