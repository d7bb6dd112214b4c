"""Checks that a run makes by itself: of its data before the first step, of its log and its answers on the way.

What is found is told once, and kept in RUN/health.json. A run pays at most SHARE of its work for it, in passes that
change nothing: the numbers of the training are bit by bit what they would be without.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sfumato.diagnostics.answers import LEVELS
from sfumato.diagnostics.checks import Evidence, Finding, Weights, examine
from sfumato.diagnostics.checks.evidence import draw
from sfumato.diagnostics.checks.gather import TRAINED, answers, parameters, unheard
from sfumato.diagnostics.information import Information
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.folder import read
from sfumato.training.loop import Progress
from sfumato.training.parallel import whole
from sfumato.training.session import Hook, Session

FILE = "health.json"
SHARE = 0.003  # of the run's work that one question to the network may cost
MOMENTS = (0.25, 0.6)  # of the budget, when the network is asked
_LEAST = 8  # draws a level below which nothing is asked
_KEPT = (
    "step", "loss", "fraction", "valid_raw", "valid_ema", "valid_trivial", "bins_logsnr", "bins_loss_trivial",
    "bins_loss_trivial_stderr",
)  # fmt: skip


class Health(Hook):
    """The examinations of one run; each code is told once.

    Of a network in shards every process has to answer; the first alone judges, tells and writes.
    """

    def __init__(self, session: Session) -> None:
        self.path, self.config, self.source, self.state = (
            session.path / FILE,
            session.config,
            session.source,
            session.state,
        )
        self.train, self.holdout, self.world = session.train, session.holdout, session.world
        self.tell = session.console.note
        self.found = list(recorded(session.path)) if session.resumed else []
        lines = read(session.path / "metrics.jsonl") if session.resumed else []
        self.lines = [_short(line) for line in lines]
        self._before: float | None = None
        self._asked = self.world.leads or self.state.sharded

    def start(self, session: Session) -> None:
        """Look at the data, at what the network can hear, and at the length of a step, before the first one."""
        if not self._asked:
            return
        labels = None if self.source.labels is None else self.source.labels[self.train]
        sample = draw(self.source.x, self.train, labels, self.state.denoiser.spec, self.config.seed)
        weights = deaf = None
        if self.state.step == 0:
            denoiser = whole(self.state.denoiser, self.world)
            if self.world.leads:
                now = parameters(denoiser)
                weights, deaf = Weights(now, now, None, 0), unheard(denoiser, self.source, self.train)
        self._take(Evidence(sample=sample, weights=weights, deaf=deaf, log=[], settings=self.config.to_dict()))

    def end(self, session: Session) -> None:
        """What each condition says of the samples held out."""
        told = session.found.get("conditions")
        if isinstance(told, Information):
            self._take(Evidence(told=told, settings=self.config.to_dict()), self.state.step)

    def step(self, session: Session, progress: Progress) -> None:
        """The log where there is a new validation, the network at some moments."""
        if not self._asked:
            return
        if progress.loss is not None or progress.validation is not None:
            self.lines.append(_short(progress.to_dict()))
        before, self._before = self._before, progress.fraction
        if progress.incident is not None:
            self._take(Evidence(incidents=[progress.incident.to_dict()]), progress.step, leave=("not-finite",))
        if progress.validation is not None:
            self._take(Evidence(log=self.lines, settings=self.config.to_dict()), progress.step)
        if before is not None and any(before < moment <= progress.fraction for moment in MOMENTS):
            self._ask(progress)

    def _ask(self, progress: Progress) -> None:
        rows = self.holdout if len(self.holdout) else self.train
        work = progress.samples / max(progress.fraction, 1e-9) / self.world.size  # of one process; the others wait
        draws = int(SHARE * work / LEVELS)
        model, config = self.state.denoiser, self.config
        if draws < _LEAST or progress.step < TRAINED or not hasattr(model, "predict"):
            return
        try:
            found = answers(
                model, self.source, rows, config.times, config.seed, min(draws, 256), held=len(self.holdout) > 0
            )
        except SfumatoError:  # a network of the user's that answers otherwise is none of our business here
            return
        self._take(Evidence(answers=found, log=self.lines, settings=config.to_dict()), progress.step)

    def _take(self, evidence: Evidence, step: int | None = None, leave: tuple[str, ...] = ()) -> None:
        """Tell and write down what is new."""
        if not self.world.leads:
            return
        known = {finding.code for finding in self.found}
        report = examine(dataclasses.replace(evidence, recorded=tuple(self.found)))
        new = [f for f in report.findings if f.code not in known and f.code not in leave]
        for finding in new:
            finding = dataclasses.replace(finding, step=step)
            self.found.append(finding)
            self.tell(str(finding))
        if new:
            write_text(self.path, json.dumps([f.to_dict() for f in self.found], indent=1) + "\n")


def _short(line: dict[str, Any]) -> dict[str, Any]:
    """What the checks read of a line of the log."""
    return {name: line[name] for name in _KEPT if name in line}


def recorded(run: Path) -> tuple[Finding, ...]:
    """What a run found by itself, from its health.json."""
    path = run / FILE
    if not path.exists():
        return ()
    try:
        return tuple(Finding.from_dict(each) for each in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError):
        raise SfumatoError(f"{path} cannot be read: it was changed by hand, and may be deleted.") from None
