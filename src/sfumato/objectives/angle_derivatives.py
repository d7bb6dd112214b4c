"""Derivatives of a flow map in the angle of one of its two times, by central differences or forward differentiation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sfumato import nets
from sfumato.belief import broadcast
from sfumato.errors import SfumatoError, suggest
from sfumato.process import Spectral
from sfumato.process.angles import angle, time, turn

WIDTH = 2e-3  # of a central difference in theta: the optimum in float32


@contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """The network computes in the precision of its weights: half precision leaves nothing of a small difference."""
    while hasattr(model, "inner"):
        model = model.inner
    before = getattr(model, "compute_dtype", None)
    if before is None:
        yield
        return
    model.compute_dtype = None
    try:
        yield
    finally:
        model.compute_dtype = before


WAYS = ("difference", "jvp")


def way_named(by: str) -> str:
    if by not in WAYS:
        raise SfumatoError(f"Unknown way {by!r} of a derivative: {suggest(by, WAYS)}")
    return by


def derivative(
    model: Any, theta: Tensor, at: Callable[[Tensor], Tensor], by: str = "difference", width: float = WIDTH
) -> Tensor:
    """d at(t) / dtheta at the angles theta (B,), in float32, whatever training computes in.

    by: "difference", a central difference from theta - width to theta + width, which every network has, agrees with the
    Jacobian-vector product to 1e-3 and costs half; "jvp", that product, by `torch.func.jvp`.
    """
    process = model.process
    with _in_float32(model):
        if by == "jvp":
            return _product(process, time(process, theta), at)
        low, high = (time(process, theta + h) for h in (-width, width))
        change = at(high) - at(low)
    return change / broadcast(angle(process, high) - angle(process, low), change)


def turning(model: Any, theta: Tensor, by: str) -> Tensor:
    """d turn / d angle at these angles, as `derivative` has it: 1 but of coefficients, which turn by their own."""
    if not isinstance(model.process, Spectral):
        return torch.ones_like(theta)
    return derivative(model, theta, lambda t: turn(model.process, t), by)


def _product(process: Any, t: Tensor, at: Callable[[Tensor], Tensor]) -> Tensor:
    """(d at / dt) / (d theta / dt) by forward differentiation, without a derivative of the schedule's inverse."""
    with nets.forward_mode():
        both: Any = torch.func.jvp(lambda t: (at(t), angle(process, t)), (t,), (torch.ones_like(t),))
    change, turn = both[1]
    found: Tensor = change / broadcast(turn, change)
    return found
