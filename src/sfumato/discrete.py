"""Names of an earlier release: a denoiser of symbols is a `Denoiser` whose process is `Uniform` or `Masked`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sfumato.model import Denoiser
from sfumato.process import Uniform


def DiscreteDenoiser(net: nn.Module, process: Uniform, spec: Any = None) -> Denoiser:  # noqa: N802
    """`Denoiser(net, process, spec=spec)`."""
    return Denoiser(net, process, spec=spec)


def net_shape(shape: Sequence[int], states: int) -> tuple[int, ...]:
    """`process.net_shape(shape)`: the shape of a network for samples (C, *spatial) of K symbols."""
    return (shape[0] * (1 if states == 2 else states), *shape[1:])
