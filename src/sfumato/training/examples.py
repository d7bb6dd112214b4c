"""One value of each condition of a model, as flags of the command line and as Python: what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import Any

from sfumato.conditions import Label, MultiLabel, Scalar, Vector
from sfumato.data import DataSpec

_LONGEST = 4  # numbers of a vector that are worth typing


def values(spec: Mapping[str, Any] | None) -> dict[str, Any]:
    """By name, in the user's spelling; spec: as a model file has it. What has no short spelling is left out."""
    found: dict[str, Any] = {}
    for name, condition in (DataSpec.from_dict(spec).conditions if spec else {}).items():
        if isinstance(condition, Label | MultiLabel):
            names = condition.classes if isinstance(condition, Label) else condition.names
            found[name] = next((one for one in names if one.isalnum()), names[0])
        elif isinstance(condition, Scalar | Vector) and len(condition.low) <= _LONGEST:
            numbers = [float(f"{mean:.3g}") for mean in condition.normaliser.mean]
            found[name] = numbers if condition.shape else numbers[0]
    return found


def flags(spec: Mapping[str, Any] | None, guidance: float) -> str:
    """ " --class cat --condition temperature=300 --guidance 2.5", or nothing for a model without conditions."""
    words = []
    for name, value in values(spec).items():
        text = ",".join(f"{number:g}" for number in value) if isinstance(value, list) else str(value)
        text = f"{value:g}" if isinstance(value, float) else text
        words.append(f" --class {shlex.quote(text)}" if name == "label" and isinstance(value, str)
                     else f" --condition {shlex.quote(f'{name}={text}')}")  # fmt: skip
    return "".join([*words, f" --guidance {guidance:g}"]) if words else ""


def python(spec: Mapping[str, Any] | None, guidance: float, model: str, taken: Collection[str]) -> str:
    """A call of `sf.sample` with these conditions; taken: names of its own arguments."""
    given = values(spec)
    if not given:
        return f"sf.sample({model}, 64)"
    apart = {name: value for name, value in given.items() if name in taken or not name.isidentifier()}
    words = [f"{name}={value!r}" for name, value in given.items() if name not in apart]
    words += [f"cond={apart!r}"] if apart else []
    return f"sf.sample(sf.guide({model}, {guidance:g}), 64, {', '.join(words)})"
