"""A run under way: the loop's steps, what is saved of them, and hooks for all else that a run does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from sfumato import serialization, trees
from sfumato.conditions import Conditions, of_data
from sfumato.data import Source
from sfumato.data.rows import Samples, part
from sfumato.diagnostics import report
from sfumato.diagnostics.board_figures import from_log
from sfumato.distributed import ALONE, World
from sfumato.folder import read
from sfumato.model import Denoiser
from sfumato.training import checkpoint
from sfumato.training.config import TrainConfig, docs
from sfumato.training.console import Console, Silent
from sfumato.training.loop import Progress, fit
from sfumato.training.objective import objective_of
from sfumato.training.parallel import gathered, whole
from sfumato.training.state import State

Labelled = tuple[Samples, Conditions]


class Hook:
    """One thing that a run does beside stepping. Of many processes all call it alike."""

    def start(self, session: Session) -> None:
        """Before the first step of this process."""

    def step(self, session: Session, progress: Progress) -> bool | None:
        """After each step; True stops the run here, which all processes have to say of one step."""

    def back(self, session: Session) -> None:
        """The run has gone back to a checkpoint."""

    def end(self, session: Session) -> None:
        """Once the budget is used, and the model written."""

    def stop(self, session: Session) -> None:
        """Where the run is stopped before that, once the model is written."""

    def close(self) -> None:
        """In every case, after all else."""


class Session:
    """Settings, data, state and folder of one run in this process. Of many processes the first alone writes."""

    def __init__(
        self,
        path: Path,
        config: TrainConfig,
        source: Source,
        state: State,
        console: Console,
        resumed: bool = False,
        world: World = ALONE,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.path, self.config, self.source, self.state, self.resumed = path, config, source, state, resumed
        self.console, self.world = console if world.leads else Silent(), world
        self.train, self.holdout = source.split(config.holdout)
        self.hooks = list(hooks)
        self.began = self.saved = time.monotonic()

    @property
    def denoiser(self) -> Denoiser:
        return self.state.denoiser

    @property
    def fraction(self) -> float:
        """Of the budget that is used."""
        if self.config.steps is not None:
            return self.state.step / self.config.steps
        return self.state.elapsed / (60 * (self.config.minutes or 1.0))

    @property
    def finished(self) -> bool:
        return self.fraction >= 1

    @property
    def total(self) -> float:
        """Samples that the whole budget comes to."""
        return self.state.samples / max(self.fraction, 1e-9)

    def go(self) -> bool:
        """Train to the end of the budget; False where all processes stopped between two steps, as was asked for."""
        if self.state.step == 0:
            self.save()  # an early stop has something to go on from, and a full disk shows now
        for hook in self.hooks:
            hook.start(self)
        (x, cond), holdout = self.parts()
        steps: Any = fit(self.denoiser, x, self.config, cond, holdout, self.state, world=self.world)
        with closing(steps):  # in every case, so that no thread that fetches data outlives the run
            for progress in steps:
                if any([hook.step(self, progress) for hook in self.hooks]):
                    return False
        self.end()
        self.world.broadcast(None)  # the others go on once everything is written
        return True

    def end(self) -> None:
        """What is left once the budget is used."""
        self.began = time.monotonic()
        self.save(model=True)
        for hook in self.hooks:
            hook.end(self)

    def stop(self) -> None:
        """What is left when a run is stopped: checkpoint, model, report."""
        if self.state.midway:  # interrupted within the step: the last checkpoint is what can be gone on from
            contract, tensors, _ = checkpoint.latest(self.path)
            self.back(tensors, contract["counters"])
        self.save(model=self.state.step > 0)
        for hook in self.hooks:
            hook.stop(self)
        self.report()

    def back(self, tensors: Mapping[str, torch.Tensor], counters: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.state.load(tensors, counters)
        for hook in self.hooks:
            hook.back(self)

    def parts(self) -> tuple[Labelled, Labelled | None]:
        """(samples, conditions) to train on, and those held out."""

        def some(rows: torch.Tensor) -> Labelled:
            return part(self.source.x, rows), of_data(self.denoiser.spec, self.source, rows)

        return some(self.train), some(self.holdout) if len(self.holdout) else None

    def save(self, model: bool = False) -> None:
        """A checkpoint, and the model as it is now."""
        if not (self.world.leads or self.state.sharded):
            return
        with self.state.spending("checkpoints"):
            contract = {
                "config": self.config.to_dict(),
                "spec": self.denoiser.spec.to_dict(),
                "net": trees.tree(self.denoiser.net),
                "model": trees.tree(self.denoiser),
                "given": self.state.given,
            }
            checkpoint.write(self.path, self.state, contract, self.world)
            if model:
                self._write_model()
            self.saved = time.monotonic()

    def _write_model(self) -> None:
        best = whole(self.state.best, self.world)
        raw = gathered(self.denoiser.net.state_dict(), self.world) if self.state.ema else None
        if self.world.leads:
            best.provenance = self.provenance()
            serialization.save(best, self.path / serialization.FILE, raw)

    def provenance(self) -> dict[str, Any]:
        dtype = self.denoiser.compute_dtype or torch.float32
        return {
            "data": self.source.name,
            "samples": len(self.source),
            "seed": self.config.seed,
            "guidance": self.config.guidance,
            "times": self.config.times,
            "weight": self.config.weight,
            "holdout": self.config.holdout,
            "steps": self.state.step,
            "samples_seen": self.state.samples,
            "seconds": round(self.state.elapsed, 1),
            "precision": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }

    def report(self) -> None:
        """report.html, from what lies in the folder so far."""
        if self.world.leads:
            lines = read(self.path / "metrics.jsonl")
            levels = from_log(lines, objective_of(self.config))
            report.write(self.path, lines, levels, self.config.to_dict(), docs())

    def close(self) -> None:
        for hook in self.hooks:
            hook.close()
        self.console.close()
