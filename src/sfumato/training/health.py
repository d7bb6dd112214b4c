"""Checks during a run: of its data before the first step, of its log and the network's predictions while it trains.

Each fault is reported once and kept in RUN/health.json. Each probe costs at most SHARE of the run's work and changes
nothing: the weights are bit for bit what they would be without it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from sfumato import schema
from sfumato.diagnostics.answers import LEVELS
from sfumato.diagnostics.checks import Evidence, Finding, Weights, examine
from sfumato.diagnostics.checks.evidence import TRAINED, answers, draw, parameters, unheard
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.folder import read
from sfumato.process import Gaussian, Paired
from sfumato.training.loop import Progress
from sfumato.training.parallel import whole
from sfumato.training.session import Hook, Session

FILE = "health.json"
SHARE = 0.003  # of the run's work that one probe of the network may cost
MOMENTS = (0.25, 0.6)  # fractions of the budget at which the network is probed
_FOUND = schema.listed(
    schema.fields(
        {
            "code": schema.text, "what": schema.text, "cure": schema.text, "severity": schema.text,
            "evidence": schema.mapping(schema.anything), "step": schema.optional(schema.whole(0)),
        }
    )
)  # fmt: skip
_LEAST = 8  # fewest draws per level for a probe


class Health(Hook):
    """The checks of one run. A sharded network is probed by all processes; only the first one judges and writes."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.found = list(recorded(session.path)) if session.resumed else []
        self._takes_part = session.world.leads or session.state.sharded

    def start(self, session: Session) -> None:
        """Before the first step, check data, initial weights and whether every condition reaches the network."""
        if not self._takes_part:
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
        """Judge the log after each validation, and probe the network at MOMENTS."""
        if progress.incident is not None:
            self.judge(Evidence(incidents=[progress.incident.to_dict()]), progress.step)
        if progress.validation is not None and session.world.leads:
            self.judge(Evidence(log=read(session.path / "metrics.jsonl")), progress.step)
        if self._takes_part and any(progress.before < moment <= progress.fraction for moment in MOMENTS):
            self._probe(progress)

    def _probe(self, progress: Progress) -> None:
        session, config = self.session, self.session.config
        model, rows = session.denoiser, session.holdout if len(session.holdout) else session.train
        draws = int(SHARE * session.total / session.world.size / LEVELS)  # the other processes wait meanwhile
        asked = hasattr(model, "predict") and isinstance(model.process, Gaussian) and not getattr(model, "gamma", 0)
        asked = asked and not isinstance(model.process, Paired)  # whose network hears no multiple of the state alone
        if draws < _LEAST or progress.step < TRAINED or not asked:
            return
        try:
            found = answers(
                model, session.source, rows, config.times, config.seed, min(draws, 256), len(session.holdout) > 0
            )
        except SfumatoError:  # a user's network may not support the probe
            return
        if session.world.leads:
            self.judge(Evidence(answers=found, log=read(session.path / "metrics.jsonl")), progress.step)

    def judge(self, evidence: Evidence, step: int | None = None) -> None:
        """Report and record new findings, in the first process only. Skipped steps have a file of their own."""
        session, known = self.session, {finding.code for finding in self.found} | {"not-finite"}
        if not session.world.leads:
            return
        evidence = dataclasses.replace(evidence, recorded=tuple(self.found), settings=session.config.to_dict())
        new = [finding for finding in examine(evidence).findings if finding.code not in known]
        for finding in new:
            self.found.append(dataclasses.replace(finding, step=step))
            for line in str(self.found[-1]).split("\n"):
                session.console.note(line)
        if new:
            session.look()
            write_text(session.path / FILE, json.dumps([f.to_dict() for f in self.found], indent=1) + "\n")


def recorded(run: Path) -> tuple[Finding, ...]:
    """The findings of a run in its health.json."""
    path = run / FILE
    if not path.exists():
        return ()
    try:
        found = schema.json_of(schema.read_text(path), path)
        schema.require(found, _FOUND, path)
    except SfumatoError as error:
        raise SfumatoError(f"{str(error).rstrip('.')}; the file can be deleted safely.") from None
    return tuple(Finding.from_dict(each) for each in found)
