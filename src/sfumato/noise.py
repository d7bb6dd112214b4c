"""Random numbers as a pure function of (seed, sample index, role, step): Philox4x32-10 in tensor arithmetic.

    n_i = normal(seed, index_i, role, step)

Row i depends on nothing else: not on its batch, the order of draws, the device or the number of processes.
Uniform numbers, signs and permutations are exact functions of integer words: every device gives the same bits.
Normal numbers use log, cos and sin, which each device's library rounds to an ulp or two (the square root is exact
everywhere), so those of a CPU and a GPU may differ in the last two bits.
Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

Device = torch.device | str | None

# The roles of random numbers. Two roles never share a stream.
(PRIOR, STEP, TRAIN_NOISE, TRAIN_TIME, DROP, VALID_NOISE, VALID_TIME, ORDER, DATA, PROBE, BROWNIAN, BOUND, REFERENCE,
 BLOCKS) = range(14)  # fmt: skip

_MASK = 0xFFFFFFFF
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57])
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MAX_STEP = 1 << 24
_AHEAD = 4096  # numbers that a walk draws together: a draw of a few takes as long


_GLOBAL = threading.RLock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator within the block, and restore its state afterwards. Threads take turns."""
    with _GLOBAL, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU generators as well
        yield


@contextmanager
def kept(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Restore torch's global generators, of the CPU and of these devices, after the block.

    Threads take turns in noting and in restoring, so that none notes what `seeded` has set for another.
    """
    fork = torch.random.fork_rng(list(devices))
    with _GLOBAL:
        fork.__enter__()
    try:
        yield
    finally:
        with _GLOBAL:
            fork.__exit__(None, None, None)


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Ten rounds of Philox4x32 on 32-bit words, int64 (4, ..) -> (4, ..).

    Integer arithmetic only, so every device gives the same bits.
    """
    words = torch.empty_like(counter)
    column = (2, *(1,) * (counter.ndim - 1))
    constants: list[Any] = [_MULTIPLIERS.reshape(column), _round_keys(key).reshape(10, *column)]
    if counter.device.type != "cpu":
        constants = [torch.from_numpy(part).to(counter.device) for part in constants]
    c, w = _plain(counter), _plain(words)
    w[0::2], w[1::2] = _rounds(c[0::2], c[1::2], *constants)  # both halves of a round at once, in half the calls
    return words


def _plain(x: Tensor) -> Any:
    """The memory of a tensor as an array on the CPU, where a numpy call costs a third of a torch call, which dominates
    for few numbers."""
    return x.numpy() if x.device.type == "cpu" else x


def _rounds(even: Any, odd: Any, multipliers: Any, keys: Any) -> tuple[Any, Any]:
    """The rounds on (first and third word, second and fourth word), int64 arrays or tensors alike."""
    for k in keys:
        # int64 products wrap modulo 2^64, so the masks recover both halves of the unsigned product.
        product = (even * multipliers)[[1, 0]]
        even = product >> 32
        even &= _MASK
        even ^= odd
        even ^= k
        product &= _MASK
        odd = product
    return even, odd


@lru_cache(maxsize=64)
def _round_keys(key: tuple[int, int]) -> np.ndarray:
    """The two words of the key in each round, int64 (10, 2)."""
    return np.array([[(k + i * w) & _MASK for k, w in zip(key, _WEYL, strict=True)] for i in range(10)])


def bits(
    seed: int, index: Tensor | Sequence[int] | int, count: int, role: int, step: int | Tensor = 0, device: Device = None
) -> Tensor:
    """32-bit words as int64, shape (len(index), count). step: one number, or one per row, int64 (len(index),)."""
    index = torch.as_tensor(index, dtype=torch.int64, device=device).reshape(-1, 1)
    if isinstance(step, Tensor):
        step = step.to(index.device, torch.int64).reshape(-1, 1)
    elif not 0 <= step < _MAX_STEP:
        raise ValueError(f"step must lie in [0, {_MAX_STEP}), got {step}")
    counter = torch.empty(4, len(index), -(-count // 4), dtype=torch.int64, device=index.device)
    lanes = torch.arange(counter.shape[2], device=index.device)
    c, i = _plain(counter), _plain(index)
    c[0], c[1], c[2] = _plain(lanes), i & _MASK, i >> 32 & _MASK
    c[3] = (_plain(step) if isinstance(step, Tensor) else step) + (role << 24)
    words = philox(counter, (seed & _MASK, seed >> 32 & _MASK))
    return words.permute(1, 2, 0).flatten(1)[:, :count]


def _open_unit(words: Tensor) -> Tensor:
    return (words.double() + 0.5) * 2.0**-32  # the open interval (0, 1), so that logarithms are finite


def uniform(
    seed: int,
    index: Tensor | Sequence[int] | int,
    shape: Sequence[int] = (),
    role: int = PRIOR,
    step: int | Tensor = 0,
    device: Device = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """u ~ U(0, 1), shape (len(index), *shape); float32 rounds the largest values to 1."""
    count = math.prod(shape)
    u = _open_unit(bits(seed, index, count, role, step, device))
    return u.to(dtype).reshape(len(u), *shape)


def normal(
    seed: int,
    index: Tensor | Sequence[int] | int,
    shape: Sequence[int] = (),
    role: int = PRIOR,
    step: int | Tensor = 0,
    device: Device = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """n = sqrt(-2 log u1) (cos, sin)(2 pi u2) ~ N(0, 1), shape (len(index), *shape) (Box and Muller 1958)."""
    count = math.prod(shape)
    pairs = bits(seed, index, count + count % 2, role, step, device)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    # Compute the radius in double precision: float32 uniforms would truncate the tail at 5.9 standard deviations.
    radius = _open_unit(pairs[:, 0::2]).log_().mul_(-2).sqrt_().to(work)
    angle = _open_unit(pairs[:, 1::2]).mul_(2 * math.pi).to(work)
    n = torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(1)[:, :count]
    return n.to(dtype).reshape(len(n), *shape)


_GOLDEN = (math.sqrt(5) - 1) / 2


@lru_cache(maxsize=64)
def _first(seed: int, role: int) -> float:
    return float(uniform(seed, 0, (), role, dtype=torch.float64))


def spread(seed: int, index: Tensor | Sequence[int] | int, role: int) -> Tensor:
    """u_i = frac(u_0 + i / golden ratio) in (0, 1), float64 (len(index),): a randomly shifted Kronecker sequence.

    Each single u_i is uniform, and any run of consecutive indices is spread evenly: every batch, micro-batch or rank's
    share has low discrepancy by itself (Niederreiter 1992, Ch. 3).
    """
    i = torch.as_tensor(index, dtype=torch.float64).reshape(-1)
    return torch.frac(_first(seed, role) + i * _GOLDEN).clamp_(1e-9, 1 - 1e-9)


def rademacher(
    seed: int,
    index: Tensor | Sequence[int] | int,
    shape: Sequence[int] = (),
    role: int = PROBE,
    step: int | Tensor = 0,
    device: Device = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """v = +1 or -1 with equal probability, shape (len(index), *shape)."""
    low = bits(seed, index, math.prod(shape), role, step, device) & 1
    return (2 * low - 1).to(dtype).reshape(len(low), *shape)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """A source of random numbers for the samples `index` (n,) of a seed, for one role and step.

        Noise(seed, index, role, step).normal(shape) = normal(seed, index, shape, role, step),   (n, *shape)

    step: one for all samples, or one per sample, int64 (n,). kept: where normal numbers of the next steps are kept,
    as `ahead` makes it, which are drawn together with those of one.
    """

    seed: int
    index: Tensor
    role: int = PRIOR
    step: int | Tensor = 0
    kept: dict[Any, Any] | None = dataclasses.field(default=None, repr=False)

    def normal(self, shape: Sequence[int] = (), device: Device = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """n ~ N(0, 1), (n, *shape)."""
        each = max(1, len(self.index) * math.prod(shape))
        if self.kept is None or isinstance(self.step, Tensor) or 2 * each > _AHEAD:
            return normal(self.seed, self.index, shape, self.role, self.step, device, dtype)
        key = tuple(shape), device, dtype
        first, numbers = self.kept.get(key, (0, ()))
        if not first <= self.step < first + len(numbers):
            first, n = self.step, len(self.index)
            steps = torch.arange(first, first + _AHEAD // each)
            index, step = self.index.repeat(len(steps)), steps.repeat_interleave(n)
            numbers = normal(self.seed, index, shape, self.role, step, device, dtype).reshape(len(steps), n, *shape)
            self.kept[key] = first, numbers
        found: Tensor = numbers[self.step - first]
        return found

    def ahead(self) -> Noise:
        """The same source, for a walk from step to step."""
        return dataclasses.replace(self, kept={})

    def uniform(self, shape: Sequence[int] = (), device: Device = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """u ~ U(0, 1), (n, *shape)."""
        return uniform(self.seed, self.index, shape, self.role, self.step, device, dtype)

    def at(self, step: int | Tensor) -> Noise:
        """The same source at another step."""
        return dataclasses.replace(self, step=step)

    def rows(self, rows: Tensor | slice) -> Noise:
        """The source for some of the samples."""
        step = self.step[rows] if isinstance(self.step, Tensor) else self.step
        return dataclasses.replace(self, index=self.index[rows], step=step, kept=None)

    def fold(self, name: str) -> Noise:
        """An independent source for the part `name` of the samples."""
        kept = None if self.kept is None else self.kept.setdefault(name, {})
        return dataclasses.replace(self, seed=_folded(self.seed, name), kept=kept)


@lru_cache(maxsize=1024)
def _folded(seed: int, name: str) -> int:
    """A seed of 63 bits from a seed and a name."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class WienerProcess:
    """A Wiener process W on [0, 1], W(0) = 0, for each row a pure function of (seed, index_i).

        W(c) = c n_0 + sum_{d < D} 2^{-d/2 - 1} hat(2^d c) n_{d, floor(2^d c)} + 2^{-D/2} sqrt(u (1 - u)) n_leaf

    the Levy-Ciesielski construction, hat(v) = 1 - |2 frac(v) - 1|, u = frac(2^D c): a virtual Brownian tree of D levels
    with nodes drawn on demand. Increments over steps of at least FINEST are exactly those of a Wiener process.
    """

    LEVELS = 20
    FINEST = 2.0**-LEVELS

    def __init__(self, seed: int, index: Tensor | Sequence[int] | int) -> None:
        self.seed, self.index = seed, index
        self._kept: dict[int, Tensor] = {}

    @classmethod
    def weights(cls, c: float) -> dict[int, float]:
        """W(c) as a combination of standard normal numbers: node of the tree -> coefficient."""
        out = {0: c}
        for depth in range(cls.LEVELS + 1):
            position = min(int(c * 2**depth), 2**depth - 1)
            u = c * 2**depth - position
            height = (1 - abs(2 * u - 1)) / 2 if depth < cls.LEVELS else math.sqrt(max(u * (1 - u), 0.0))
            out[2**depth + position] = height * 2 ** (-depth / 2)
        return {node: value for node, value in out.items() if value != 0}

    def between(self, a: float, b: float, like: Tensor) -> Tensor:
        """W(b) - W(a) for 0 <= a <= b <= 1, with the shape, device and dtype of `like` (len(index), ...)."""
        start, end = self.weights(a), self.weights(b)
        change = {node: end.get(node, 0.0) - start.get(node, 0.0) for node in end.keys() | start.keys()}
        drawn: dict[int, Tensor] = {}
        total = torch.zeros_like(like)
        for node in sorted(node for node, value in change.items() if value != 0):
            known = self._kept.get(node)
            if known is None or known.shape != like.shape or known.dtype != like.dtype:
                known = normal(self.seed, self.index, tuple(like.shape[1:]), BROWNIAN, node, like.device, like.dtype)
            drawn[node] = known
            total.add_(known, alpha=change[node])
        self._kept = {node: value for node, value in drawn.items() if node in end}  # for a next step from b
        return total


WINDOW = 4  # the number of blocks that a permutation in blocks shuffles together


def permutation(seed: int, epoch: int, n: int, blocks: Tensor | None = None) -> Tensor:
    """The order of n samples in an epoch, int64 (n,), a function of (seed, epoch) alone.

    blocks: the block number of each sample, int64 (n,). The blocks are then taken in random order, `WINDOW` at a time,
    and only the samples of one window are shuffled together, as in a shuffle buffer of that size.
    """
    step = epoch % _MAX_STEP
    keys = bits(seed, torch.arange(n), 2, ORDER, step)
    order = torch.argsort((keys[:, 0] << 31) ^ keys[:, 1], stable=True)
    if blocks is None:
        return order
    _, block = torch.unique(blocks, return_inverse=True)
    block_keys = bits(seed, torch.arange(int(block.max()) + 1), 2, BLOCKS, step)
    rank = torch.argsort(torch.argsort((block_keys[:, 0] << 31) ^ block_keys[:, 1], stable=True))
    return order[torch.argsort(rank[block][order] // WINDOW, stable=True)]


def ranks(values: Tensor) -> Tensor:
    """The place of each number in its row, from the smallest, 0, on; of equal ones the first comes first. (B, n)."""
    order = values.argsort(dim=1, stable=True)
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
