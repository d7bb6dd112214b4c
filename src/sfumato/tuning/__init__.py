"""Plans fitted to a model."""

from sfumato.tuning.study import Progress
from sfumato.tuning.tuner import tune

__all__ = ["Progress", "tune"]
