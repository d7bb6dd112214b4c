"""`doctor`: what is wrong with a run or a model, by code."""

from __future__ import annotations

from typing import Any

from sfumato import diagnosis
from sfumato.cli.run import Voice
from sfumato.training.precision import device_of

WELL, ILL = 0, 1


def doctor(options: Any, voice: Voice) -> int:
    """The exit status: 1 where there is an error."""
    report = diagnosis.doctor(
        options.subject, options.data, options.labels, size=options.size, seed=options.seed,
        device=device_of(options.device),
    )  # fmt: skip
    voice.emit(report.to_dict())
    voice.say(str(report))
    return ILL if report.errors else WELL
