"""Checks that a run makes by itself: of its data before the first step, of its log and its answers while it trains.

Each fault is reported once, and kept in RUN/health.json. A run spends at most SHARE of its work on it, in passes that
change nothing: the weights are bit by bit what they would be without.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from sfumato.diagnostics.answers import LEVELS
from sfumato.diagnostics.checks import Evidence, Finding, Weights, examine
from sfumato.diagnostics.checks.evidence import TRAINED, answers, draw, parameters, unheard
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


class Health(Hook):
    """The checks of one run. Of a network in shards every process has to answer; the first alone judges and writes."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.found = list(recorded(session.path)) if session.resumed else []
        self._asked = session.world.leads or session.state.sharded

    def start(self, session: Session) -> None:
        """Look at the data, at what the network can hear, and at the length of a step, before the first one."""
        if not self._asked:
            return
        denoiser, weights, ignored = session.denoiser, None, None
        if session.state.step == 0:
            gathered = whole(denoiser, session.world)
            if session.world.leads:
                now = parameters(gathered)
                weights, ignored = Weights(now, now, None, 0), unheard(gathered, session.source, session.train)
        if session.world.leads:
            sample = draw(denoiser, session.source, session.train, session.config.seed)
            self.judge(Evidence(sample=sample, weights=weights, unheard=ignored, log=[]))

    def step(self, session: Session, progress: Progress) -> None:
        """Judge the log after each validation, and ask the network at some moments."""
        if progress.incident is not None:
            self.judge(Evidence(incidents=[progress.incident.to_dict()]), progress.step)
        if progress.validation is not None and session.world.leads:
            self.judge(Evidence(log=read(session.path / "metrics.jsonl")), progress.step)
        if self._asked and any(progress.before < moment <= progress.fraction for moment in MOMENTS):
            self._ask(progress)

    def _ask(self, progress: Progress) -> None:
        session, config = self.session, self.session.config
        model, rows = session.denoiser, session.holdout if len(session.holdout) else session.train
        draws = int(SHARE * session.total / session.world.size / LEVELS)  # of one process; the others wait
        if draws < _LEAST or progress.step < TRAINED or not hasattr(model, "predict"):
            return
        try:
            found = answers(
                model, session.source, rows, config.times, config.seed, min(draws, 256), len(session.holdout) > 0
            )
        except SfumatoError:  # a user's network may answer otherwise
            return
        if session.world.leads:
            self.judge(Evidence(answers=found, log=read(session.path / "metrics.jsonl")), progress.step)

    def judge(self, evidence: Evidence, step: int | None = None) -> None:
        """Report and write down what is new; the first process alone. Skipped steps have a file of their own."""
        session, known = self.session, {finding.code for finding in self.found} | {"not-finite"}
        if not session.world.leads:
            return
        evidence = dataclasses.replace(evidence, recorded=tuple(self.found), settings=session.config.to_dict())
        new = [finding for finding in examine(evidence).findings if finding.code not in known]
        for finding in new:
            self.found.append(dataclasses.replace(finding, step=step))
            session.console.note(str(self.found[-1]))
        if new:
            write_text(session.path / FILE, json.dumps([f.to_dict() for f in self.found], indent=1) + "\n")


def recorded(run: Path) -> tuple[Finding, ...]:
    """What a run found by itself, from its health.json."""
    path = run / FILE
    if not path.exists():
        return ()
    try:
        return tuple(Finding.from_dict(each) for each in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError):
        raise SfumatoError(f"{path} cannot be read: it was changed by hand, and may be deleted.") from None
