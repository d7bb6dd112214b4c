"""The named schedules, and the way back from a file's description of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sfumato.registry import Named
from sfumato.schedule import Schedule
from sfumato.schedules.derived import FromBetas, FromFunction, Kept, Shifted, Tabulated
from sfumato.schedules.laws import Cauchy, Laplace
from sfumato.schedules.paths import EDM, VE, Cosine, Flow, LinearBeta, LogLinear, Sigmoid, SubVP, Trig
from sfumato.schedules.terminal import ZeroTerminalSNR, zero_terminal_snr
from sfumato.trees import build

__all__ = [
    "EDM", "VE", "Cauchy", "Cosine", "Flow", "FromBetas", "FromFunction", "Kept", "Laplace", "LinearBeta", "LogLinear",
    "Schedule", "Shifted", "Sigmoid", "SubVP", "Tabulated", "Trig", "ZeroTerminalSNR", "from_config", "named",
    "zero_terminal_snr",
]  # fmt: skip


def named() -> dict[str, Callable[..., Schedule]]:
    """Every schedule of a file, by the name of its class."""
    return {getattr(make, "__name__", name): make for name, make in Named("schedule").items()}


def from_config(config: dict[str, Any]) -> Schedule:
    """The schedule that `config()` described."""
    found: Schedule = build({"args": {}, **config}, "schedule")
    return found
