"""The forms of flags and arguments of `argparse` (`parse`), from which the commands' own are made. No torch here."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple


class Flag(NamedTuple):
    """The arguments of `add_argument`, and the flag's group in the help."""

    names: tuple[str, ...]
    how: dict[str, Any]
    group: str = "options"


class Command(NamedTuple):
    about: str
    flags: Sequence[Flag]


def flag(name: str, takes: Any, words: str, default: Any = None, group: str = "options", **how: Any) -> Flag:
    """A flag, "-o --out", or an argument without dashes; the help mentions a default if there is one.

    takes: int, float, bool for a flag without a value, a tuple of choices, or the metavariable of a text.
    """
    if isinstance(takes, tuple):
        how["choices"] = takes
    elif takes is bool:
        how, default = {"action": "store_true", **how}, default or False
    elif takes in (int, float):
        kind, mark = (whole_number, "INT") if takes is int else (float, "FLOAT")
        how = {"type": kind, "metavar": mark, **how}
    else:
        how["metavar"] = takes
    if default is not False and default not in (None, "", []):
        words += f" (default: {default})"
    return Flag(tuple(name.split()), {"default": default, "help": words.replace("%", "%%"), **how}, group)


def whole_number(word: str) -> int:
    """The number that a word writes: 1000, 1_000 or 1e3. Raises ValueError if it is not whole."""
    try:
        return int(word)
    except ValueError:
        number = float(word)
    if not number.is_integer() or abs(number) >= 2**53:  # from there on a float skips whole numbers
        raise ValueError(word)
    return int(number)


whole_number.__name__ = "int"  # what argparse calls it in its messages


def whole_numbers(word: str) -> int | list[int]:
    """20, or each of 5,20,30."""
    found = [whole_number(each) for each in word.split(",")]
    return found if "," in word else found[0]


whole_numbers.__name__ = "int"


def scale_or_range(word: str) -> float | tuple[float, float]:
    """2.5, or the ends of 1:4."""
    low, colon, high = word.partition(":")
    return (float(low), float(high)) if colon else float(word)


scale_or_range.__name__ = "scale, 2.5, or range of scales, 1:4,"


def place(name: str, metavar: str, words: str, **how: Any) -> Flag:
    """An argument without dashes."""
    return flag(name, metavar, words, group="arguments", **how)


def several(
    mark: str, metavar: str, words: str, name: str = "--condition", empty: bool = False, **more: Any
) -> Flag:  # fmt: skip
    """A repeatable flag such as --condition: (text before the mark, text after it) for each use.

    empty: whether no text may follow.
    """

    def pair(word: str) -> tuple[str, str]:
        key, found, value = word.partition(mark) if mark == "=" else word.rpartition(mark)
        if not (found and key.strip() and (empty or value.strip())):
            raise argparse.ArgumentTypeError(f"must be {metavar}, not {word!r}")
        return key.strip(), value.strip()

    words += " Repeat it for more."
    return flag(name, metavar, words, action="append", type=pair, **more)


def seed(what: str) -> Flag:
    return flag("--seed", int, f"Seed of the {what}.", 0)
