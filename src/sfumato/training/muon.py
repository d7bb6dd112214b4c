"""Muon for the matrices of a network, AdamW for all else, as one optimiser.

    m <- mu m + (1 - mu) g,   u = (1 - mu) g + mu m (Nesterov),   W <- W - lr * scale * msign(u)

msign(u) = U V^T of u = U S V^T: every direction of the update has length one, however unevenly the gradient fills
them, where AdamW's per-element scaling leaves a few directions with nearly all of it (`orthogonal`). A
convolution's kernel is the matrix (outputs, inputs x taps). Source: Jordan et al. 2024, "Muon"; the scale, which gives
the update AdamW's root mean square so that both share a learning rate, is Liu et al. 2025 (2502.16982), Eq. 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from sfumato.training.orthogonal import shared
from sfumato.world import ALONE, World, local


def _matrix(p: Tensor) -> Tensor:
    """A kernel as (outputs, taps x inputs): a view where channels are last in memory. To msign any order of columns is
    the same."""
    return p.movedim(1, -1).flatten(1) if p.ndim > 2 else p


def _kernel(matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_matrix`, a view."""
    return matrix.unflatten(1, (*like.shape[2:], like.shape[1])).movedim(-1, 1) if like.ndim > 2 else matrix


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


class Muon(torch.optim.Optimizer):
    """One learning rate for both kinds. `matrices` get Muon, `others` AdamW. dtype: what msign is computed in.

    Weight decay is decoupled and applies to both. world: the processes that take the same step and share its products
    (`orthogonal`); parameters may be shards, of which each process updates its own.
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
        world: World = ALONE,
    ) -> None:
        self.dtype = dtype
        groups = [{"params": list(matrices), "muon": True}, {"params": list(others), "muon": False}]
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([g for g in groups if g["params"]], defaults)
        self.world = world

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["muon"] else self._adamw)(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        mu, lr = group["momentum"], group["lr"]
        shapes = [(p.shape[0], p.shape[1:].numel()) for p in parameters]
        for p in parameters:
            local(self.state[p].setdefault("mean", torch.zeros_like(p))).lerp_(local(_gradient(p)), 1 - mu)

        def update(i: int) -> Tensor:
            p = parameters[i]
            return _matrix(local(_gradient(p)).lerp(local(self.state[p]["mean"]), mu))

        sharded = any(local(p) is not p for p in parameters)
        found = shared(update, shapes, sharded, self.world, self.dtype)
        for p, shape, direction in zip(parameters, shapes, found, strict=True):
            own = local(p)
            own.mul_(1 - lr * group["weight_decay"])
            own.add_(_kernel(direction, own), alpha=-lr * 0.2 * max(shape) ** 0.5)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p),
                }  # fmt: skip
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            [local(p) for p in parameters], [local(_gradient(p)) for p in parameters],
            [local(s["exp_avg"]) for s in states], [local(s["exp_avg_sq"]) for s in states], [],
            [s["step"] for s in states], fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=1e-8, maximize=False,
        )  # fmt: skip


# Parts whose kernels are no map between hidden states: AdamW's.
OUTER = frozenset({"input", "output", "conditioning", "context", "modulation", "positions"})


def split(named: Iterable[tuple[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices and kernels between hidden states; and the rest: first and last layers, conditioning, norms, biases."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, p in named:
        (others if p.ndim < 2 or OUTER & set(name.split(".")) else matrices).append(p)
    return matrices, others
