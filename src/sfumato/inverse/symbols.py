"""Samples of masked symbols of which some are known: these stay, and the others start as masks.

p(x | x_known),   exact for an exact model whose masks are revealed one a call (`solvers.Reveal`)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.inverse.operators import Mask, Operator
from sfumato.sampling import sample
from sfumato.solvers.reveal import Reveal

MOST_CALLS = 64  # of the default: beyond, several symbols are revealed in one


def filled(
    model: Any, y: Any, operator: Operator, noise: Any, n: int, steps: int | None, solver: Any, how: dict[str, Any]
) -> tuple[Tensor, int]:
    """(n samples around what is known, steps). how: further arguments of `sf.sample`.

    SfumatoError unless the operator is a mask without noise of symbols that the model has.
    """
    z = _known(model, y, operator, noise)
    masks = z == model.process.mask
    if not bool(masks.any()):
        raise SfumatoError("All symbols are known: leave one out of the mask.")
    steps = min(MOST_CALLS, int(masks.sum())) if steps is None else steps
    start = float(model.process.time(masks.double().mean()))
    n = n if how["index"] is None else len(how["index"])
    rows = z.expand(n, *z.shape).clone()
    return sample(model, n, steps, Reveal() if solver is None else solver, z=rows, t_start=start, **how), steps


def _known(model: Any, y: Any, operator: Operator, noise: Any) -> Tensor:
    """The symbols that are known, and masks in the place of the others, int64 (*shape)."""
    if not isinstance(operator, Mask) or bool((torch.as_tensor(noise) != 0).any()):
        raise SfumatoError("A symbol is known or not: the operator for this model is a Mask, and the noise 0.")
    process, shape = model.process, tuple(model.shape)
    known = operator.whole(shape)
    values = operator.observed(torch.as_tensor(y))
    if values.shape != (int(known.sum()),) or bool((values != values.long()).any() | (values < 0).any()):
        raise SfumatoError(f"The measurement is a sample of shape {shape}, or the {int(known.sum())} symbols of it.")
    if int(values.max()) >= process.states:
        raise SfumatoError(f"The measurement has the symbol {int(values.max())}, and the model knows {process.states}.")
    z = torch.full(shape, process.mask)
    z[known] = values.long()
    return z
