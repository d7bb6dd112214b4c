"""Processes: how data of a kind is corrupted and restored."""

from sfumato.process.gaussian import Gaussian, from_config
from sfumato.process.uniform import Uniform

__all__ = ["Gaussian", "Uniform", "from_config"]
