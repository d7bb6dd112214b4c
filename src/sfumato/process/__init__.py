"""Processes: how each kind of data is corrupted, and how a network's output about it is read."""

from __future__ import annotations

from typing import Any

from sfumato.process.bases import Basis, principal
from sfumato.process.counts import Counts
from sfumato.process.deletion import Deletion
from sfumato.process.discrete import Discrete
from sfumato.process.embedded import Embedded
from sfumato.process.gaussian import Additive, Gaussian
from sfumato.process.generator import Generator, Ladder, Rates
from sfumato.process.mixing import Hybrid, Marginal, Masked, Mixing, Uniform
from sfumato.process.paired import (
    Bridge,
    Interpolant,
    Paired,
    RectifiedFlow,
    added,
    given,
    heard,
    require_flow,
    source_of,
)
from sfumato.process.product import Product
from sfumato.process.protocol import Process
from sfumato.process.spectral import Blur, Coloured, Heat, Spectral, Subspace
from sfumato.process.symbols import Symbols
from sfumato.trees import build

__all__ = [
    "Additive", "Basis", "Blur", "Bridge", "Coloured", "Counts", "Deletion", "Discrete", "Embedded", "Gaussian",
    "Generator", "Heat", "Hybrid", "Interpolant", "Ladder", "Marginal", "Masked", "Mixing", "Paired", "Process",
    "Product", "Rates", "RectifiedFlow", "Spectral", "Subspace", "Symbols", "Uniform", "added", "from_config", "given",
    "heard", "principal", "require_flow", "source_of",
]  # fmt: skip


def from_config(config: dict[str, Any]) -> Any:
    """The process with this config, as its `config()` returns it."""
    return build(config, "process")
