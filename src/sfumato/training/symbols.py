"""Where the bound of symbols was before it had a name."""

from sfumato.objectives.losses import Nonequilibrium as symbols

__all__ = ["symbols"]
