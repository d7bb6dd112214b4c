"""Batches as a function of (seed, samples seen): data order, dropped conditions and noise levels.

    sample p of the run is row order(p mod N) of epoch p div N;  its noise level: u_p = frac(u_0 + p / golden ratio)

The additive recurrence (Kronecker sequence) spreads any run of consecutive samples evenly over the noise levels, so
that every batch, micro-batch and rank's share has low discrepancy by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sfumato import noise
from sfumato.conditions import Conditions
from sfumato.data import DataSpec
from sfumato.data.rows import Rows, Samples
from sfumato.errors import SfumatoError
from sfumato.training.codes import normalised
from sfumato.training.waiting import FETCHING, NORMALISING, TRANSFER, Waiting

_SHARE = 0.25  # of a GPU's free memory that the data may take
_AHEAD = 2  # batches fetched ahead; with more threads than this, one per thread


class Batches:
    """Training samples x (N, *shape) in the user's units and dtype, and their conditions; drop, kept: see `dropped`.

    Data that fit stay on the GPU; other data are prefetched by `workers` threads (None: chosen from
    the data). Neither changes any number. `close` ends the threads.
    """

    def __init__(
        self, x: Samples, cond: Mapping[str, Any] | Tensor | None, spec: DataSpec | None, seed: int, drop: float,
        device: torch.device, dtype: torch.dtype = torch.float32, workers: int | None = None, kept: str | None = None,
    ) -> None:  # fmt: skip
        if not len(x):
            raise SfumatoError("There are no samples to train on.")
        if spec is None and not x.dtype.is_floating_point:
            raise SfumatoError("Integer data need a data spec that normalises them: build the denoiser with spec=...")
        count, blocks = len(x), x.blocks if isinstance(x, Rows) else None
        self.of = x
        # two epochs are cached, since a batch may span both
        self.order = lru_cache(2)(lambda epoch: noise.permutation(seed, epoch, count, blocks))
        if device.type == "cuda" and x.nbytes <= _SHARE * torch.cuda.mem_get_info(device)[0]:
            x = torch.cat([x[at : at + 1024].to(device) for at in range(0, len(x), 1024)])
        self.kept, self.x, self.cond, self.spec, self.seed, self.drop = kept, x, Conditions.of(cond), spec, seed, drop
        self.device, self.dtype = device, dtype
        workers = _workers(x, device) if workers is None else workers
        self._pool = ThreadPoolExecutor(workers, "sfumato-data") if workers else None
        self._depth, self._ahead = max(_AHEAD, workers), dict[tuple[int, ...], Future[Tensor]]()
        self.waiting = Waiting(x, workers)

    def close(self) -> None:
        """Stop the fetching threads and wait for them to end."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def rows(self, start: int, count: int) -> Tensor:
        """Row numbers of the run's samples start .. start + count, across epochs if need be."""
        parts = []
        while count:
            epoch, offset = divmod(start, len(self.x))
            part = self.order(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)

    def take(self, start: int, count: int, share: slice = slice(None)) -> tuple[Tensor, Conditions, Tensor, Tensor]:
        """(x normalised, conditions, index, u) of the next `count` samples, or a share of them; u uniform in (0, 1)."""
        rows, index = self.rows(start, count)[share], torch.arange(start, start + count)[share]
        x = self._samples(start, count, share)
        u = noise.spread(self.seed, index, noise.TRAIN_TIME)
        cond = dropped(self.cond.rows(rows), noise.Noise(self.seed, index, noise.DROP), self.drop, self.kept)
        cond = cond.to(self.device)
        if self.spec is not None:
            x, cond = self.spec.apart(x, cond)
        return x, cond, index, u

    def _samples(self, start: int, count: int, share: slice) -> Tensor:
        with self.waiting.on(FETCHING):
            x = self._fetched(start, count, share)
        if self.device.type == "cuda":  # float64 normalisation gives the same bits there, and raw data are smaller
            with self.waiting.on(TRANSFER):
                x = x.to(self.device, non_blocking=True)
        with self.waiting.on(NORMALISING):
            draws = noise.Noise(self.seed, torch.arange(start, start + count)[share], noise.TRAIN_NOISE)
            x = normalised(self.of, x, self.spec, draws).to(self.dtype)
        with self.waiting.on(TRANSFER):
            return x.to(self.device, non_blocking=True)

    def _fetched(self, start: int, count: int, share: slice) -> Tensor:
        """The raw samples of this batch; the next batches are prefetched meanwhile.

        If the run went back to an earlier step, batches prefetched for other steps are dropped.
        """
        if self._pool is None:
            return self._fetch(start, count, share)
        wanted = [(start + ahead * count, count, *share.indices(count)) for ahead in range(self._depth + 1)]
        for old in self._ahead.keys() - set(wanted):
            self._ahead.pop(old).cancel()
        for key in wanted:
            if key not in self._ahead:
                self._ahead[key] = self._pool.submit(self._fetch, key[0], count, share)
        return self._ahead.pop(wanted[0]).result()

    def _fetch(self, start: int, count: int, share: slice) -> Tensor:
        rows = self.rows(start, count)[share]
        x = self.x[rows.to(self.x.device) if isinstance(self.x, Tensor) else rows]
        return x.pin_memory() if self._pool and self.device.type == "cuda" and not x.is_cuda else x


def dropped(cond: Conditions, source: noise.Noise, share: float, kept: str | None = None) -> Conditions:
    """Drop each condition in this share of the samples and, if there are several, all at once in the same share.

    The network thus learns every subset: p(x | c1), p(x | c2), p(x). The choice is a function of (seed, sample, name).
    kept: the one that is never dropped, if any.
    """
    names = [name for name in cond if name != kept]
    if not names:
        return cond
    together = source.uniform() >= share
    if len(names) < 2:
        return cond.keep({name: together for name in names})
    return cond.keep({name: together & (source.fold(name).uniform() >= share) for name in names})


def _workers(x: Samples, device: torch.device) -> int:
    """Default number of threads: 0 for samples on the training device, 1 for other tensors, more for files."""
    if isinstance(x, Tensor):
        return int(device.type == "cuda" and not x.is_cuda)
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(x.workers, max(1, cores))
