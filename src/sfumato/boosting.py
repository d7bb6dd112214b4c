"""The log ratio of two densities by boosted trees, from rows of both.

    log r(x) = sum_t v_t[leaf of x in tree t]    r = p_data / p_model

A tree asks the same few questions, whether an entry is above a cut, of every row, so that its leaves are numbered by
the answers. Each is a step of Newton's method for the logistic loss of telling the rows apart, whose minimum is log r
(Friedman, Hastie and Tibshirani 2000); the questions are those by which the loss falls most, among 128 quantiles of
each entry, on half of the rows. The trees end where the loss of a fifth of the rows, which they do not see, was least,
and there are none unless this gain is above two of its standard errors, so that of equal laws nothing is learned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfumato.data.row_weights import Tree
from sfumato.progress import counting

TREES, EACH, DEPTH, RATE = 400, 50, 6, 0.3  # the most trees; the rows drawn for each
CUTS, ENTRIES = 127, 16  # of an entry; that one tree looks at, drawn anew for each where there are more
LEFT_OUT, SEEN, PATIENCE = 0.2, 0.5, 30  # shares of the rows; trees without a gain after which it ends
PENALTY = 8.0  # of the squares of the leaves' values, in rows


@torch.no_grad()
def boosted(real: Tensor, drawn: Tensor, seed: int = 0) -> tuple[Tree, ...]:
    """Trees whose sum is log p(real) / p(drawn), of rows (N, D) and (M, D), finite. Rows of both kinds weigh alike."""
    x = torch.cat((real, drawn))
    sign = torch.cat((torch.ones(len(real)), -torch.ones(len(drawn)))).double()
    weight = len(x) / 2 * torch.where(sign > 0, sign / len(real), -sign / len(drawn))
    cuts = [_cuts(column) for column in x.T]
    asked = torch.tensor([place for place, own in enumerate(cuts) if len(own)])
    codes = torch.stack([_codes(own, column) for own, column in zip(cuts, x.T, strict=True)])
    draw = torch.Generator().manual_seed(seed)
    out = torch.rand(len(x), generator=draw, dtype=torch.float32) < LEFT_OUT
    trees: list[Tree] = []
    total, least, best = torch.zeros(len(x), dtype=torch.float64), math.inf, 0
    most = min(TREES, len(drawn) // EACH) if len(asked) and bool(out.any()) else -1
    with counting("Fitting trees of weights", most) as count:
        while most >= 0:
            loss = weight[out] * nn.functional.softplus(-sign[out] * total[out])
            if float(loss.mean()) < least:
                least, best, gain = float(loss.mean()), len(trees), weight[out] * math.log(2) - loss
            if len(trees) == most or len(trees) >= best + PATIENCE:
                sure = float(gain.mean()) > 2 * float(gain.std()) / len(gain) ** 0.5
                return tuple(trees[:best]) if sure else ()
            rows = torch.nonzero(~out & (torch.rand(len(x), generator=draw, dtype=torch.float32) < SEEN))[:, 0]
            entries = asked[torch.randperm(len(asked), generator=draw)[:ENTRIES]]
            slope = weight * sign * torch.sigmoid(-sign * total)  # of minus the loss in log r
            bend = slope.abs() * torch.sigmoid(sign * total)
            trees.append(_grown(codes[:, rows], cuts, entries, slope[rows], bend[rows]))
            total += trees[-1](x)
            count()
    return ()


def _codes(cuts: Tensor, column: Tensor) -> Tensor:
    """How many cuts each value is above, int16: x > cuts[k] where this is more than k."""
    return torch.searchsorted(cuts, column.contiguous(), out_int32=True).short()


def _cuts(column: Tensor) -> Tensor:
    """Values of a column such that x > cut tells its distinct values apart, or its quantiles if these are many."""
    values = column.unique()
    if len(values) > CUTS + 1:
        ordered = column.sort().values
        values = ordered[torch.arange(1, CUTS + 2) * len(ordered) // (CUTS + 2)].unique()
    return values[:-1]


def _grown(codes: Tensor, cuts: list[Tensor], entries: Tensor, slope: Tensor, bend: Tensor) -> Tree:
    """A tree of these entries. codes: (D, rows); slope, bend: of each row (rows,)."""
    width, several = CUTS + 1, len(entries)
    at = codes[entries].long() + width * torch.arange(several)[:, None]
    allowed = torch.stack([torch.arange(width) < len(cuts[int(each)]) for each in entries])
    slopes, bends = (each.expand(several, -1).flatten() for each in (slope, bend))
    leaf, places, asked = torch.zeros(len(slope), dtype=torch.long), [], []
    for level in range(DEPTH):
        cells, size = (leaf * (several * width) + at).flatten(), 2**level * several * width
        g, h = (torch.bincount(cells, each, size).view(-1, several, width).cumsum(2) for each in (slopes, bends))
        below, above = g.square() / (h + PENALTY), (g[..., -1:] - g).square() / (h[..., -1:] - h + PENALTY)
        which, cut = divmod(int((below + above).sum(0).masked_fill(~allowed, -1.0).argmax()), width)
        places.append(int(entries[which]))
        asked.append(float(cuts[places[-1]][cut]))
        leaf = 2 * leaf + (codes[places[-1]] > cut)
    g, h = (torch.bincount(leaf, each, 2**DEPTH) for each in (slope, bend))
    values = (RATE * g / (h + PENALTY)).mul(1e5).round().div(1e5)
    return Tree(tuple(places), tuple(asked), tuple(values.tolist()))
