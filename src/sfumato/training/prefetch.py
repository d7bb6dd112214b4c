"""Batches that threads fetch ahead of their use; which samples are in them, and in what order, is not their affair."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, final

T = TypeVar("T")

DEPTH = 2  # batches ahead, or as many as there are threads where these are more


@final
class Prefetch(Generic[T]):
    """fetch(start) for start, start + step, start + 2 step ..., some of them before they are asked for.

    A start that was not foreseen (a run that went back) drops what is under way and begins there. What `fetch` raises
    is raised where its result is asked for.
    """

    def __init__(self, fetch: Callable[[int], T], workers: int) -> None:
        self._fetch, self._depth = fetch, max(DEPTH, workers)
        self._pool = ThreadPoolExecutor(workers, "sfumato-data")
        self._under_way: dict[int, Future[T]] = {}

    def get(self, start: int, step: int) -> T:
        """What fetch(start) gives; the next ones, each `step` further, are begun."""
        wanted = [start + ahead * step for ahead in range(self._depth + 1)]
        for old in [key for key in self._under_way if key not in wanted]:
            self._under_way.pop(old).cancel()
        for key in wanted:
            if key not in self._under_way:
                self._under_way[key] = self._pool.submit(self._fetch, key)
        return self._under_way.pop(start).result()

    def close(self) -> None:
        """No thread is left when this returns."""
        self._under_way.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
