"""Nearest neighbours, block by block: |q - x|^2 = |q|^2 + |x|^2 - 2 q.x in float64, 0 within float32 rounding.

Of samples with missing values it is D / n times the sum over the n of their D numbers that both have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sfumato.data.lengths import in_order, with_mask
from sfumato.data.rows import Samples
from sfumato.errors import SfumatoError
from sfumato.progress import counting

_SAME = 1e-13  # relative to |q|^2 + |x|^2: below this, two float32 samples are equal
_BLOCK = 1 << 20  # numbers at once, of the bank and of distances, as a cache holds
_ROWS, _MOST = 64, 16 * _BLOCK  # of large rows these at least, up to so many numbers
Features = Callable[[Tensor], Tensor]


@final
class Space:
    """The space of distances: the numbers that a model sees (each channel over its deviation), or features of them.

    spec: of the data; None for raw x. features: x (B, *shape) in the user's units -> (B, F). unordered: whether samples
    are sets of points, which are then ordered by their coordinates. words: what distances are measured in. Sequences of
    several lengths have 0 beyond their ends, and a mask beside it.
    """

    def __init__(
        self, spec: Any, features: Features | None, device: torch.device | str = "cpu", unordered: bool = False,
        words: str | None = None,
    ) -> None:  # fmt: skip
        if features is not None and not callable(features):
            raise SfumatoError(f"features must be a function of samples (B, *shape), not {features!r:.60}.")
        self.spec, self.features, self.device, self.unordered = spec, features, device, unordered
        usual = "standard deviations of each channel" if features is None else "features"
        self.words = usual if words is None else words

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, *shape) in the user's units -> (B, F), float64."""
        x = x.to(self.device)
        if self.features is not None:
            with torch.no_grad():
                found = self.features(x)
            if not isinstance(found, Tensor) or found.ndim < 2 or len(found) != len(x):
                raise SfumatoError(f"features must return a tensor ({len(x)}, F) for {len(x)} samples.")
        else:
            found = x if self.spec is None else self.spec.normalise(x)
            found = in_order(found) if self.unordered else found
            found = found if getattr(self.spec, "lengths", None) is None else with_mask(found)
        found = found.cpu() if found.device.type == "mps" else found  # MPS has no float64
        return found.flatten(1).double()


class Near(NamedTuple):
    """For each query (Q,): distances to the nearest and second nearest row of a bank, and the nearest row."""

    first: Tensor
    second: Tensor
    row: Tensor


def nearest(
    queries: Tensor, x: Samples, rows: Tensor, space: Space, apart: Tensor | None = None, keys: Tensor | None = None
) -> Near:
    """The nearest of x[rows] to each query (Q, F); the distance is infinite if there is none, or no number in common.

    keys: int64, one for each of `rows`; apart (Q,): the key of rows that are excluded for a query (-1: none).
    """
    best = torch.full((len(queries), 2), torch.inf, dtype=queries.dtype, device=queries.device)
    found, wide = torch.zeros_like(best, dtype=torch.int64), max(1, *queries.shape)
    with counting("Looking for copies, samples", len(rows)) as count:
        for part in torch.arange(len(rows)).split(max(1, min(_ROWS, _MOST // wide), _BLOCK // wide)):
            square = _squares(queries, space(x[rows[part]]))
            if apart is not None and keys is not None:
                square[apart[:, None].to(square.device) == keys[part].to(square.device)] = torch.inf
            best, order = torch.cat((best, square), 1).topk(2, dim=1, largest=False)
            found = torch.cat((found, part.to(found).expand(len(queries), -1)), 1).gather(1, order)
            count(len(part))
    first, second = best.sqrt().cpu().T
    return Near(first, second, rows[found[:, 0].cpu()])


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """The squared distances of rows a (Q, F) and b (N, F), float64 (Q, N), over the numbers that both have."""
    here, there = ((~each.isnan()).to(each) for each in (a, b))
    whole = bool(here.all()) and bool(there.all())
    a, b = (a, b) if whole else (a.nan_to_num(), b.nan_to_num())
    scale = a.square() @ there.T + here @ b.square().T if not whole else a.square().sum(1)[:, None] + b.square().sum(1)
    square = scale - 2 * a @ b.T
    square = torch.where(square > _SAME * scale, square, 0.0)
    if whole:
        return square
    common = here @ there.T
    return torch.where(common > 0, square * (a.shape[1] / common), torch.inf)
