"""Names with numbers, as settings and the command line spell them: `sigmoid`, `sigmoid(bias=-2)`, `p2(0.5, k=2)`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from sfumato.errors import SfumatoError, suggest

_Made = TypeVar("_Made")
_CALL = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*")


def called(word: str, known: Mapping[str, Callable[..., _Made]], what: str) -> _Made:
    """What `word` names in `known`, made with the numbers that stand in its parentheses.

    what: the kind of thing, for the SfumatoError of an unknown name, a wrong argument or one that is no number.
    """
    match = _CALL.fullmatch(word)
    name = match[1] if match else word
    if match is None or name not in known:
        raise SfumatoError(f"There is no {what} {name!r}: {suggest(name, known)}")
    numbers, named = [], {}
    for part in (match[2] or "").split(",") if match[2] else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if equals:
            named[key] = _number(value, word)
        else:
            numbers.append(_number(key, word))
    signature = inspect.signature(known[name])
    try:
        signature.bind(*numbers, **named)
    except TypeError:
        raise SfumatoError(f"{word} is not understood: {name} takes {_taken(name, signature)}.") from None
    return known[name](*numbers, **named)


def _number(text: str, word: str) -> float | int:
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        raise SfumatoError(f"{word} is not understood: {text!r} is not a number.") from None


def _taken(name: str, signature: inspect.Signature) -> str:
    known = {key: p.default for key, p in signature.parameters.items() if isinstance(p.default, float | int)}
    if not known:
        return "no numbers"
    return f"{', '.join(known)}, as in {name}({', '.join(f'{key}={value:g}' for key, value in known.items())})"
