"""Names of the settings -> the objects that they name."""

from __future__ import annotations

import math

from sfumato import schedules
from sfumato.objectives import times, weights
from sfumato.objectives.times import TimeDensity
from sfumato.objectives.weights import Weight
from sfumato.schedule import Schedule
from sfumato.training.config import SCHEDULES

# EDM's figures are for data of standard deviation 0.5; here it is 1, which moves ln(sigma/alpha) by ln 2.
_EDM_MEAN, _EDM_STD = -1.2 + math.log(2), 1.2


def schedule_of(name: str) -> Schedule:
    return schedules.named()[SCHEDULES[name]]()


def times_of(name: str) -> TimeDensity:
    return {
        "uniform": times.uniform,
        "uniform-logsnr": times.uniform_logsnr,
        "logit-normal": times.logit_normal,
        "edm": lambda: times.edm(_EDM_MEAN, _EDM_STD),
    }[name]()


def weight_of(name: str) -> Weight | None:
    """None is the plain squared error of the target."""
    if name == "plain":
        return None
    if name == "edm":
        return weights.edm(1.0, _EDM_MEAN, _EDM_STD)
    return {
        "elbo": weights.elbo, "eps-simple": weights.eps_simple, "v": weights.v, "flow": weights.flow,
        "x-simple": weights.x_simple, "sigmoid": weights.sigmoid,
    }[name]()  # fmt: skip
