"""`translate`: from pictures or arrays of one kind to those of another, by a model of pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfumato import serialization
from sfumato.cli import conditions
from sfumato.cli.parse import parse
from sfumato.cli.run import Voice
from sfumato.cli.sample import draw, shown
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError

KEPT = ("out", "steps", "solver", "guidance", "seed", "batch", "weights", "device")  # flags that `sample` has, too


def translate(options: Any, voice: Voice) -> None:
    contract = serialization.read_contract(options.model)
    name = (contract["process"] or {}).get("args", {}).get("source")
    if name is None:
        raise SfumatoError(
            f"{options.model} has no source to translate: train one by `sfumato train DATA --from SOURCES`"
        )
    known = DataSpec.from_dict(contract["spec"]).conditions[name]
    given = np.asarray(conditions.values({name: options.input}, {name: known})[name])
    number = len(given) if given.ndim > len(known.config()["shape"]) else 1
    flags = {flag: value for flag in KEPT if (value := getattr(options, flag)) is not None}
    words = [options.model, f"--condition={name}={options.input}", f"--number={number}"]
    words += [f"--condition={key}={value}" for key, value in options.condition]
    asked = parse("sample", [*words, *(f"--{flag}={value}" for flag, value in flags.items())])
    made = draw(asked, voice.note, plain=True)
    voice.emit(made)
    voice.say(shown(made))
