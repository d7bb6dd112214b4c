"""Suggest commands to run next: example values of a model's conditions, as command-line flags and as Python."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import Any

from sfumato import registry
from sfumato.conditions import Condition, Label, MultiLabel, Scalar, Text, Vector
from sfumato.data import DataSpec

_LONGEST = 4  # longest vector worth typing


def default_guidance(given: Mapping[str, Condition], scale: float) -> float | dict[str, float] | None:
    """The default guidance: this scale for labels, sets of labels and texts; None without any, or for the scale 1.

    Guidance narrows the law of the samples, which nobody expects who conditions on, say, a temperature. Numbers and
    fields are therefore not guided.
    """
    named = [name for name, each in given.items() if isinstance(each, Label | MultiLabel | Text)]
    if not named or scale == 1:
        return None
    return scale if len(named) == len(given) else dict.fromkeys(named, scale)


def values(spec: Mapping[str, Any] | None) -> dict[str, Any]:
    """An example value of each condition short enough to type, by name; spec: as stored in a model file."""
    found: dict[str, Any] = {}
    for name, condition in _conditions(spec).items():
        if isinstance(condition, Label | MultiLabel):
            names = condition.classes if isinstance(condition, Label) else condition.names
            found[name] = next((one for one in names if one.isalnum()), names[0])
        elif isinstance(condition, Text):
            found[name] = condition.example
        elif isinstance(condition, Scalar | Vector) and len(condition.low) <= _LONGEST:
            numbers = [float(f"{mean:.3g}") for mean in condition.normaliser.mean]
            found[name] = numbers if condition.shape else numbers[0]
    return found


def flags(spec: Mapping[str, Any] | None, guidance: float) -> str:
    """Flags such as `--class cat --guidance 2.5` or `--condition temperature=300`; empty without conditions."""
    words: list[str] = []
    for name, value in values(spec).items():
        text = ",".join(f"{number:g}" for number in value) if isinstance(value, list) else str(value)
        text = f"{value:g}" if isinstance(value, float) else text
        words.append(f" --class {shlex.quote(text)}" if name == "label" and isinstance(value, str)
                     else f" --condition {shlex.quote(f'{name}={text}')}")  # fmt: skip
    if isinstance(default_guidance(_conditions(spec), float(guidance)), float):
        words.append(f" --guidance {guidance:g}")
    return "".join(words)


def modules(facts: Mapping[str, Any] | None = None) -> str:
    """A flag such as ` --modules my_parts.py`, for the user's files that this process has loaded; empty if none.

    facts: contract of a model file; if its network comes from a file that is not loaded, the flag is ` --modules FILE`.
    """
    if registry.FILES:
        return f" --modules {shlex.quote(','.join(registry.FILES))}"
    net = (facts or {}).get("net")
    return " --modules FILE" if net and not registry.ships("network", net["name"]) else ""


def _conditions(spec: Mapping[str, Any] | None) -> Mapping[str, Condition]:
    return DataSpec.from_dict(spec).conditions if spec else {}


def python(spec: Mapping[str, Any] | None, guidance: float, model: str, taken: Collection[str]) -> str:
    """A call of `sf.sample` with example conditions; taken: names of its own arguments."""
    given = values(spec)
    if not given:
        return f"sf.sample({model}, 64)"
    apart = {name: value for name, value in given.items() if name in taken or not name.isidentifier()}
    words = [f"{name}={value!r}" for name, value in given.items() if name not in apart]
    words += [f"cond={apart!r}"] if apart else []
    scale = default_guidance({name: each for name, each in _conditions(spec).items() if name in given}, float(guidance))
    model = model if scale is None else f"sf.guide({model}, {scale!r})"
    return f"sf.sample({model}, 64, {', '.join(words)})"


_USES = {
    "Codec": "y = model.encode(x); x = model.decode(y)",
    "CouplingFlow": "x = sf.sample(model, 64); nats = model.log_prob(z)",
}


def without_samples(model: str, facts: Mapping[str, Any]) -> str | None:
    """Python code that uses a model that `sf.sample` does not take, such as an autoencoder; None for other models."""
    if facts["process"] is not None or facts["model"]["name"] == "Autoregressive":
        return None
    use = _USES.get(facts["model"]["name"], "x = model(z)")
    return f"import sfumato as sf; model = sf.load({model!r}); {use}"
