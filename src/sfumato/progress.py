"""Long work that is counted, and told to whoever listens: pictures that are decoded, archives that are walked.

    with heard(listener):                                     # a command or a run, on behalf of a person
        with counting("Decoding pictures", 5000) as count:    # wherever the work is done
            count()                                           # one more

Nothing is told of the first two seconds, so that what is quick stays silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TextIO, final

SILENT_SECONDS = 2.0  # of a piece of work, before anything is told
QUIET_SECONDS = 10.0  # between plain lines, where nothing is watching live
_LIVE_SECONDS = 0.2  # between what listeners are told


@dataclass(frozen=True)
class Count:
    """How far a piece of work is: `done` of `total` (None where that is not known) after so many seconds.

    over: whether this is the last of it, be it finished or broken off.
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


Listener = Callable[[Count], None]
_listener: ContextVar[Listener | None] = ContextVar("sfumato.progress", default=None)


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """Within the block, what is counted is told to this listener and to no other."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def counting(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Within the block count(n = 1) says that n more are done; to be called by one thread."""
    tally = _Tally(what, total, _listener.get())
    try:
        yield tally.add
    finally:
        tally.close()


@final
class _Tally:
    def __init__(self, what: str, total: int | None, listener: Listener | None) -> None:
        self._what, self._total, self._listener = what, total, listener
        self._done, self._start, self._told = 0, time.monotonic(), 0.0

    def add(self, more: int = 1) -> None:
        self._done += more
        now = time.monotonic()
        if now - self._start >= SILENT_SECONDS and now - self._told >= _LIVE_SECONDS:
            self._told = now
            self._tell(now)

    def close(self) -> None:
        if self._told:
            self._tell(time.monotonic(), over=True)

    def _tell(self, now: float, over: bool = False) -> None:
        if self._listener is not None:
            self._listener(Count(self._what, self._done, self._total, now - self._start, over))


@final
class Pace:
    """Which counts are worth a line that stays: the first of a piece of work, one every ten seconds, and the last."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, count: Count) -> bool:
        now = time.monotonic()
        due = count.over or now - self._last >= QUIET_SECONDS
        self._last = 0.0 if count.over else now if due else self._last
        return due


@final
class Drawn:
    """Counts for a person: a bar that goes when the work is over on a terminal, otherwise plain lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._live, self._pace = stream, stream.isatty(), Pace()
        self._bar: Any = None

    def __call__(self, count: Count) -> None:
        if self._live:
            self._draw(count)
        elif self._pace(count):
            print(count, file=self._stream, flush=True)

    def _draw(self, count: Count) -> None:
        if self._bar is None:
            from tqdm import tqdm

            shape = "{desc}" if count.total is None else "{percentage:3.0f}% |{bar}| {desc}"
            self._bar = tqdm(
                total=count.total, initial=count.done, desc=str(count), bar_format=shape, file=self._stream,
                dynamic_ncols=True, mininterval=0, leave=False,
            )  # fmt: skip
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
