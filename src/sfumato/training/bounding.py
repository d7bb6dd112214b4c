"""Where the variational bound was before it had a name."""

from sfumato.objectives.losses import VariationalBound as Bounding

__all__ = ["Bounding"]
