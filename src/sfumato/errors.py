"""The exception for user mistakes, the warning for likely ones, and suggestions."""

import errno
import math
import operator
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

_BEYOND = 2**63  # what torch counts by
# control characters, marks that turn or hide text, separators of lines, bytes of names that are not UTF-8
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


class SfumatoError(ValueError):
    """A user's mistake. The message is one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2. Names in it are `shown`.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shown(str(message)))


class SfumatoWarning(UserWarning):
    """A warning about a result that is computed nevertheless; the command line prints it as a note."""

    def __init__(self, message: object = "") -> None:
        super().__init__(shown(str(message)))


def shown(line: str) -> str:
    r"""A line of text for a terminal: what would steer it, hide or turn text, or end the line is escaped, \x1b."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


def counted(number: float, one: str, many: str = "") -> str:
    """A number with the words for one or for many, by default `one` and an s: 1 file, 2 files, 0.5 minutes."""
    return f"{number:{'g' if isinstance(number, float) else ','}} {one if number == 1 else many or one + 's'}"


def an(name: str) -> str:
    """A name with its article as it is spoken: an Energy, a UNet, an MLP."""
    vowels = "AEFHILMNORSX" if name[:2].isupper() else "AEIOaeio"  # by letters, or as a word
    un = name[:2].lower() == "un" and name[:3].lower() not in ("une", "uni")  # an unCLIP, a UNet, a Uniform
    return f"{'an' if un or name[:1] in vowels else 'a'} {name}"


def finite(name: str, value: Any) -> float:
    """A finite number. Raises SfumatoError, with the name of the setting, for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise SfumatoError(f"{name} is a finite number, not {value!r:.80}")
    return found


def suggest(word: Any, known: Iterable[str]) -> str:
    """A suggestion for a wrong word: the closest known one, ignoring dashes and capitals, or all of them."""
    word, known = str(word), list(known)
    spellings = (word, word.lower(), word.replace("_", "-").lower(), word.replace("-", "_").lower())
    close = [found for spelling in spellings for found in get_close_matches(spelling, known, n=1)]
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."


def whole(name: str, value: Any, least: int | None = 1, most: int = _BEYOND - 1) -> int:
    """The value as an int; accepts integers of NumPy and torch. A count has a `least` value and is at most `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise SfumatoError(f"{name} must be a whole number, not {value!r:.80}.") from None
    if least is not None and number < least:
        raise SfumatoError(f"{name} must be at least {least}, not {number}.")
    if least is not None and number > most:
        raise SfumatoError(f"{name} must be {'below 2^63' if most == _BEYOND - 1 else f'at most {most:,}'}.")
    return number


def wholes(name: str, values: Any) -> tuple[int, ...]:
    """Several counts, each as `whole` has it. Raises SfumatoError for one alone and for none."""
    if not isinstance(values, Iterable) or isinstance(values, str) or not (found := tuple(values)):
        raise SfumatoError(f"{name} must be several whole numbers, such as (1, 2), not {values!r:.80}.")
    return tuple(whole(name, each) for each in found)


def place(value: Any, what: str) -> Path:
    """The user's path. Raises SfumatoError if it is not a path; what: a description of its target for the message."""
    if not isinstance(value, str | os.PathLike):
        raise SfumatoError(f"{what} must be a path, not {value!r:.80}.")
    text = os.fspath(value)
    if not text:
        raise SfumatoError(f"{what} has no name: its path is empty.")
    if "\0" in text:
        raise SfumatoError(f"{what} cannot have a NUL byte in its path: {text!r:.80}.")
    try:
        os.stat(text)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SfumatoError(f"{what} cannot have so long a name: {text!r:.80} ..") from None
    return Path(text).expanduser()
