"""Fields g(z) in which an error of E[x|z] is looked for, and what of it they explain on samples that they were not
fitted to.

    g = sum_k c_k g_k,   c = argmin E|x - x_hat - g|^2 on one half,   gain = E[2 (x - x_hat).g - |g|^2] on the other

E[(x - x_hat) g] = 0 for every g if x_hat = E[x|z]. A held-out gain is a lower bound, up to its error, of how far
|x - x_hat|^2 lies above its minimum. Gradients g = grad psi alone see the part of the error that moves the law of the
samples: sup_psi 2 E[s.grad psi + lap psi] - E|grad psi|^2 is the same bound in the score s, by partial integration.
Source: Domingo-Enrich et al. 2026 (2606.06179) for the gradient part of the error.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from sfumato.diagnostics.draws import Draws

_PLANE = 3  # most dimensions in which waves of all directions are used
_WAVES = (0.75, 1.5)  # their frequencies, in radians per standard deviation of z
_WIDTHS = (3, 5, 9)  # of averages over neighbours, in pixels
_RANK = 1e-8  # smallest eigenvalue of the Gram matrix that is inverted, relative to the largest


def gradients(w: Tensor) -> Tensor:
    """Gradient fields of a state w (B, *shape) of unit variance, (B, K, *shape).

    Up to three dimensions those of plane waves, linear and quadratic functions; beyond, those of sums over single
    elements and of the energies of averages over neighbours.
    """
    size = w[0].numel()
    if size > _PLANE:
        return torch.stack([torch.ones_like(w), w, torch.sin(w), torch.sin(2 * w), *_averages(w)], 1)
    flat = w.flatten(1)
    fields = [flat, *torch.eye(size).to(flat).expand(len(flat), -1, -1).unbind(1)]
    for wave in _waves(size, _WAVES):
        k = wave.to(flat)
        phase = flat @ k
        fields += [-phase.sin()[:, None] * k, phase.cos()[:, None] * k]
    return torch.stack(fields, 1).reshape(len(w), -1, *w.shape[1:])


def every(w: Tensor, x: Tensor) -> Tensor:
    """Fields of a state w and of the belief x about it (both (B, *shape), of unit variance), (B, K, *shape).

    Up to three dimensions each element of the error has its own function; beyond, all share one.
    """
    size = w[0].numel()
    if size > _PLANE:
        return torch.cat((gradients(w), torch.stack([x, torch.sin(2 * x), *_averages(x)], 1)), 1)
    flat = w.flatten(1)
    functions = [torch.ones_like(flat[:, 0]), *flat.unbind(1)]
    for wave in _waves(size, _WAVES[:1]):
        phase = flat @ wave.to(flat)
        functions += [phase.sin(), phase.cos()]
    units = torch.eye(size).to(flat)
    fields = torch.einsum("bj,de->bjde", torch.stack(functions, 1), units)
    return fields.reshape(len(w), -1, *w.shape[1:])


def _waves(size: int, frequencies: tuple[float, ...]) -> list[Tensor]:
    """Wave vectors (size,) of all directions of the grid {-1, 0, 1}^size, one of each pair k, -k."""
    directions = itertools.product((1.0, 0.0, -1.0), repeat=size)
    half = [each for each in directions if next((v for v in each if v), 0.0) > 0]
    return [f * torch.tensor(each) for f in frequencies for each in half]


def _averages(x: Tensor) -> list[Tensor]:
    """x (B, C, *space) averaged over neighbours, by symmetric filters in one or two dimensions; none of vectors."""
    if x.ndim not in (3, 4):
        return []
    pool = torch.nn.functional.avg_pool1d if x.ndim == 3 else torch.nn.functional.avg_pool2d
    return [pool(x, width, 1, width // 2) for width in _WIDTHS if width <= min(x.shape[2:])]


def columns(residual: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
    """(x - x_hat).g_k (B, K) and g_k.g_l (B, K, K), float64."""
    g, r = fields.flatten(2).double(), residual.flatten(1).double()
    return torch.einsum("bkd,bd->bk", g, r), torch.einsum("bkd,bld->bkl", g, g)


def fit(draws: Draws, along: Tensor, gram: Tensor, chosen: Tensor) -> Tensor:
    """The coefficients c of each level, (levels, K), from the draws `chosen`, bool (n,)."""
    levels = draws.index % draws.levels
    found = []
    for level in range(draws.levels):
        own = chosen & (levels == level)
        inverse = torch.linalg.pinv(gram[own].mean(0), rtol=_RANK, hermitian=True)
        found.append(inverse @ along[own].mean(0))
    return torch.stack(found)


def explained(draws: Draws, along: Tensor, gram: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(x - x_hat).g and |g|^2 of each draw, float64 (n,)."""
    own = c[draws.index % draws.levels]
    return (along * own).sum(1), torch.einsum("nk,nkl,nl->n", own, gram, own)
