"""What a run does besides its training steps: log, skipped steps, commands from its folder, snapshots of averages.

`usual` adds all hooks in order; `health`, `grids` and `final_report` have files of their own.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from typing import Any

from sfumato.diagnostics.checks.of_paths import RISES, rising
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.folder import INCIDENTS, Log, incidents, read
from sfumato.training import averages, checkpoint
from sfumato.training.control import Commands
from sfumato.training.final_report import FinalReport
from sfumato.training.grids import Grids
from sfumato.training.guard import ROLLBACKS, SLOWER, STRIKES, Incident
from sfumato.training.health import Health
from sfumato.training.ladder import Climb
from sfumato.training.loggers import Loggers
from sfumato.training.loop import Progress
from sfumato.training.marginals import Marginals
from sfumato.training.parallel import gathered
from sfumato.training.session import Hook, Session


def usual(session: Session) -> Session:
    """Add the standard hooks to a session, in the order in which they are called; returns the session."""
    records = Records(session)
    grids, health = Grids(records.loggers), Health(session)
    own = (health, Incidents(session), Watch(session), FolderCommands(session, grids), Snapshots(session))
    session.hooks += [records, *own, Marginals(), grids, Climb(), FinalReport(health)]
    return session


class Records(Hook):
    """metrics.jsonl, dashboards and the console."""

    def __init__(self, session: Session) -> None:
        leads, config, self._micro = session.world.leads, session.config, 0
        upto = session.logged if session.resumed else 0
        self.log = Log(session.path / "metrics.jsonl", upto) if leads else None
        self.loggers = Loggers(session.path, config if leads else config.replace(loggers=None), session.console.note)

    def start(self, session: Session) -> None:
        self._micro = min(session.state.micro, session.config.batch)

    def step(self, session: Session, progress: Progress) -> None:
        if progress.loss is not None or progress.validation is not None:
            if self.log is not None:
                self.log.write(progress.to_dict())
            self.loggers.line(progress.to_dict())
        session.logged = progress.step
        session.console(progress)
        if progress.micro < self._micro:
            session.console.note(
                f"There is not enough memory for {self._micro} samples at once: from step {progress.step:,} on they "
                f"are computed {progress.micro} at a time, which changes nothing else."
            )
            self._micro = progress.micro
        if progress.advice is not None:
            session.console.note(progress.advice)

    def back(self, session: Session) -> None:
        if self.log is not None:
            self.log.close()
            self.log = Log(self.log.path, session.state.step)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
        self.loggers.close()


class Incidents(Hook):
    """incident.json: skipped steps; after STRIKES of them the run goes back to its last checkpoint."""

    def __init__(self, session: Session) -> None:
        self.each: list[dict[str, Any]] = incidents(session.path) if session.resumed else []

    def step(self, session: Session, progress: Progress) -> None:
        incident, state = progress.incident, session.state
        if incident is None:
            return
        back = len(state.strikes) >= STRIKES
        if back:
            contract, tensors, _ = checkpoint.latest(session.path)
            incident = dataclasses.replace(incident, rolled_back=contract["counters"]["step"])
        self._write(session, incident)
        if not back:
            return
        if state.rollbacks == ROLLBACKS:
            raise SfumatoError(
                f"Training stopped at step {incident.step:,}: {incident.where}, again after {ROLLBACKS} roll-backs. "
                f"{session.path / INCIDENTS} lists every case; train with --lr below {incident.lr:.2g} or "
                "--precision float32."
            )
        counters = {**contract["counters"], "elapsed": state.elapsed, "rollbacks": state.rollbacks + 1}
        session.back(tensors, {**counters, "slower": state.slower * SLOWER, "strikes": []})

    def _write(self, session: Session, incident: Incident) -> None:
        self.each.append(incident.to_dict())
        if session.world.leads:
            write_text(session.path / INCIDENTS, json.dumps(self.each, indent=1) + "\n")
        session.console.note(str(incident))


class Watch(Hook):
    """Stops a run whose held-out loss, if its loss is one to watch, keeps `rising`."""

    def __init__(self, session: Session) -> None:
        lines = read(session.path / "metrics.jsonl") if session.resumed and session.world.leads else []
        found = [line.get("valid_ema", line.get("valid_raw")) for line in lines if line["step"] <= session.logged]
        self.found = session.world.broadcast([value for value in found if value is not None])

    def step(self, session: Session, progress: Progress) -> None:
        what, validation = session.state.loss.watched, progress.validation
        if what is None or validation is None:
            return
        self.found.append(validation.best)
        if rising(self.found):
            raise SfumatoError(
                f"Training stopped at step {progress.step:,}: {what} rose in {RISES} evaluations in a row, "
                f"from {self.found[-1 - RISES]:.3g} to {self.found[-1]:.3g}, and was {min(self.found):.3g} at its "
                f"lowest. Train with --lr below {progress.lr:.2g}, or with another loss."
            )

    def back(self, session: Session) -> None:
        self.found.clear()


class FolderCommands(Hook):
    """Carries out commands left in the run folder (`control`), and writes checkpoints when they are due."""

    def __init__(self, session: Session, grids: Grids) -> None:
        self.commands, self.grids = Commands(session.path, session.world.leads), grids

    def step(self, session: Session, progress: Progress) -> bool:
        session.look()
        words = self.commands.words() + ["checkpoint"] * self._due(session) if session.world.leads else []
        if not session.world.any(bool(words), session.denoiser.device):
            return False
        words = session.world.broadcast(words)
        if "save" in words or "pause" in words:
            session.save(model=True)
            session.console.note(f"Saved at step {session.state.step:,}, as requested.")
        elif "checkpoint" in words:
            session.save(model=True)
            session.report()
        if "sample" in words:
            self.grids.draw(session)
        if "pause" in words and "stop" not in words:
            session.console.note(f"Paused at step {session.state.step:,}: sfumato control {session.path} go")
            session.state.waited += self.commands.wait()
        return "stop" in words

    def _due(self, session: Session) -> bool:
        """Whether a checkpoint is due before the end of the run."""
        return not session.finished and time.monotonic() - session.saved >= 60 * session.config.checkpoint_every


class Snapshots(Hook):
    """averages/: snapshots for `sfumato average`, written when `averages.due` says so."""

    def __init__(self, session: Session) -> None:
        self._before = session.seen

    def step(self, session: Session, progress: Progress) -> None:
        before, self._before = self._before, progress.fraction
        state = session.state
        if state.averages and averages.due(before, progress.fraction, session.config.snapshots):
            with state.spending("averages"):
                weights = gathered(averages.tensors(state.averages), session.world)
                if session.world.leads:
                    averages.write(session.path, weights, state.step, state.samples)

    def back(self, session: Session) -> None:
        self._before = session.fraction


class Between(Hook):
    """Calls a function after every step."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def step(self, session: Session, progress: Progress) -> None:
        self.call()
