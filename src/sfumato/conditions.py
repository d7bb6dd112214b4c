"""Conditions as users give them, by name, number or index, in the form that models hear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato.compose import NULL
from sfumato.errors import SfumatoError
from sfumato.model import Model


def indices(model: Model, cond: dict[str, Any], n: int) -> dict[str, Tensor]:
    """Labels as int64 (n,): names or numbers as a user spells them, or a tensor of indices; -1 is the null class."""
    out = {}
    for name, value in cond.items():
        if value is None:
            continue
        if isinstance(value, Tensor):
            labels = _checked(model, value.reshape(-1))
        else:
            many = not isinstance(value, str) and (isinstance(value, Sequence) or getattr(value, "ndim", 0) > 0)
            labels = torch.tensor([_index_of(model, v) for v in (value if many else [value])])
        if len(labels) not in (1, n):
            raise SfumatoError(
                f"The condition {name!r} has {len(labels)} values for {n} samples: give one, or one each."
            )
        out[name] = labels.expand(n).clone()
    return out


def _index_of(model: Model, value: Any) -> int:
    spec = getattr(model, "spec", None)
    return int(value) if spec is None or value == NULL else spec.class_index(value)


def _checked(model: Model, labels: Tensor) -> Tensor:
    spec = getattr(model, "spec", None)
    if spec is not None and bool(((labels < NULL) | (labels >= len(spec.classes))).any()):
        raise SfumatoError(f"A tensor of labels holds indices from {NULL} (none) to {len(spec.classes) - 1}.")
    return labels.long()
