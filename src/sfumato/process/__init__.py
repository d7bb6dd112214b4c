"""Processes: how each kind of data is corrupted, and how a network's output about it is read."""

from __future__ import annotations

from typing import Any

from sfumato.process.gaussian import Gaussian
from sfumato.process.masked import Masked
from sfumato.process.product import Product
from sfumato.process.protocol import Process
from sfumato.process.symbols import Symbols
from sfumato.process.uniform import Uniform
from sfumato.trees import build

__all__ = ["Gaussian", "Masked", "Process", "Product", "Symbols", "Uniform", "from_config"]


def from_config(config: dict[str, Any]) -> Any:
    """The process with this config, as its `config()` returns it."""
    return build(config, "process")
