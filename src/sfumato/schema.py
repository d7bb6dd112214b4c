"""Declared shapes of what files say, in JSON or YAML, checked once where it is read.

    SEEN = fields({"step": whole(0)}, {"loss": optional(number())})
    require(json_of(text, path), SEEN, path)     m.json: step: expected a whole number from 0 to 2^63 - 1, got "lots".

A check takes a value and the keys that lead to it, and raises SfumatoError for a value of another type or range. Keys
that are not declared are anything, of a bounded depth. Nothing is converted.
"""

from __future__ import annotations

import collections.abc
import inspect
import json
import math
import stat
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import SfumatoError

Check = Callable[[Any, str], None]
LARGEST = sys.float_info.max
COUNTED = 2**63 - 1  # what torch counts by
DEPTH = 64  # of lists and mappings within each other
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def require_plain(path: Path) -> None:
    """Raise SfumatoError for a pipe, a device or a socket, which may never end; a file that is missing is let through.

    Opening one waits, so what a user names is looked at before it is opened.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # the reader says why
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise SfumatoError(f"{path} is a pipe or a device, not a file: save its contents to a file, and give that.")


# -- text to values ---------------------------------------------------------------------------------------------------


def read_text(path: str | Path, most: int = 1 << 20) -> str:
    """The text of a regular file of at most `most` bytes, UTF-8. Raises SfumatoError that names the file."""
    path = Path(path)
    require_plain(path)
    try:
        found = path.stat()
        if found.st_size > most:
            raise SfumatoError(f"{path} has {found.st_size:,} bytes, more than the {most:,} that such a file may have.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SfumatoError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    except UnicodeDecodeError:
        raise SfumatoError(f"{path} is not text in UTF-8.") from None


def json_of(text: str | bytes, file: Any) -> Any:
    """The value of a JSON text, of a bounded depth, whose characters can be printed. Raises SfumatoError that names the
    file."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise SfumatoError(f"{file} is not valid JSON: {why}.") from None
    require(value, shallow, file)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        raise SfumatoError(f"{file} holds halves of characters, which are no text.") from None
    return value


def require(value: Any, check: Check, file: Any) -> None:
    """Raise SfumatoError, which names the file and the key, unless the value passes the check."""
    try:
        check(value, "")
    except SfumatoError as error:
        raise SfumatoError(f"{file}: {error}") from None


def require_utf8(value: Any) -> None:
    """Raise SfumatoError for keys or texts that are not UTF-8, such as names of files in another encoding: a file that
    holds one could not be read again."""
    for pair in leaves(value):
        for each in pair:
            try:
                str(each).encode()
            except UnicodeEncodeError:
                raise SfumatoError(
                    f"{each} is not a name in UTF-8, as the files written here need: rename it."
                ) from None


def leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """(its keys, joined by dots; value) of everything in lists and mappings that is neither of them."""
    todo = [("", value)]
    while todo:
        where, value = todo.pop()
        if isinstance(value, Mapping):
            todo += [(_inside(where, key), each) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            todo += [(_inside(where, i), each) for i, each in enumerate(value)]
        else:
            yield where, value


# -- checks -----------------------------------------------------------------------------------------------------------


def _inside(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else f"{key}"


def refuse(where: str, wanted: str, value: Any) -> typing.NoReturn:
    """Raise SfumatoError for a value that is not what was wanted."""
    if isinstance(value, Mapping | list | tuple):
        got = f"a {'mapping' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    else:
        got = f"{value!r:.60}"
    raise SfumatoError(f"{where + ': ' if where else ''}expected {wanted}, got {got}.")


def shallow(value: Any, where: str) -> None:
    """Anything, of a bounded depth."""
    depth, level = 0, [value]
    while level:
        if depth > DEPTH:
            raise SfumatoError(f"its lists and mappings are nested too deep, more than {DEPTH} levels.")
        depth += 1
        inner = [each.values() if isinstance(each, Mapping) else each for each in level if _holds(each)]
        level = [each for values in inner for each in values]


def _holds(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def anything(value: Any, where: str) -> None:
    """No check: what the value is has been said elsewhere, or nothing depends on it."""


def figure(value: Any, where: str) -> None:
    """A number, which may be infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(where, "a number", value)
    if isinstance(value, int) and abs(value) > LARGEST:
        refuse(where, "a number that a float can hold", value)


def number(low: float = -LARGEST, high: float = LARGEST) -> Check:
    """A number from low to high, never NaN; by default any that is finite."""
    limits = (f" from {low:g}" if low > -LARGEST else "") + (f" to {high:g}" if high < LARGEST else "")
    wanted = f"a {'' if high == math.inf else 'finite '}number{limits}"

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            refuse(where, wanted, value)

    return check


def whole(low: int = -COUNTED, high: int = COUNTED) -> Check:
    """A whole number from low to high."""
    limits = f" from {low} to {'2^63 - 1' if high == COUNTED else f'{high:,}'}" if low > -COUNTED else ""

    def check(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            refuse(where, f"a whole number{limits}", value)

    return check


def text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        refuse(where, "text", value)


def flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        refuse(where, "true or false", value)


def choice(*words: str) -> Check:
    """One of the words."""

    def check(value: Any, where: str) -> None:
        if value not in words:
            refuse(where, f"one of {', '.join(words)}", value)

    return check


def optional(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def either(wanted: str, *checks: Check) -> Check:
    """What passes one of the checks; wanted: all of them in words."""

    def any_of(value: Any, where: str) -> None:
        for check in checks:
            try:
                return check(value, where)
            except SfumatoError:
                continue
        refuse(where, wanted, value)

    return any_of


def listed(check: Check, least: int = 0, most: int = COUNTED) -> Check:
    """A list of values that each pass the check."""
    wanted = f"a list of {least}" if least == most else f"a list of {least} or more" if least else "a list"
    if least < most < COUNTED:
        wanted = f"a list of {least} to {most:,}"

    def each(value: Any, where: str) -> None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            refuse(where, wanted, value)
        for i, one in enumerate(value):
            check(one, _inside(where, i))

    return each


def mapping(check: Check) -> Check:
    """A mapping whose values each pass the check; its keys are text."""

    def each(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            refuse(where, "a mapping", value)
        for key, one in value.items():
            text(key, _inside(where, "keys"))
            check(one, _inside(where, key))

    return each


def fields(
    needed: Mapping[str, Check], known: Mapping[str, Check] | None = None, rest: Check | None = anything
) -> Check:
    """A mapping with the keys `needed` and perhaps those `known`; others pass `rest`, or are refused if it is None."""
    declared = {**needed, **(known or {})}

    def each(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            refuse(where, "a mapping", value)
        for key in needed:
            if key not in value:
                raise SfumatoError(f"{where + ': ' if where else ''}the key {key!r} is missing.")
        for key, one in value.items():
            check = declared.get(key, rest)
            if check is None:
                raise SfumatoError(f"{where + ': ' if where else ''}there is no key {str(key)[:60]!r}.")
            check(one, _inside(where, key))

    return each


# -- checks from signatures -------------------------------------------------------------------------------------------


def of_signature(maker: Any) -> dict[str, Check]:
    """Argument -> the check that its annotation asks for, of plain values of JSON alone."""
    try:
        hints = typing.get_type_hints(getattr(maker, "__init__") if isinstance(maker, type) else maker)  # noqa: B009
    except (NameError, TypeError, AttributeError):  # names known to type checkers alone
        hints = {}
    parameters = inspect.signature(maker).parameters.values()
    return {p.name: of_hint(hints[p.name]) for p in parameters if p.name in hints and p.kind not in _MANY}


def of_hint(hint: Any) -> Check:
    """The check for int, float, str, bool, None, and for sequences, mappings and unions of them."""
    plain: dict[Any, Check] = {int: whole(), float: number(-math.inf, math.inf), str: text, bool: flag}
    if hint in plain:
        return plain[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        checks = [of_hint(each) for each in inner if each is not type(None)]
        found = checks[0] if len(checks) == 1 else either(f"{hint}".replace("collections.abc.", ""), *checks)
        return optional(found) if type(None) in inner else found
    if origin is tuple and inner[-1:] != (...,):
        return listed(of_hint(inner[0]), len(inner), len(inner)) if len(set(inner)) == 1 else listed(anything)
    if origin in (tuple, list, collections.abc.Sequence) and inner:
        return listed(of_hint(inner[0]))
    if origin in (dict, collections.abc.Mapping) and inner:
        return mapping(of_hint(inner[1]))
    return anything
