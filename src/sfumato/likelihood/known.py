"""log p(x) of models that know it exactly, in one call: symbols one after another, and vectors by a coupling flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfumato.autoregressive import Autoregressive
from sfumato.conditions import resolve
from sfumato.coupling_flow import CouplingFlow
from sfumato.errors import SfumatoError
from sfumato.likelihood.measured import Measured
from sfumato.state import samples

_ROWS = 512  # of a call


def known(
    model: Autoregressive | CouplingFlow, x: Any, method: str | None, steps: int | None, cond: Mapping[str, Any]
) -> Measured:  # fmt: skip
    """log p of x in user units: symbols (B, 1, L) of an autoregressive model, or vectors (B, D) of a coupling flow."""
    if steps is not None:
        what = "A coupling flow" if isinstance(model, CouplingFlow) else "An autoregressive model"
        raise SfumatoError(f"{what} has its exact log p in one call: leave steps out.")
    x = samples(x, "log_prob")
    if model.spec is not None:
        model.spec.check(x)
    return (
        _of_vectors(model, x, method, cond) if isinstance(model, CouplingFlow) else _of_symbols(model, x, method, cond)
    )


def _of_symbols(model: Autoregressive, x: Tensor, method: str | None, cond: Mapping[str, Any]) -> Measured:
    if method not in (None, "order"):
        raise SfumatoError(f"An autoregressive model has its exact log p, and no {method!r}: leave the method out.")
    return _exact(model, x, cond, "exact, autoregressive", "symbols")


def _of_vectors(model: CouplingFlow, x: Tensor, method: str | None, cond: Mapping[str, Any]) -> Measured:
    if method is not None:
        raise SfumatoError(f"A coupling flow has its exact log p, and no {method!r}: leave the method out.")
    if model.spec is None:
        return _exact(model, x, cond, "exact, coupling flow")
    if model.spec.discrete:
        raise SfumatoError("A coupling flow has a density, and the data are whole numbers: train it on floats.")
    z = model.spec.normalise(x.double())
    return _exact(model, z, cond, "exact, coupling flow").shifted(model.spec.log_jacobian(z))


def _exact(model: Any, x: Tensor, cond: Mapping[str, Any], words: str, dequantisation: str | None = None) -> Measured:
    """What the model says of x in its own units."""
    given, found = resolve(model, dict(cond), len(x)), []
    with torch.no_grad():
        for part in torch.arange(len(x)).split(_ROWS):
            found.append(model.log_prob(x[part].to(model.device), **given.rows(part).to(model.device)).double().cpu())
    value, size = torch.cat(found), x[0].numel()
    zero = torch.zeros_like(value)
    return Measured(value, zero, zero, None, None, None, words, size, 0, size, dequantisation)
