"""A distribution of a few symbols as a table: every quantity of a symbol process by sums over all states.

    p_t(z)       = sum_x p(x) prod_i q(z_i | x_i)
    p(x | z)     = p(x) prod_i q(z_i | x_i) / p_t(z)
    p(z_s | z_t) = p_s(z_s) prod_i q(z_t,i | z_s,i) / p_t(z_t)

It uses only the kernels of the process, so it can test every other formula. Noisy states may contain symbols that the
data do not (a mask): S^d noisy states for K^d data states. Memory grows with their product.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from sfumato import noise
from sfumato.belief import Codes, Logits
from sfumato.errors import SfumatoError
from sfumato.process.embedded import Embedded
from sfumato.process.symbols import Symbols
from sfumato.schedule import Time

_MOST = 1 << 12  # most states: sums over all pairs take 128 MB


@final
class Table:
    """The distribution p(x) = probs[x_1, .., x_d] on {0, .., K-1}^d. probs: d axes of K, normalised to sum 1."""

    def __init__(self, probs: Tensor) -> None:
        probs = torch.as_tensor(probs, dtype=torch.float64)
        if probs.ndim < 1 or len(set(probs.shape)) != 1 or probs.shape[0] < 2:
            raise SfumatoError(f"A table needs d axes of the same length K >= 2, not the shape {tuple(probs.shape)}.")
        if not bool((probs >= 0).all() and probs.isfinite().all() and probs.sum() > 0):
            raise SfumatoError("The probabilities of a table must be finite, non-negative and not all zero.")
        if probs.numel() > _MOST:
            raise SfumatoError(f"A table of {probs.numel():,} states is too large for sums over all pairs.")
        self.dim, self.symbols = probs.ndim, probs.shape[0]
        self.probs = (probs / probs.sum()).flatten()

    @property
    def states(self) -> Tensor:
        """All N = K^d states, int64 (N, d), in the order of all axes of length N below."""
        return _all(self.symbols, self.dim)

    @property
    def entropy(self) -> float:
        """-sum_x p(x) log p(x), in nats."""
        return float(torch.special.entr(self.probs).sum())

    def place(self, x: Tensor, size: int | None = None) -> Tensor:
        """The index of each state x (B, d) in `states`, or in the states of `size` symbols, int64 (B,)."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise SfumatoError(f"A state of this table has {self.dim} symbols: x must be (B, {self.dim}).")
        return x.long() @ (size or self.symbols) ** torch.arange(self.dim - 1, -1, -1)

    def noisy(self, process: Symbols) -> Tensor:
        """All S^d states of z, int64, in the order of the axes below."""
        return _all(process.size, self.dim)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, float64 (B,)."""
        return self.probs[self.place(x)].log()

    def sample(self, n: int, seed: int = 0, first: int = 0) -> Tensor:
        """n states, int64 (n, d). Row i is a function of (seed, first + i) alone."""
        u = noise.uniform(seed, torch.arange(first, first + n), (), noise.DATA, dtype=torch.float64)
        place = torch.searchsorted(self.probs.cumsum(0), u, right=True).clamp_max(len(self.probs) - 1)
        return self.states[place]

    def kernel(self, process: Symbols, s: Time, t: Time) -> Tensor:
        """q(z_t | z_s) for all pairs, (S^d, S^d): rows z_s, columns z_t, as Kronecker products of S x S matrices.

        At s = 0 the rows are the data states only, (K^d, S^d).
        """
        if process.states != self.symbols:
            raise SfumatoError(f"The process has {process.states} symbols, but the table has {self.symbols}.")
        one = process.matrix(s, t)
        if float(torch.as_tensor(s)) == 0:
            one = one[: self.symbols]
        whole = one
        for _ in range(self.dim - 1):
            whole = torch.kron(whole, one)
        return whole

    def noised(self, process: Symbols, t: Time) -> Tensor:
        """p_t(z) of all states, (S^d,)."""
        return self.probs @ self.kernel(process, 0.0, t)

    def posterior(self, process: Symbols, t: Time) -> Tensor:
        """p(x | z) for all pairs, (S^d, K^d): rows z, columns x."""
        return self.reverse(process, 0.0, t)

    def reverse(self, process: Symbols, s: Time, t: Time) -> Tensor:
        """p(z_s | z_t) for all pairs: rows z_t, columns z_s. The row of an impossible z_t is zero."""
        first = self.probs if float(torch.as_tensor(s)) == 0 else self.noised(process, s)
        joint = (first[:, None] * self.kernel(process, s, t)).T
        return joint / joint.sum(1, keepdim=True).clamp_min(1e-300)

    def marginals(self, weights: Tensor) -> Tensor:
        """p(x_i = k) under distributions of states: (B, K^d) -> (B, d, K), or of noisy states (B, S^d) -> (B, d, S)."""
        size = round(weights.shape[1] ** (1 / self.dim))
        hot = torch.nn.functional.one_hot(_all(size, self.dim), size).double()
        return torch.einsum("bn,nik->bik", weights, hot)

    def dependence(self, process: Symbols, s: Time, t: Time) -> float:
        """E KL(p(z_s | z_t) || prod_i p(z_s,i | z_t)), nats: the loss of a reverse step with independent symbols."""
        reverse = self.reverse(process, s, t)
        alone = torch.special.entr(self.marginals(reverse)).sum((1, 2))
        return float(self.noised(process, t) @ (alone - torch.special.entr(reverse).sum(1)))

    def others(self, process: Symbols | Embedded, z: Tensor, t: Time) -> Tensor:
        """h_i(k) = p(x_i = k | z_j for j != i), (B, d, K), for a state z of the process, (B, d)
        or (B, d dim), and t a number or (B,); 0 if these z_j are impossible."""
        evidence, letters = process.evidence(z, t).exp(), "ijklmnopqrst"[: self.dim]
        probs, found = self.probs.reshape([self.symbols] * self.dim), []
        for i, own in enumerate(letters):
            rest = [(f"b{letter}", evidence[:, j]) for j, letter in enumerate(letters) if j != i]
            terms = ",".join([letters, "b", *(term for term, _ in rest)])
            ones = torch.ones(len(z), dtype=torch.float64)
            found.append(torch.einsum(f"{terms}->b{own}", probs, ones, *(each for _, each in rest)))
        h = torch.stack(found, 1)
        return h / h.sum(-1, keepdim=True).clamp_min(1e-300)

    def denoiser(self, process: Symbols | Embedded) -> TableDenoiser:
        """The exact model: the belief about x_i from all z, and from all z but its own."""
        return TableDenoiser(self, process)


def _all(size: int, dim: int) -> Tensor:
    """The size^dim states of dim symbols, int64, the last axis varying fastest."""
    return torch.cartesian_prod(*[torch.arange(size)] * dim).reshape(-1, dim)


def without(cond: dict[str, Any]) -> None:
    """Raise SfumatoError for conditions of an unconditional exact model."""
    if cond:
        raise SfumatoError(f"This exact model is unconditional: leave out {', '.join(cond)}.")


@final
class TableDenoiser:
    """model(z, t) -> Logits, or Codes of an embedded process, float64; z a state of the process, t a number or (B,)."""

    exact, spec = True, None

    def __init__(self, table: Table, process: Symbols | Embedded) -> None:
        self.table, self.process, self.shape = table, process, (table.dim,)
        self.device = torch.device("cpu")

    def __call__(self, z: Tensor, t: Time, **cond: Any) -> Logits | Codes:
        without(cond)
        t = torch.as_tensor(t, dtype=torch.float64)
        return self.process.belief(self.table.others(self.process, z, t).log(), z, t)

    def __repr__(self) -> str:
        return f"TableDenoiser({self.table.symbols}^{self.table.dim} = {math.prod(self.table.probs.shape)} states)"
