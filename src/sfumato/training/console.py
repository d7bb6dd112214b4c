"""A progress bar and notes for whoever watches a run; the loop itself prints nothing."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, TextIO

from sfumato.diagnostics.triples import Triples, trend
from sfumato.diagnostics.validation import Validation
from sfumato.errors import shown
from sfumato.intervals import Interval
from sfumato.progress import QUIET_SECONDS, CountBar, Listener, clock
from sfumato.streams import lasting
from sfumato.training.loop import Progress


class Console:
    """Shows a progress bar on a terminal, otherwise a plain line every ten seconds; notes are lines in both."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = lasting(stream or sys.stderr)  # a run does not end with its terminal
        self._live = self.stream.isatty()
        self.count: Listener | None = CountBar(self.stream)  # progress of the work before the first step
        self._bar: Any = None
        self._last, self._norm, self._wait = 0.0, 0.0, 0.0
        self._loss: float | None = None
        self._valid = ""
        self._triples: Triples | None = None

    def note(self, text: str) -> None:
        """Print one line."""
        if self._bar is not None:
            self._bar.write(shown(text), file=self.stream)
        else:
            print(shown(text), file=self.stream, flush=True)

    def __call__(self, progress: Progress) -> None:
        if progress.loss is not None:
            self._loss, self._norm = progress.loss, progress.grad_norm or 0.0
        if progress.data_wait is not None:
            self._wait = progress.data_wait
        if progress.validation is not None:
            self._valid = self._validated(progress.validation)
        if self._live:
            self._draw(progress)
        elif progress.done or (self._loss is not None and time.monotonic() - self._last >= QUIET_SECONDS):
            self._last = time.monotonic()
            done = f"step {progress.step:,}  {progress.fraction:4.0%}"
            self.note(f"{done}  {self._figures(progress)}  eta {clock(progress.eta)}")

    def _figures(self, progress: Progress) -> str:
        loss = "" if self._loss is None else f"loss {self._loss:.4f}{self._valid}  grad {self._norm:.2f}  "
        return f"{loss}{progress.rate:,.0f} samples/s  data-wait {self._wait:.0%}"

    def _validated(self, validation: Validation) -> str:
        """The hold-out loss, half the width of its interval, the trend since the previous validation, and the first of
        further figures: a line has no room for all."""
        first = list(validation.further.items())[:1]
        further = "".join(f"  {name} {each.value:.3g}{_half(each)}" for name, each in first)
        now, before = validation.triples, self._triples
        if now is None:
            return f"  valid {validation.best:.4f}{further}"
        self._triples = now
        change = None if before is None else now.change(before)
        since = "" if change is None else f" {trend(change)}"
        return f"  valid {validation.best:.4f}{_half(now.interval())}{since}{further}"

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            from tqdm import tqdm

            shape = "{percentage:3.0f}% |{bar}| {postfix}"
            self._bar = tqdm(total=1.0, bar_format=shape, file=self.stream, dynamic_ncols=True, mininterval=0.2)
        self._bar.set_postfix_str(
            f"step {progress.step:,}  {self._figures(progress)}  eta {clock(progress.eta)}", refresh=False
        )
        self._bar.update(progress.fraction - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._loss, self._valid, self._triples = None, "", None  # another stage may follow, which has its own


def _half(interval: Interval) -> str:
    """Half the width of an interval, if it is finite."""
    return f"±{interval.half:.2g}" if math.isfinite(interval.half) else ""


class Silent(Console):
    """Prints nothing."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.count = None

    def note(self, text: str) -> None:
        pass

    def __call__(self, progress: Progress) -> None:
        pass
