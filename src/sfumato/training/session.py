"""A run: the loop's steps, its checkpoints and model file, and hooks for everything else."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from sfumato import serialization, trees
from sfumato.calibration import Calibration
from sfumato.columns import with_weights
from sfumato.conditions import Conditions, of_data
from sfumato.data import Source
from sfumato.data.rows import Samples
from sfumato.diagnostics import report
from sfumato.diagnostics.board_figures import from_log
from sfumato.distributed import ALONE, World
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.folder import read
from sfumato.model import Denoiser
from sfumato.nets import Adapted
from sfumato.training import checkpoint
from sfumato.training.codes import file_hash, samples_of
from sfumato.training.config import TrainConfig, docs
from sfumato.training.console import Console, Silent
from sfumato.training.guard import precision
from sfumato.training.loop import Progress, fit
from sfumato.training.parallel import gathered, whole
from sfumato.training.parts import objective_of
from sfumato.training.state import State


class Gone(SfumatoError):
    """The run folder was renamed or deleted while the run trained; what was trained may be saved beside it."""


class Hook:
    """Something that a run does besides its training steps. All processes call every hook."""

    def start(self, session: Session) -> None:
        """Called before the first step of this process."""

    def step(self, session: Session, progress: Progress) -> bool | None:
        """Called after each step. True stops the run; all processes must return it at the same step."""

    def back(self, session: Session) -> None:
        """Called after the run has gone back to a checkpoint."""

    def finish(self, session: Session) -> None:
        """Called at the end of training, before the model is written."""

    def end(self, session: Session) -> None:
        """Called at the end of training, after the model is written."""

    def stop(self, session: Session) -> None:
        """Called when the run is stopped early, after the model is written."""

    def close(self) -> None:
        """Called last, also after an error."""


class Session:
    """Settings, data, state and folder of a run in this process. Only the first of several processes writes."""

    def __init__(
        self,
        path: Path,
        config: TrainConfig,
        source: Source,
        state: State,
        console: Console,
        resumed: bool = False,
        world: World = ALONE,
    ) -> None:
        self.path, self.config, self.source, self.state, self.resumed = path, config, source, state, resumed
        self.console, self.world = console if world.leads else Silent(), world
        self.train, self.holdout = source.split(config.holdout)
        self.hooks: list[Hook] = []
        self.began = self.saved = time.monotonic()
        self.logged = state.step - state.unlogged  # last step that is in the log
        self._folder = path.stat() if world.leads else None
        self.calibration: Calibration | None = None  # at the end of a run of a table
        self.together: Callable[[Any], Any] = lambda model: model  # with the stages before it, as the file holds it

    @property
    def denoiser(self) -> Denoiser:
        return self.state.denoiser

    @property
    def best(self) -> Any:
        """The model to use, as its file has it."""
        return self.state.best if self.calibration is None else with_weights(self.state.best, self.calibration.weights)

    @property
    def fraction(self) -> float:
        """The fraction of the budget used."""
        return self.state.fraction(self.config)

    @property
    def seen(self) -> float:
        """The fraction of the budget whose steps the hooks have seen."""
        return self.fraction if self.logged == self.state.step else self.state.before(self.config)

    @property
    def finished(self) -> bool:
        """Whether the budget is used up and the log complete."""
        return self.fraction >= 1 and not self.state.unlogged

    @property
    def total(self) -> float:
        """The number of samples in the whole budget, at the rate so far."""
        return self.state.samples / max(self.fraction, 1e-9)

    def go(self) -> bool:
        """Train to the end of the budget; returns False if a hook stopped the run."""
        if self.state.step == 0:
            self.save()  # so that an early stop can be resumed, and a full disk is noticed now
        for hook in self.hooks:
            hook.start(self)
        (x, cond), holdout = self.parts()
        steps: Any = fit(self.denoiser, x, self.config, cond, holdout, self.state, world=self.world)
        with closing(steps):  # ends the threads that fetch data
            for progress in steps:
                if any([hook.step(self, progress) for hook in self.hooks]):
                    return False
        self.end()
        self.world.broadcast(None)  # the other processes wait until everything is written
        return True

    def end(self) -> None:
        """Finish the trained model, write it and end the hooks."""
        self.began = time.monotonic()
        for hook in self.hooks:
            hook.finish(self)
        self.save(model=True)
        for hook in self.hooks:
            hook.end(self)

    def stop(self) -> None:
        """Save a run that was stopped: checkpoint, model, report."""
        if self.state.midway:  # interrupted within a step: go back to the last checkpoint
            contract, tensors, _ = checkpoint.latest(self.path)
            self.back(tensors, contract["counters"])
        self.keep()
        for hook in self.hooks:
            hook.stop(self)
        self.report()

    def keep(self) -> None:
        """Write checkpoint and model of a run that ends between two steps."""
        self.state.reported &= self.logged == self.state.step
        self.save(model=self.state.step > 0)

    def back(self, tensors: Mapping[str, torch.Tensor], counters: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.state.load(tensors, counters)
        self.logged = self.state.step
        for hook in self.hooks:
            hook.back(self)

    def parts(self) -> tuple[tuple[Samples, Conditions], tuple[Samples, Conditions] | None]:
        """(samples, conditions) for training, and for the hold-out (None if nothing is held out)."""

        def some(rows: torch.Tensor) -> tuple[Samples, Conditions]:
            x = samples_of(self.denoiser, self.source, self.config.autoencoder, rows)
            return x, of_data(self.denoiser.spec, self.source, rows)

        return some(self.train), some(self.holdout) if len(self.holdout) else None

    def look(self) -> None:
        """Raise Gone if the run folder was renamed or deleted; what was trained is then saved beside it."""
        if self._folder is None or (self.path.exists() and os.path.samestat(self.path.stat(), self._folder)):
            return
        gone, self.path = self.path, self.path.with_name(f"{self.path.name}-{secrets.token_hex(3)}")
        self._folder = None
        words = f"The run folder {gone} is gone: it was renamed or deleted while it trained."
        try:
            if self.state.sharded:  # each process writes its part, and only this one knows
                raise SfumatoError("The weights are sharded.")
            self.save(model=True)
            write_text(self.path / "config.yaml", self.config.to_yaml())
        except SfumatoError as error:
            raise Gone(f"{words} Step {self.state.step:,} could not be saved elsewhere. {error}") from None
        raise Gone(f"{words} Step {self.state.step:,} is saved: sfumato resume {self.path}")

    def save(self, model: bool = False) -> None:
        """Write a checkpoint and, if `model`, the model file."""
        if not (self.world.leads or self.state.sharded):
            return
        self.look()
        with self.state.spending("checkpoints"):
            contract = {
                "config": self.config.to_dict(),
                "spec": self.denoiser.spec.to_dict(),
                "net": trees.tree(self.denoiser.net),
                "model": trees.tree(self.denoiser),
                "given": self.state.given,
            }
            if self.config.autoencoder is not None:
                contract["autoencoder"] = file_hash(self.config.autoencoder)
            checkpoint.write(self.path, self.state, contract, self.world)
            if model:
                self._write_model()
            self.saved = time.monotonic()

    def _write_model(self) -> None:
        best = whole(self.best, self.world)
        raw = gathered(self.denoiser.net.state_dict(), self.world) if self.state.ema else None
        if self.world.leads:
            best.provenance = self.provenance()
            model = self.together(best)
            model.provenance = best.provenance
            serialization.save(model, self.path / serialization.FILE, raw if model is best else None)
            if isinstance(best.net, Adapted):
                serialization.save_adapter(best, self.path / serialization.ADAPTER_FILE)

    def provenance(self) -> dict[str, Any]:
        return {
            "data": self.source.name,
            "samples": len(self.source),
            "seed": self.config.seed,
            "guidance": self.config.guidance,
            "times": self.config.times,
            "weight": self.config.weight,
            "loss": self.config.loss,
            "holdout": self.config.holdout,
            "steps": self.state.step,
            "samples_seen": self.state.samples,
            "seconds": round(self.state.elapsed, 1),
            "precision": precision(self.denoiser),
            "threads": torch.get_num_threads(),
        }

    def report(self) -> None:
        """Write report.html from the files of the run folder."""
        if self.world.leads:
            self.look()
            lines = read(self.path / "metrics.jsonl")
            levels = from_log(lines, objective_of(self.config))
            report.write(self.path, lines, levels, self.config.to_dict(), docs())

    def close(self) -> None:
        for hook in self.hooks:
            hook.close()
        self.console.close()
