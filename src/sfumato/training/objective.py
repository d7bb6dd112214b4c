"""Names of the settings -> the objects that they name."""

from __future__ import annotations

from sfumato import schedules
from sfumato.objectives import times, weights
from sfumato.objectives.times import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.schedule import Schedule
from sfumato.training.config import SCHEDULES


def schedule_of(name: str) -> Schedule:
    return schedules.named()[SCHEDULES[name]]()


def times_of(name: str) -> TimeDensity:
    return times.NAMED[name]()


def weight_of(name: str) -> Weight | None:
    """None is the plain squared error of the target."""
    return None if name == "plain" else weights.NAMED[name]()
