"""Tables of pairs of neighbouring symbols: what two of them say together, without a layer that has to multiply them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS_LOG2 = 13
ROWS = 1 << ROWS_LOG2  # of a table: 90 symbols have fewer pairs, those of more share rows
_GOLDEN = 2654435769  # 2^32 / golden ratio
BOTH, BEHIND = ((-2, -1), (-1, 1), (1, 2)), ((-2, 0), (-1, 0))


class Neighbours(nn.Module):
    """h_i = sum over (a, b) of E_ab[z_{i+a}, z_{i+b}], z int64 of 0 .. size - 1, size - 1 the mask.

    (a, b) are (-2, -1), (-1, 1) and (1, 2), or for a causal network, whose symbols behind i are not known, (-2, 0) and
    (-1, 0). Beyond the end stands the mask. Of more than 90 symbols, pairs share the `ROWS` rows
    of a table by multiplicative hashing (Knuth 1998, 6.4; Svenstrup et al. 2017, 1709.03933). Zero at initialisation.
    """

    def __init__(self, size: int, width: int, causal: bool) -> None:
        super().__init__()
        self.size, self.pairs, self.rows = size, BEHIND if causal else BOTH, min(size**2, ROWS)
        self.weight = nn.Parameter(torch.zeros(len(self.pairs) * self.rows, width))

    @property
    def before(self) -> int:
        """How many symbols before i are looked at."""
        return -min(a for a, _ in self.pairs)

    def forward(self, z: Tensor) -> Tensor:
        """z with `before` symbols before the first: (B, before + L) -> (B, L, width)."""
        count = z.shape[1] - self.before
        z = F.pad(z, (0, max(b for _, b in self.pairs)), value=self.size - 1)

        def beside(offset: int) -> Tensor:
            return z[:, self.before + offset : self.before + offset + count]

        found = [self.row(beside(a), beside(b)) + k * self.rows for k, (a, b) in enumerate(self.pairs)]
        return F.embedding(torch.stack(found, dim=2), self.weight).sum(2)

    def row(self, first: Tensor, second: Tensor) -> Tensor:
        """The row of a table for each pair of symbols."""
        pair = first * self.size + second
        return pair if self.rows < ROWS else (pair * _GOLDEN & 0xFFFFFFFF) >> 32 - ROWS_LOG2
