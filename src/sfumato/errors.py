"""The exception that a user's mistake raises, the warning where one is likely, and words that help after it."""

import operator
import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class SfumatoError(ValueError):
    """A mistake of the user's, said in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


class SfumatoWarning(UserWarning):
    """What a user should know of a result that is made all the same; the command line says it as a note."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Words that help after a wrong one, however it spells its dashes: the nearest known, or all of them."""
    known = list(known)
    spellings = (word, word.lower(), word.replace("_", "-").lower(), word.replace("-", "_").lower())
    close = [found for spelling in spellings for found in get_close_matches(spelling, known, n=1)]
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """The value as an int, of at least `least` where that is given; those of NumPy and torch are as good."""
    try:
        number = operator.index(value)
    except TypeError:
        raise SfumatoError(f"{name} is a whole number, not {value!r:.80}.") from None
    if least is not None and number < least:
        raise SfumatoError(f"{name} must be at least {least}, not {number}.")
    return number


def place(value: Any, what: str) -> Path:
    """A path of the user's; what: the thing that it leads to, for the sentence where it is none."""
    if not isinstance(value, str | os.PathLike):
        raise SfumatoError(f"{what} is given by its path, not by {value!r:.80}.")
    return Path(os.fspath(value)).expanduser()
