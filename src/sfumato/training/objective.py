"""Names of the settings -> the objects that they name."""

from __future__ import annotations

from sfumato.objectives import Objective, times, weights
from sfumato.objectives.times import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.schedule import schedule_of as schedule_of
from sfumato.training.config import TrainConfig


def times_of(name: str) -> TimeDensity:
    """That of a name, or of a name with numbers such as mode(s=0.8)."""
    return times.named(name)


def weight_of(name: str) -> Weight | None:
    """That of a name, or of a name with numbers such as sigmoid(bias=-2); None is the target's plain squared error."""
    return None if name == "plain" else weights.named(name)


def objective_of(config: TrainConfig) -> Objective:
    """What the settings of a run train for."""
    schedule, times, weight = schedule_of(config.schedule), times_of(config.times), weight_of(config.weight)
    return Objective(schedule, config.target, times, weight)
