"""The orthogonal factor of many matrices, which is what Muon's step costs, shared by processes.

    msign(u) = U V^T of u = U S V^T,   by Newton-Schulz steps X <- a X + (b X X^T + c (X X^T)^2) X

Each matrix has one process that computes it. Where all have all matrices, the results are gathered; where each has some
rows of every matrix, the rows go to that process and come back (Liu et al. 2025, 2502.16982, Sect. 2.3, gathers them in
all). The steps, which bring all singular values near 1, are Jordan et al.'s (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sfumato.world import World

Shape = tuple[int, int]

# The quintic of Jordan et al.: steepest at zero, its fixed band about one is [0.68, 1.13].
QUINTIC = (3.4445, -4.7750, 2.0315)


def msign(u: Tensor, steps: int = 4, dtype: torch.dtype | None = None) -> Tensor:
    """(B, m, n) -> nearly orthogonal (B, m, n), computed in `dtype`: singular values near 1, singular vectors kept.

    Each step multiplies X from the left by the polynomial P = a + b A + c A^2 of A = X X^T, and all of these commute:
    so the steps run on the small square matrix alone (A <- P A P, Q <- P Q), and X is multiplied once, X <- Q X. In
    bfloat16 A is formed anew after every second step: the squares of small singular values would drown in its rounding.
    """
    wide = u.shape[-2] <= u.shape[-1]
    x = u if wide else u.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype or u.dtype)
    at_once = 2 if x.dtype == torch.bfloat16 else steps
    for begun in range(0, steps, at_once):
        x = _polynomials(x @ x.mT, min(at_once, steps - begun)) @ x
    return x if wide else x.mT


def _polynomials(square: Tensor, steps: int) -> Tensor:
    """Q of so many steps of the iteration, for A = X X^T."""
    a, b, c = QUINTIC
    eye = torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)
    product = eye
    for step in range(steps):
        p = torch.baddbmm(square, square, square, beta=b, alpha=c) + a * eye
        product = p @ product if step else p
        if step + 1 < steps:
            square = p @ square @ p
    return product


def shared(
    update: Callable[[int], Tensor],
    shapes: Sequence[Shape],
    sharded: bool,
    world: World,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """msign of the matrices update(0), update(1), ... of the given shapes: of whole ones, of which each is asked for in
    one process; or of this process's rows of each, and the same rows of it."""
    if world.size == 1 or not shapes:
        return directions([update(i) for i in range(len(shapes))], dtype)
    owner = owners(shapes, world.size)
    if sharded:
        return _of_rows([update(i) for i in range(len(shapes))], shapes, owner, world, dtype)
    return _of_whole(update, shapes, owner, world, dtype)


def directions(updates: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """msign of each matrix, computed in `dtype`; those of one shape go through the steps together."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, update in enumerate(updates):
        alike.setdefault(tuple(update.shape), []).append(i)
    found = list(updates)
    for members in alike.values():
        for i, direction in zip(members, msign(torch.stack([updates[i] for i in members]), dtype=dtype), strict=True):
            found[i] = direction
    return found


def owners(shapes: Sequence[Shape], size: int) -> list[int]:
    """The process of each matrix: all in a row, those of one shape side by side, cut into `size` parts of equal work.

    So few shapes are cut, and what goes through the steps together stays together.
    """
    work = [min(shape) ** 2 * (4 * max(shape) + 24 * min(shape)) for shape in shapes]
    found, done, total = [0] * len(shapes), 0.0, sum(work)
    for i in sorted(range(len(shapes)), key=lambda i: (-work[i], shapes[i])):
        found[i] = min(size - 1, int((done + work[i] / 2) / total * size))
        done += work[i]
    return found


def _flat(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat([like.new_empty(0), *(part.reshape(-1) for part in parts)])


def _of_whole(
    update: Callable[[int], Tensor],
    shapes: Sequence[Shape],
    owner: list[int],
    world: World,
    dtype: torch.dtype | None,
) -> list[Tensor]:
    of = [[i for i, rank in enumerate(owner) if rank == r] for r in range(world.size)]
    sizes = [[shapes[i][0] * shapes[i][1] for i in each] for each in of]
    longest = max(sum(each) for each in sizes)
    made = directions([update(i) for i in of[world.rank]], dtype)
    like = made[0] if made else update(0)
    low = like.new_empty(longest - sum(sizes[world.rank]), dtype=dtype or like.dtype)
    own = _flat([*made, low], low)
    found: dict[int, Tensor] = {}
    for each, lengths, flat in zip(of, sizes, world.whole(own[None]), strict=True):
        for i, part in zip(each, flat[: sum(lengths)].split(lengths), strict=True):
            found[i] = part.reshape(shapes[i])
    return [found[i] for i in range(len(shapes))]


def _of_rows(
    updates: list[Tensor], shapes: Sequence[Shape], owner: list[int], world: World, dtype: torch.dtype | None
) -> list[Tensor]:
    """updates: rows rank c .. (rank + 1) c of each matrix (m, n), c = ceil(m / size), which is how shards are cut."""

    def rows(i: int, rank: int) -> int:
        m = shapes[i][0]
        c = -(-m // world.size)
        return min(c, max(0, m - rank * c))

    ranks, like = range(world.size), updates[0]
    of = [[i for i, rank in enumerate(owner) if rank == r] for r in ranks]
    mine = of[world.rank]
    parts = [_flat([updates[i] for i in of[r]], like) for r in ranks]
    here = [[rows(i, r) * shapes[i][1] for i in mine] for r in ranks]
    flats = world.exchange(parts, [sum(s) for s in here])
    pieces = [flat.split(sizes) for flat, sizes in zip(flats, here, strict=True)]
    whole = [torch.cat([pieces[r][k].reshape(-1, shapes[i][1]) for r in ranks]) for k, i in enumerate(mine)]
    made = [each.split([rows(i, r) for r in ranks]) for i, each in zip(mine, directions(whole, dtype), strict=True)]
    back = [[updates[i].numel() for i in of[r]] for r in ranks]
    low = like.to(dtype or like.dtype)
    flats = world.exchange([_flat([each[r] for each in made], low) for r in ranks], [sum(s) for s in back])
    found = list(updates)
    for r in ranks:
        for i, part in zip(of[r], flats[r].split(back[r]), strict=True):
            found[i] = part.reshape(-1, shapes[i][1])
    return found
