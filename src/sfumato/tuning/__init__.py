"""Plans fitted to a model."""

from sfumato.tuning.tuner import Progress, tune

__all__ = ["Progress", "tune"]
