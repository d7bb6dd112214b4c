"""One optimiser: Muon for the matrices of a network, AdamW for everything else.

    m <- mu m + (1 - mu) g,   u = (1 - mu) g + mu m (Nesterov),   W <- W - lr * scale * msign(u)

msign(u) = U V^T of u = U S V^T gives every direction of the update length one, however uneven the gradient, where
AdamW's per-element scaling leaves nearly all of it in a few directions. A convolution kernel is treated as the matrix
(outputs, inputs x taps). Source: Jordan et al. 2024, "Muon", including the Newton-Schulz steps that bring all singular
values near 1, X <- a X + (b X X^T + c (X X^T)^2) X. The scale gives the update the root mean square of AdamW's, so that
both share a learning rate: Liu et al. 2025 (2502.16982), Eq. 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from sfumato.distributed import full, local, shard

# The quintic of Jordan et al.: steepest at zero, its fixed band about one is [0.68, 1.13].
QUINTIC = (3.4445, -4.7750, 2.0315)


def msign(u: Tensor, steps: int = 4, dtype: torch.dtype | None = None) -> Tensor:
    """(B, m, n) -> nearly orthogonal (B, m, n), computed in `dtype`: singular values near 1, singular vectors kept.

    Each step multiplies X from the left by the polynomial P = a + b A + c A^2 of A = X X^T, and these all commute. The
    steps of a wide X therefore run on the small square matrix (A <- P A P, Q <- P Q), and X is multiplied once,
    X <- Q X. In bfloat16 A is recomputed after every second step, since rounding would swamp the squares of small
    singular values. For an X that is nearly square the plain steps take a fifth fewer products.
    """
    wide = u.shape[-2] <= u.shape[-1]
    x = u if wide else u.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype or u.dtype)
    if 2 * x.shape[-1] < 3 * x.shape[-2]:
        a, b, c = QUINTIC
        for _ in range(steps):
            square = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
        return x if wide else x.mT
    at_once = 2 if x.dtype == torch.bfloat16 else steps
    for begun in range(0, steps, at_once):
        x = _polynomials(x @ x.mT, min(at_once, steps - begun)) @ x
    return x if wide else x.mT


def _polynomials(square: Tensor, steps: int) -> Tensor:
    """Q after `steps` steps of the iteration, from A = X X^T."""
    a, b, c = QUINTIC
    eye = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    product = eye
    for step in range(steps):
        p = torch.baddbmm(square, square, square, beta=b, alpha=c) + a * eye
        product = p @ product if step else p
        if step + 1 < steps:
            square = p @ square @ p
    return product


def _matrix(p: Tensor) -> Tensor:
    """A kernel as (outputs, taps x inputs), a view if channels are last in memory. The order of columns does not matter
    to msign."""
    return p.movedim(1, -1).flatten(1) if p.ndim > 2 else p


def _kernel(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_matrix`, a view."""
    return matrix.unflatten(1, (*like.shape[2:], like.shape[1])).movedim(-1, 1) if like.ndim > 2 else matrix


class Muon(torch.optim.Optimizer):
    """Muon for `matrices` and AdamW for `others`, with one learning rate, and for `scales`, with QUICK times as much.
    dtype: the precision of msign.

    Weight decay is decoupled and applies to both. Parameters may be shards: each process updates its own, but gathers
    whole matrices, shape by shape, to compute their update directions.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        lr: float = 4e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.9,
        weight_decay: float = 0.01,
        dtype: torch.dtype | None = None,
        scales: Iterable[Tensor] = (),
    ) -> None:
        self.dtype = dtype
        groups = [
            {"params": list(matrices), "muon": True},
            {"params": list(others), "muon": False},
            {"params": list(scales), "muon": False, "rate": QUICK, "lr": QUICK * lr},
        ]
        defaults = {"lr": lr, "rate": 1.0, "betas": betas, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([g for g in groups if g["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["muon"] else self._adamw)(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[Tensor]] = {}
        for p in parameters:
            alike.setdefault((p.shape[0], p.shape[1:].numel()), []).append(p)
        for shape, members in alike.items():
            updates = torch.stack([_matrix(full(self._update(p, group["momentum"]))) for p in members])
            for p, direction in zip(members, msign(updates, dtype=self.dtype), strict=True):
                own = local(p)
                own.mul_(1 - group["lr"] * group["weight_decay"])
                own.add_(shard(_kernel(direction, p), p), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)

    def _update(self, p: Any, momentum: float) -> Tensor:
        """Update the momentum and return u; for a shard, the shard of u."""
        if not self.state[p]:
            self.state[p]["mean"] = torch.zeros_like(p)
        mean, update = local(self.state[p]["mean"]), p.grad.clone()
        mean.lerp_(local(update), 1 - momentum)
        local(update).lerp_(mean, momentum)
        return update

    def _adamw(self, parameters: list[Any], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p),
                }  # fmt: skip
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            [local(p) for p in parameters], [local(p.grad) for p in parameters],
            [local(s["exp_avg"]) for s in states], [local(s["exp_avg_sq"]) for s in states], [],
            [s["step"] for s in states], fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=1e-8, maximize=False,
        )  # fmt: skip


# Parts whose weights do not map hidden states to hidden states; AdamW updates them.
OUTER = frozenset({
    "input", "codebook", "local", "output", "last", "conditioning", "context", "modulation", "positions", "registers",
    "latents", "neighbours",
})  # fmt: skip

# Logarithms of scales, such as the variance of a decoder: their way is several times that of a weight.
SCALES, QUICK = frozenset({"log_variance"}), 10.0


def split(named: Iterable[tuple[str, Tensor]]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """(matrices and kernels between hidden states; first and last layers, conditioning, norms, biases; scales)."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    scales: list[Tensor] = []
    for name, p in named:
        words = set(name.split("."))
        (scales if SCALES & words else others if p.ndim < 2 or OUTER & words else matrices).append(p)
    return matrices, others, scales
