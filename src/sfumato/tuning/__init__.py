"""Fit plans to a model."""

from sfumato.tuning.study import TuneProgress
from sfumato.tuning.tuner import tune

__all__ = ["TuneProgress", "tune"]
