"""Labels and metadata as JSON text, which is somebody else's: how deep, how long and in which characters is checked."""

from __future__ import annotations

import json
from typing import Any

_DEEPEST = 32  # lists and objects within each other


def read_json(text: str) -> Any:
    """The value of a JSON text.

    Raises ValueError for a text that is no JSON, for one nested deeper than 32 levels, for numbers of thousands of
    digits and for halves of characters, which cannot be printed.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    _check(value, _DEEPEST)
    return value


def _check(value: Any, levels: int) -> None:
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list):
        if not levels:
            raise ValueError("it is nested too deep")
        for each in [*value, *value.values()] if isinstance(value, dict) else value:
            _check(each, levels - 1)
