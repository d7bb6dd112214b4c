"""Counts of long work, for whoever listens: pictures that are decoded, archives that are read.

    with reporting_to(listener):                                     # in a command or a run
        with counting("Decoding pictures", 5000) as count:    # wherever the work is done
            count()                                           # one more

Work of less than two seconds is not reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TextIO, final

from tqdm import tqdm

SILENT_SECONDS = 2.0  # of a piece of work before its first report
LIVE_SECONDS = 0.2  # between two looks of a bar
QUIET_SECONDS = 10.0  # between plain lines, where nobody watches live


@dataclass(frozen=True)
class Count:
    """How far a piece of work is: `done` of `total` (None where that is not known) after so many seconds.

    over: whether this is the last count, of work that is finished or was broken off.
    """

    what: str
    done: int
    total: int | None
    seconds: float
    over: bool = False

    @property
    def rate(self) -> float:
        """A second."""
        return self.done / max(self.seconds, 1e-9)

    @property
    def eta(self) -> float | None:
        """Seconds until it is finished, at the pace so far."""
        return None if self.total is None or not self.done else (self.total - self.done) / self.rate

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        facts = {"what": self.what, "done": self.done, "total": self.total, "seconds": self.seconds}
        return {**facts, "rate": self.rate, "eta": self.eta, "over": self.over}

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        eta = "" if self.eta is None or self.over else f"  eta {clock(self.eta)}"
        return f"{self.what}: {self.done:,}{of}  {self.rate:,.0f}/s{eta}"


class Listener(Protocol):
    """Is called with counts; every: the least seconds between two of them."""

    every: float

    def __call__(self, count: Count) -> None: ...


_listener: ContextVar[Listener | None] = ContextVar("sfumato.progress", default=None)


@contextmanager
def reporting_to(listener: Listener | None) -> Iterator[None]:
    """Within the block counts go to this listener and to no other; None drops them."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def counting(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Within the block count(n = 1) counts n more pieces of work; to be called by one thread."""
    listener, start = _listener.get(), time.monotonic()
    done, last = 0, 0.0

    def count(more: int = 1) -> None:
        nonlocal done, last
        done, now = done + more, time.monotonic()
        if listener is not None and now - start >= SILENT_SECONDS and now - last >= listener.every:
            last = now
            listener(Count(what, done, total, now - start))

    try:
        yield count
    finally:
        if listener is not None and last:
            listener(Count(what, done, total, time.monotonic() - start, over=True))


@final
class CountBar:
    """Shows counts: on a terminal as a bar, which is cleared at the end, elsewhere as lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None
        self.every = LIVE_SECONDS if stream.isatty() else QUIET_SECONDS

    def __call__(self, count: Count) -> None:
        if not self._stream.isatty():
            print(count, file=self._stream, flush=True)
            return
        if self._bar is None:
            shape = "{desc}" if count.total is None else "{percentage:3.0f}% |{bar}| {desc}"
            self._bar = tqdm(
                total=count.total, bar_format=shape, file=self._stream, dynamic_ncols=True, mininterval=0, leave=False
            )
        self._bar.set_description_str(str(count), refresh=False)
        self._bar.n = count.done
        self._bar.refresh()
        if count.over:
            self._bar.close()
            self._bar = None


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
