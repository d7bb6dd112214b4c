"""Missing values of samples: a mask that travels beside the conditions of a batch, 1 where a value is missing.

    x = 0 where missing, so that z = sigma eps there;   the network gets the mask, too;   no mask means a whole sample
    error of a sample = D / n * sum of the errors of its n present values, of D

The optimum is then E[x | the present part of z] for each mask, and that of whole samples for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .given import Conditions, Given

MISSING = "missing_values"


def without_gaps(x: Tensor, cond: Conditions) -> tuple[Tensor, Conditions]:
    """(x (B, *shape) with 0 for NaN, the conditions with the mask of NaN); x is normalised."""
    gaps = x.isnan()
    mask = Given(gaps.to(x.dtype), torch.ones(len(x), dtype=torch.bool, device=x.device))
    return x.masked_fill(gaps, 0.0), Conditions({**named(cond), MISSING: mask})


def named(cond: Conditions) -> Conditions:
    """The conditions without the mask of missing values."""
    return Conditions({name: cond.given(name) for name in cond if name != MISSING})


def present(cond: Mapping[str, Any]) -> Tensor | None:
    """1 where the values of a batch (B, *shape) are present, 0 where they are missing; None without a mask."""
    return 1 - Given.of(cond[MISSING]).values if MISSING in cond else None


def over_present(errors: Tensor, here: Tensor | None) -> Tensor:
    """Errors (B, *shape) scaled by D / n, 0 where missing: a sample has the sum and mean of its present values.

    A sample without any value has errors 0.
    """
    if here is None:
        return errors
    number = here.flatten(1).sum(1).clamp_min(1)
    return errors * here * (here[0].numel() / number).reshape(-1, *(1,) * (errors.ndim - 1))
