"""The exception that a user's mistake raises, the warning where one is likely, and words that help after it."""

from collections.abc import Iterable
from difflib import get_close_matches


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
