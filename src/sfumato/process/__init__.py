"""Processes: how data of a kind is corrupted and restored."""

from sfumato.process.gaussian import Gaussian, from_config

__all__ = ["Gaussian", "from_config"]
