"""`--class` and `--condition`: what samples are known by, as a person writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.cli.parse import asked
from sfumato.conditions import Conditions, resolve
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.files import reason

LABEL = "label"


def said(options: Any, label: str | None = None) -> dict[str, str]:
    """Name -> value, as they were written; --class is the condition "label"."""
    given = asked(options.condition)
    if label is not None and given.setdefault(LABEL, label) != label:
        raise SfumatoError("--class and --condition label=... say two things: give one of them")
    return given


def conditions(given: Mapping[str, str], spec: DataSpec, n: int) -> Conditions:
    """What was written, for n samples: one value, or the .npy file of one or of one a sample."""
    if LABEL in given and LABEL not in spec.conditions:
        spec.class_index(given[LABEL])  # which says so
    return resolve(spec, {"cond": values(given)}, n)


def values(given: Mapping[str, str]) -> dict[str, Any]:
    """Texts, and the arrays of files that they name."""
    return {name: _value(text) for name, text in given.items()}


def in_turn(given: Conditions, spec: DataSpec, index: torch.Tensor) -> Conditions:
    """With all classes in turn, by the number of each sample, where no class was asked for."""
    if LABEL in given or not spec.classes:
        return given
    return Conditions({LABEL: index % len(spec.classes), **given})


def _value(text: str) -> Any:
    path = Path(text).expanduser()
    if path.suffix.lower() != ".npy":
        return text
    try:
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise SfumatoError(f"{text} cannot be read: {reason(error)}") from None
    except (ValueError, EOFError) as error:
        raise SfumatoError(f"{text} holds no array: {str(error).splitlines()[0]}") from None


def columns(given: Conditions, spec: DataSpec) -> dict[str, list[Any]]:
    """Name -> a value a sample, in the user's spelling and units, None where it was left open."""
    return {name: spec.conditions[name].decode(given.given(name)) for name in given}
