"""Nearest neighbours by blocks: products find the candidates, differences measure them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato.data.rows import Samples
from sfumato.errors import SfumatoError

_CANDIDATES = 4  # of each block and of all: products cancel near 0, and the order of the nearest is settled afterwards
_BLOCK = 1 << 24  # numbers of the bank held at once
Features = Callable[[Tensor], Tensor]


@final
class Space:
    """Where distances are taken: the numbers that a model sees (each channel over its deviation), or features.

    spec: of the data, None for x as it is. features: x (B, *shape) in the user's units -> (B, F).
    """

    def __init__(self, spec: Any, features: Features | None, device: torch.device | str = "cpu") -> None:
        self.spec, self.features, self.device = spec, features, device

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, *shape) in the user's units -> (B, F), float32."""
        x = x.to(self.device)
        if self.features is not None:
            with torch.no_grad():
                found = self.features(x)
            if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(x):
                raise SfumatoError(f"features must make a tensor ({len(x)}, F) of {len(x)} samples.")
        else:
            found = x if self.spec is None else self.spec.normalise(x)
        return found.flatten(1).float()


class Near(NamedTuple):
    """Of each query (Q,): distances to the nearest and the second nearest row of a bank, and which row is nearest."""

    first: Tensor
    second: Tensor
    row: Tensor


def nearest(
    queries: Tensor, x: Samples, rows: Tensor, space: Space, apart: Tensor | None = None, keys: Tensor | None = None
) -> Near:
    """The nearest of x[rows] to each query (Q, F), infinite where there is none.

    keys: int64, one for each of `rows`; apart (Q,): rows of this key are no neighbours of the query (-1: all are).
    """
    width = queries.shape[1]
    squares = queries.square().sum(1)
    best = torch.full((len(queries), 0), torch.inf, device=queries.device)
    found = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(rows), size := max(1, _BLOCK // max(1, width))):
        part = torch.arange(start, min(start + size, len(rows)))
        block = space(x[rows[part]])
        square = squares[:, None] + block.square().sum(1) - 2 * queries @ block.T
        if apart is not None and keys is not None:
            square[apart[:, None].to(square.device) == keys[part].to(square.device)] = torch.inf
        best = torch.cat((best, square), 1)
        found = torch.cat((found, part.to(found).expand(len(queries), -1)), 1)
        best, order = best.topk(min(_CANDIDATES, best.shape[1]), dim=1, largest=False)
        found = found.gather(1, order)
    return _measured(queries, x, rows, space, best, found)


def _measured(queries: Tensor, x: Samples, rows: Tensor, space: Space, best: Tensor, found: Tensor) -> Near:
    """Distances by differences, which are exactly 0 for a copy."""
    exact = torch.full_like(best, torch.inf)
    for k in range(best.shape[1]):
        for part in torch.arange(len(queries)).split(max(1, _BLOCK // max(1, queries.shape[1]))):
            apart = queries[part] - space(x[rows[found[part, k].cpu()]])
            exact[part, k] = apart.double().square().sum(1).sqrt().to(exact)
    exact = torch.where(best.isfinite(), exact, torch.inf)
    exact, order = exact.sort(1)
    missing = torch.full_like(exact[:, :1], torch.inf)
    exact = torch.cat((exact, missing, missing), 1)
    row = rows[found.gather(1, order)[:, 0].cpu()] if best.shape[1] else torch.full((len(queries),), -1)
    return Near(exact[:, 0].cpu(), exact[:, 1].cpu(), row)
