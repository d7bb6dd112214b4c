"""Runs side by side: what each is, how far it came, what it scored, and which settings tell them apart."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.errors import SfumatoError
from sfumato.training.config import TrainConfig, from_yaml
from sfumato.training.folder import is_run, newest_step, read

_ELSEWHERE = ("out", "device")  # settings that do not make another run


@dataclasses.dataclass(frozen=True)
class Overview:
    """One run: its folder, settings, and the last figures of its log; `done` where its budget is used up."""

    path: Path
    config: TrainConfig
    step: int
    samples: int
    seconds: float
    loss: float | None
    validation: float | None
    incidents: int
    done: bool

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path), "config": self.config.to_dict()}


def find(places: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The runs among some folders and what lies directly within them, by name. SfumatoError for a path without one."""
    found: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            raise SfumatoError(f"{place} is not a folder: give run folders, or a folder of them.")
        inner = [place] if is_run(place) else sorted(p for p in place.iterdir() if p.is_dir() and is_run(p))
        if not inner:
            raise SfumatoError(f"{place} holds no run: give run folders, or a folder of them.")
        found += [p for p in inner if p not in found]
    return found


def of(run: Path) -> Overview:
    """What lies in a run folder says of the run; a log that was cut is read as far as it goes."""
    from sfumato.training.session import incidents

    lines = read(run / "metrics.jsonl")
    last = lines[-1] if lines else {}
    scored = [line.get("valid_ema", line["valid_raw"]) for line in lines if "valid_raw" in line]
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    return Overview(
        path=run,
        config=from_yaml(str(run / "config.yaml")),
        step=last.get("step", newest_step(run)),
        samples=last.get("samples", 0),
        seconds=last.get("elapsed", 0.0),
        loss=losses[-1] if losses else None,
        validation=scored[-1] if scored else None,
        incidents=len(incidents(run)),
        done=bool(last.get("done")),
    )


def differences(runs: Sequence[Overview]) -> dict[str, list[Any]]:
    """Setting -> its value in each run, of those settings that are not the same in all."""
    settings = [run.config.to_dict() for run in runs]
    names = [name for name in settings[0] if name not in _ELSEWHERE] if settings else []
    return {
        name: [each[name] for each in settings] for name in names if any(e[name] != settings[0][name] for e in settings)
    }


def comparable(runs: Sequence[Overview]) -> str | None:
    """Why the validation losses of some runs may not be set side by side, or None where they may.

    They are means of one loss over one hold-out under one density.
    """
    ruling = ("data", "labels", "size", "holdout", "seed", "target", "schedule", "weight", "times")
    apart = [name for name in ruling if name in differences(runs)]
    return f"they differ in {', '.join(apart)}" if apart else None


def order(runs: Sequence[Overview]) -> list[Overview]:
    """By validation loss, those without one last; as they came where the losses are of different kinds."""
    if comparable(runs) is not None:
        return list(runs)
    return sorted(runs, key=lambda run: math.inf if run.validation is None else run.validation)
