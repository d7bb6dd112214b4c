"""Text streams that may lose their reader, for whatever has to outlive its terminal."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TextIO, cast


class Lasting:
    """A text stream that drops what cannot be written: its pipe or terminal was closed, or the disk of a log is full.

    lost: whether the last write failed. Every write is tried, since a disk may have room again.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self.lost = stream, stream is None

    def write(self, text: str) -> int:
        self.lost = True
        with suppress(OSError, ValueError, AttributeError):  # ValueError: closed; AttributeError: none, as after 2>&-
            self._stream.write(text)  # type: ignore[union-attr]
            self.lost = False
        return len(text)

    def flush(self) -> None:
        lost, self.lost = self.lost, True
        with suppress(OSError, ValueError, AttributeError):
            self._stream.flush()  # type: ignore[union-attr]
            self.lost = lost

    def isatty(self) -> bool:
        return not self.lost and cast(TextIO, self._stream).isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lasting(stream: TextIO | None) -> TextIO:
    """`stream`, or nothing if it is None, as one whose writes never fail."""
    return cast(TextIO, Lasting(stream))
