"""The named schedules, and the way back from a file's description of one."""

from __future__ import annotations

from typing import Any

from sfumato.errors import SfumatoError
from sfumato.schedule import Schedule
from sfumato.schedules.derived import FromBetas, FromFunction, Shifted, Tabulated
from sfumato.schedules.laws import Cauchy, Laplace
from sfumato.schedules.paths import EDM, VE, Cosine, Flow, LinearBeta, LogLinear, Sigmoid, SubVP, Trig
from sfumato.schedules.terminal import ZeroTerminalSNR, zero_terminal_snr

__all__ = [
    "EDM", "VE", "Cauchy", "Cosine", "Flow", "FromBetas", "FromFunction", "Laplace", "LinearBeta", "LogLinear",
    "Schedule", "Shifted", "Sigmoid", "SubVP", "Tabulated", "Trig", "ZeroTerminalSNR", "from_config", "named",
    "zero_terminal_snr",
]  # fmt: skip


def named() -> dict[str, type[Schedule]]:
    """Every schedule that a file may name."""
    return {
        c.__name__: c
        for c in (
            LinearBeta, SubVP, Cosine, Trig, Flow, VE, EDM, LogLinear, Laplace, Cauchy, Sigmoid, Shifted, FromBetas,
            Tabulated, ZeroTerminalSNR,
        )
    }  # fmt: skip


def from_config(config: dict[str, Any]) -> Schedule:
    """The schedule that `config()` described."""
    known = named()
    if config.get("name") not in known:
        raise SfumatoError(f"Unknown schedule {config.get('name')!r}: known are {', '.join(sorted(known))}.")
    args = {
        k: from_config(v) if isinstance(v, dict) else tuple(v) if isinstance(v, list) else v
        for k, v in config.get("args", {}).items()
    }
    try:
        return known[config["name"]](**args)
    except TypeError as error:
        raise SfumatoError(f"The schedule {config['name']} does not take these arguments: {error}.") from None
