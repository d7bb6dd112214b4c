"""What a model does at each noise level: fixed draws by level, gradient noise, the board that shows both."""

from sfumato.levels.judge import board
from sfumato.levels.table import Board

__all__ = ["Board", "board"]
