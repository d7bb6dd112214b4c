"""Progress counts of long tasks, such as decoding pictures, for a listener.

    with reporting_to(listener):                                     # in a command or a run
        with counting("Decoding pictures", 5000) as count:    # wherever the work is done
            count()                                           # one more

Tasks shorter than two seconds are not reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TextIO, final

from tqdm import tqdm

from .errors import shown

SILENT_SECONDS = 2.0  # before the first report of a task
LIVE_SECONDS = 0.2  # between updates of a bar
QUIET_SECONDS = 10.0  # between plain lines, if output is not a terminal


@dataclass(frozen=True)
class Count:
    """The progress of a task: `done` of `total` (None if unknown) after `seconds`.

    over: whether this is the last count, of a task that finished or was interrupted.
    """

    what: str
    done: int
    total: int | None
    seconds: float
    over: bool = False

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.done / max(self.seconds, 1e-9)

    @property
    def eta(self) -> float | None:
        """Seconds until the end, at the rate so far; None if unknown."""
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
    """Called with counts; every: the shortest time between two calls, in seconds."""

    every: float

    def __call__(self, count: Count) -> None: ...


_listener: ContextVar[Listener | None] = ContextVar("sfumato.progress", default=None)


@contextmanager
def reporting_to(listener: Listener | None) -> Iterator[None]:
    """Send counts within the block to this listener only; None drops them."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def counting(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Yields count(n = 1), which counts n more items of a task; call it from one thread only."""
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
    """Shows counts as a bar on a terminal, cleared at the end, and as lines elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Any = None
        self.every = LIVE_SECONDS if stream.isatty() else QUIET_SECONDS

    def __call__(self, count: Count) -> None:
        if not self._stream.isatty():
            print(shown(str(count)), file=self._stream, flush=True)
            return
        if self._bar is None:
            shape = "{desc}" if count.total is None else "{percentage:3.0f}% |{bar}| {desc}"
            self._bar = tqdm(
                total=count.total, bar_format=shape, file=self._stream, dynamic_ncols=True, mininterval=0, leave=False
            )
        self._bar.set_description_str(shown(str(count)), refresh=False)
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
