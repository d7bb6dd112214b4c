"""The named noise schedules, and how to rebuild one from its config."""

from __future__ import annotations

from typing import Any

from sfumato.schedule import Schedule
from sfumato.schedules.derived import FromBetas, FromFunction, Kept, Shifted, Tabulated
from sfumato.schedules.laws import Cauchy, Laplace
from sfumato.schedules.paths import EDM, VE, Cosine, Flow, LinearBeta, LogLinear, Sigmoid, SubVP, Trig
from sfumato.schedules.terminal import ZeroTerminalSNR, zero_terminal_snr
from sfumato.trees import build

__all__ = [
    "EDM", "VE", "Cauchy", "Cosine", "Flow", "FromBetas", "FromFunction", "Kept", "Laplace", "LinearBeta", "LogLinear",
    "Schedule", "Shifted", "Sigmoid", "SubVP", "Tabulated", "Trig", "ZeroTerminalSNR", "from_config",
    "zero_terminal_snr",
]  # fmt: skip


def from_config(config: dict[str, Any]) -> Schedule:
    """The schedule with this config, as `Schedule.config()` returns it."""
    schedule: Schedule = build({"args": {}, **config}, "schedule")
    return schedule
