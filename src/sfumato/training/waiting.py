"""Measure how long training steps wait for their batches, find out why, and advise what would help."""

from __future__ import annotations

import time
from typing import Any, final

from sfumato.data.rows import DECODING, READING, Rows, Samples, Spent

FETCHING, NORMALISING, TRANSFER = "fetching", "normalising", "transfer"
MUCH = 0.10  # fraction of time spent waiting that calls for advice
_SURE = 3.0  # total seconds waited before advice is given

CURES = {
    READING: "is read too slowly: put it, or the cache (SFUMATO_CACHE), on a faster disk, or set more --workers",
    DECODING: "is decoded again for every step: enlarge the cache (SFUMATO_CACHE, SFUMATO_CACHE_GB), or set a "
    "smaller --size or more --workers",
    NORMALISING: "takes as long to normalise as this small network takes to train on it: a larger --net would cost "
    "little more, a smaller --size less",
    TRANSFER: "is slow to copy to the device: set a smaller --size, so that all of it fits there",
}


@final
class Waiting:
    """Seconds that steps wait for their batches, by cause."""

    def __init__(self, x: Samples, workers: int) -> None:
        self._rows, self._workers = x if isinstance(x, Rows) else None, workers
        self._spent = Spent()
        self.on = self._spent.on  # `with waiting.on(cause)` counts the time of the block as waiting
        self._mark, self._waited, self._advised = time.perf_counter(), 0.0, False

    def report(self) -> dict[str, Any]:
        """data_wait: the fraction of time since the last report that steps waited. advice: cause and cure if that is
        too much, given once."""
        now, waited = time.perf_counter(), self._spent.total
        share = min(1.0, (waited - self._waited) / max(1e-9, now - self._mark))
        self._mark, self._waited = now, waited
        if self._advised or share <= MUCH or waited < _SURE:
            return {"data_wait": share, "advice": None}
        self._advised = True
        where = "The data" if self._rows is None else self._rows.where
        workers = f" (now {self._workers})" if "--workers" in (cure := CURES[self.cause]) else ""
        advice = f"Steps wait {share:.0%} of the time for their data ({self.cause}): {where} {cure}{workers}."
        return {"data_wait": share, "advice": advice}

    @property
    def cause(self) -> str:
        """The main cause of waiting."""
        most = self._spent.most or FETCHING
        if most != FETCHING:
            return most
        return (None if self._rows is None else self._rows.spent.most) or READING
