"""Plans fitted to a model."""

from sfumato.tuning.tune import Progress, tune

__all__ = ["Progress", "tune"]
