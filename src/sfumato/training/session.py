"""A run under way: it takes steps from the loop, and writes the log, checkpoints, samples and the model."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sfumato import artefact, noise, trees
from sfumato.compose import guide
from sfumato.conditions import Conditions, of_data
from sfumato.data import Source
from sfumato.data.rows import Samples, part
from sfumato.diagnostics import log as board
from sfumato.diagnostics import report, summary
from sfumato.diagnostics.checks.gather import told
from sfumato.diagnostics.draws import evaluating
from sfumato.diagnostics.examples import usual_scale
from sfumato.diagnostics.information import Information
from sfumato.diagnostics.memorization import Memorisation, choose, compare, pairs_picture
from sfumato.diagnostics.nearest import Space
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.folder import INCIDENTS, Log, incidents, read
from sfumato.model import Denoiser
from sfumato.pictures import beside, picture, save_png
from sfumato.sampling import sample
from sfumato.training import checkpoint, snapshots
from sfumato.training.averages import due
from sfumato.training.config import TrainConfig, docs
from sfumato.training.console import Console, Silent
from sfumato.training.control import Ear
from sfumato.training.guard import ROLLBACKS, SLOWER, STRIKES, Incident
from sfumato.training.health import Health
from sfumato.training.loggers import Loggers
from sfumato.training.loop import Progress, fit
from sfumato.training.objective import objective_of
from sfumato.training.occasions import COPIES, GRID, LAST_GRID, PICTURES, SAID
from sfumato.training.parallel import gathered, whole
from sfumato.training.state import State
from sfumato.world import ALONE, World

GRID_STEPS = 10  # of the solver: enough to judge by, and quick
_LEAST_GRID, _POINTS = 4, 500  # samples of a grid, of a scatter plot
_LEAST_COPIES, _MOST_COPIES = 16, 512  # samples that are searched for copies
_LEAST_SAID, _MOST_SAID = 256, 8192  # draws that tell what conditions say
_SEARCH = 1e9  # multiplications a second of training that the search for copies may take: about a hundredth
_ROWS, _COLUMNS = 10, 4

Labelled = tuple[Samples, Conditions]


class Layout(NamedTuple):
    """A grid of samples: its columns, the class of each sample, the names of the rows."""

    columns: int
    labels: list[str]
    names: list[str] | None


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
    ) -> None:
        self.path, self.config, self.source, self.state = path, config, source, state
        self.console, self.world = console if world.leads else Silent(), world
        self.train, self.holdout = source.split(config.holdout)
        self.log = Log(path / "metrics.jsonl", state.step if resumed else 0) if world.leads else None
        self.loggers = Loggers(path, config if world.leads else config.replace(loggers=None), self.console.note)
        self.incidents: list[dict[str, Any]] = incidents(path) if resumed else []
        rows = self.train, self.holdout
        self.health: Health | None = None
        if world.leads or state.sharded:
            self.health = Health(path, config, source, rows, state, self.console.note, resumed, world)
        self.ear = Ear(path, world.leads)
        self.between: Callable[[], object] | None = None  # called between two steps
        self._saved, self._fraction = time.monotonic(), self.fraction

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

    def go(self) -> bool:
        """Train to the end of the budget; False where all processes stopped between two steps, as was asked for."""
        if self.state.step == 0:
            self.save()  # an early stop has something to go on from, and a full disk shows now
        if self.world.leads:
            (self.path / summary.FILE).unlink(missing_ok=True)  # what is said of a run that goes on is no longer so
        micro = min(self.state.micro, self.config.batch)
        if self.health is not None:
            self.health.start()
        # closed in every case, so that no thread that fetches data outlives the run
        with closing(self._steps()) as steps:
            for progress in steps:
                if self.log is not None and (progress.loss is not None or progress.validation is not None):
                    self.log.write(progress.to_dict())
                    self.loggers.line(progress.to_dict())
                self.console(progress)
                if progress.micro < micro:
                    self.console.note(
                        f"Memory does not suffice for {micro} samples at once: from step {progress.step:,} on they are "
                        f"computed in parts of {progress.micro}, which changes nothing else."
                    )
                    micro = progress.micro
                if progress.advice is not None:
                    self.console.note(progress.advice)
                if self.health is not None:
                    self.health.look(progress)
                if progress.incident is not None:
                    self._note(progress.incident)
                if self._heard():
                    return False
                self._events(progress)
                if self.between is not None:
                    self.between()
        self.end()
        self.world.broadcast(None)  # the others go on once everything is written
        return True

    def end(self) -> None:
        """What is left once the budget is used."""
        began = time.monotonic()
        self.save(model=True)
        self.draw()
        said = self.conditions_say()
        if self.health is not None:
            self.health.end(said if isinstance(said, Information) else None)
        self.close_books(self.copies(), time.monotonic() - began, said)

    def _heard(self) -> bool:
        """Do what was said through the folder (`control`); whether to stop, which all processes do at one step."""
        words = self.ear.words() + ["checkpoint"] * self._due() if self.world.leads else []
        if not self.world.any(bool(words), self.denoiser.device):
            return False
        words = self.world.broadcast(words)
        if "save" in words or "pause" in words:
            self.save(model=True)
            self.console.note(f"Saved at step {self.state.step:,}, as was asked for.")
        elif "checkpoint" in words:
            self.save(model=True)
            if self.world.leads:
                self.report()
        if "sample" in words:
            self.draw()
        if "pause" in words and "stop" not in words:
            self.console.note(f"Paused at step {self.state.step:,}: sfumato control {self.path} go")
            self.state.waited += self.ear.wait()
        return "stop" in words

    def _due(self) -> bool:
        """Whether the last checkpoint is old enough for another before the end."""
        return not self.finished and time.monotonic() - self._saved >= 60 * self.config.checkpoint_every

    def parts(self) -> tuple[Labelled, Labelled | None]:
        """(samples, conditions) to train on, and those held out."""

        def some(rows: torch.Tensor) -> Labelled:
            return part(self.source.x, rows), of_data(self.denoiser.spec, self.source, rows)

        return some(self.train), some(self.holdout) if len(self.holdout) else None

    def _steps(self) -> Any:
        (x, cond), holdout = self.parts()
        return fit(self.denoiser, x, self.config, cond, holdout, self.state, world=self.world)

    def _note(self, incident: Incident) -> None:
        """Write an incident down; after STRIKES of them go back to the last checkpoint, or stop."""
        state = self.state
        back = len(state.strikes) >= STRIKES
        if back:
            contract, tensors, _ = checkpoint.latest(self.path)
            incident = dataclasses.replace(incident, rolled_back=contract["counters"]["step"])
        self.incidents.append(incident.to_dict())
        if self.world.leads:
            write_text(self.path / INCIDENTS, json.dumps(self.incidents, indent=1) + "\n")
        self.console.note(str(incident))
        if not back:
            return
        if state.rollbacks == ROLLBACKS:
            raise SfumatoError(
                f"Training stopped at step {incident.step:,}: {incident.where}, again after going back {ROLLBACKS} "
                f"times. {self.path / INCIDENTS} has every case; train with --lr below {incident.lr:.2g} or "
                "--precision float32."
            )
        counters = {**contract["counters"], "elapsed": state.elapsed, "rollbacks": state.rollbacks + 1}
        self._back(tensors, {**counters, "slower": state.slower * SLOWER, "strikes": []})

    def _back(self, tensors: Mapping[str, torch.Tensor], counters: dict[str, Any]) -> None:
        """Go back to a checkpoint."""
        self.state.load(tensors, counters)
        self._fraction = self.fraction
        if self.log is not None:
            self.log.close()
            self.log = Log(self.path / "metrics.jsonl", self.state.step)

    def _events(self, progress: Progress) -> None:
        before, self._fraction = self._fraction, progress.fraction
        averages, state = self.state.averages, self.state
        if averages is not None and due(before, progress.fraction, self.config.snapshots):
            with state.spending("averages"):
                weights = {width: gathered(each, self.world) for width, each in averages.snapshot().items()}
                if self.world.leads:
                    snapshots.write(self.path, weights, state.step, state.samples)
        if progress.done:
            return
        every = self.config.sample_every
        if every is None:
            now = before < 0.5 <= progress.fraction and self.halfway()
        else:
            now = bool(every) and progress.step % every == 0
        if now:
            self.draw()

    def save(self, model: bool = False) -> None:
        """A checkpoint, and the model as it is now."""
        with self.state.spending("checkpoints"):
            self._save(model)

    def _save(self, model: bool) -> None:
        if not (self.world.leads or self.state.sharded):
            return
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
        self._saved = time.monotonic()

    def _write_model(self) -> None:
        best = whole(self.state.best, self.world)
        raw = gathered(self.denoiser.net.state_dict(), self.world) if self.state.ema else None
        if self.world.leads:
            best.provenance = self.provenance()
            artefact.save(best, self.path / artefact.FILE, raw)

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

    def stop(self) -> None:
        """What is left when a run is stopped: checkpoint, model, report."""
        if self.state.midway:  # interrupted within the step: the last checkpoint is what can be gone on from
            contract, tensors, _ = checkpoint.latest(self.path)
            self._back(tensors, contract["counters"])
        self.save(model=self.state.step > 0)
        command = f"sfumato memorisation {self.path}"
        told = f"the run was stopped ({self._information})" if self._told() else None
        self.close_books(f"the run was stopped ({command} does it)", 0.0, told)
        if self.world.leads:
            self.report()

    def copies(self) -> Memorisation | str:
        """Samples of the model against its training samples, as many as a run bears; or why there are none."""
        total, held = self.state.samples / max(self.fraction, 1e-9), len(self.holdout)
        count = min(_MOST_COPIES, int(3 * COPIES * total / GRID_STEPS))
        if not held or len(self.train) < 2:
            return "nothing was held out"
        if count < _LEAST_COPIES:
            return f"the run was too short for it (sfumato memorisation {self.path} does it)"
        best, seed = self.state.best, self.config.seed
        if not hasattr(best, "process"):
            return f"a {type(best).__name__} draws no samples"
        twins = choose(self.train, count, seed)
        most = int(_SEARCH * self.state.elapsed / (4 * count * math.prod(self.source.shape)))
        try:
            with self.state.spending("memorisation"), evaluating(best):
                cond = of_data(best, self.source, twins)
                made = sample(best, count, GRID_STEPS, seed=seed, world=self.world, cond=cond)
                if not self.world.leads:
                    return ""
                space, unseen = Space(best.spec, None, best.device), (self.source, self.holdout)
                return compare(made, self.source, self.train, unseen, twins, space, seed, max(2, most))
        except SfumatoError as error:
            return str(error).rstrip(".")

    @property
    def _information(self) -> str:
        """What to type where a run did not measure what its conditions say."""
        data = repr(str(self.config.data)) if self.config.data else "data"
        return f"sf.information(sf.load({str(self.path)!r}), {data}) in Python does it"

    def _told(self) -> list[str]:
        """The conditions of the data that the model knows."""
        return [name for name in self.state.best.spec.conditions if name in self.source.conditions]

    def conditions_say(self) -> Information | str | None:
        """What each condition says of held-out samples, on as many draws as a run bears; or why that is not known."""
        total, best, known = self.state.samples / max(self.fraction, 1e-9), self.state.best, self._told()
        rows = self.holdout[noise.permutation(self.config.seed, 0, len(self.holdout))]
        draws = min(_MOST_SAID, int(3 * SAID * total / (1 + len(known) + (len(known) > 1))))
        if not known:
            return None
        if not len(rows):
            return f"nothing was held out ({self._information})"
        if not hasattr(best, "predict"):
            return f"a {type(best).__name__} has no noise levels"
        if draws < _LEAST_SAID:
            return f"the run was too short for it ({self._information})"
        try:
            with self.state.spending("conditions"), evaluating(best):
                found = told(best, self.source, rows, self.config.seed, draws, self.world)
            return found or f"it is about real numbers, and the states of {type(best.process).__name__} are others"
        except SfumatoError as error:
            return str(error).rstrip(".")

    def close_books(self, found: Memorisation | str, ending: float, said: Information | str | None = None) -> None:
        """report.json, and what it says; ending: seconds since the budget was used."""
        if not self.world.leads:
            return
        if isinstance(found, Memorisation) and (nearest := pairs_picture(found, self.denoiser.spec)) is not None:
            save_png(nearest, self.path / "samples" / report.NEAREST)
        spent = {**self.state.spent, "ending": ending}
        copied = found if isinstance(found, str) else found.to_dict()
        told = said.to_dict() if isinstance(said, Information) else said
        facts = summary.write(self.path, self.config.to_dict(), spent, copied, told)
        for line in summary.words(facts):
            self.console.note(line)

    def report(self) -> None:
        """report.html, from what lies in the folder so far."""
        lines = read(self.path / "metrics.jsonl")
        found = board.read(lines, objective_of(self.config))
        report.write(self.path, lines, found, self.config.to_dict(), docs(), PICTURES)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
        self.loggers.close()
        self.console.close()

    def bears(self, share: float, total: float | None = None) -> int:
        """Samples of a grid that cost this share of the work of a run of `total` samples (this one)."""
        if total is None:
            total = self.state.samples / max(self.fraction, 1e-9)
        # a call of the network is a third of a training sample's work
        twice = usual_scale(self.denoiser.spec.conditions, self.config.guidance) is not None  # guided
        calls = GRID_STEPS * (1 + bool(self.state.ema)) * (1 + twice)
        return int(3 * share * total / calls)

    def halfway(self, total: float | None = None) -> bool:
        """Whether a run of `total` samples (this one) bears a grid on the way that nobody asked for."""
        return self.bears(GRID, total) >= _LEAST_GRID

    def layout(self, total: float, last: bool) -> Layout:
        """As many samples as a run of `total` samples can bear."""
        classes, points = self.source.classes, self.source.shape == (2,)
        count = max(_LEAST_GRID, self.bears(LAST_GRID if last else GRID, total))
        if not classes:
            if points:
                return Layout(1, [""] * min(_POINTS, count), None)
            side = min(6, math.isqrt(count))
            return Layout(side, [""] * side**2, None)
        rows = min(_ROWS, len(classes), count)
        columns = min(_POINTS // rows if points else _COLUMNS, count // rows)
        return Layout(columns, [name for name in classes[:rows] for _ in range(columns)], classes[:rows])

    def draw(self) -> None:
        """A grid of samples; where it cannot be drawn a note says so, and training goes on."""
        with self.state.spending("grids"):
            try:
                if not hasattr(self.denoiser, "process"):
                    self.reconstructions()
                    return
                self.grid(self.layout(self.state.samples / max(self.fraction, 1e-9), self.finished))
            except SfumatoError as error:
                self.console.note(f"No samples were drawn at step {self.state.step:,}: {error}")

    def reconstructions(self) -> None:
        """samples/step_*.png of an autoencoder: images, and what its averaged weights make of their codes."""
        spec, best = self.denoiser.spec, self.state.best
        rows = (self.holdout if len(self.holdout) else self.train)[: _COLUMNS**2]
        if spec.kind != "image" or not hasattr(best, "decode"):
            return
        x = self.source.x[rows]
        with evaluating(best), torch.no_grad():
            back = best(x).cpu()
        images = [picture(each, spec.kind, spec.bounds, _COLUMNS, None) for each in (x, back)]
        self._keep(beside(images, ["data", "reconstruction"]), {**self.provenance(), "samples": len(x)})

    def _shown(self, labels: list[str]) -> Mapping[str, Any]:
        """What the samples of a grid are known by: these classes, and else what is known of unseen samples of them."""
        source, spec = self.source, self.denoiser.spec
        given = {"label": labels} if source.classes else {}
        if len(spec.conditions) <= len(given):
            return given
        unseen = self.holdout if len(self.holdout) else self.train
        unseen = unseen[noise.permutation(self.config.seed, 0, len(unseen))]
        rows, known = [], source.labels
        for i, label in enumerate(labels):
            own = unseen if known is None else unseen[known[unseen] == source.classes.index(label)]
            rows.append((own if len(own) else unseen)[i % max(len(own), 1)])
        return {**of_data(spec, source, torch.stack(rows)), **given}

    def grid(self, layout: Layout) -> Path:
        """samples/step_*.png: samples of the raw weights and of their moving average, side by side."""
        columns, labels, names = layout
        cond = self._shown(labels)
        known = self.denoiser.spec.conditions
        scale = usual_scale({name: known[name] for name in cond}, self.config.guidance)
        models = {"raw": self.denoiser}
        if self.state.ema:
            models["moving average"] = self.state.ema.denoiser
        spec, images = self.denoiser.spec, []
        for model in models.values():
            training = model.training
            model.eval()
            asked = model if scale is None else guide(model, scale)
            x = sample(asked, len(labels), GRID_STEPS, seed=self.config.seed, world=self.world, cond=cond)
            model.train(training)
            x = x.float() if x.dtype == torch.bfloat16 else x
            images.append(picture(x, spec.kind, spec.bounds, columns, names))
        manifest = {**self.provenance(), "sampling_steps": GRID_STEPS, "guidance": 1.0 if scale is None else scale}
        return self._keep(beside(images, list(models)), manifest)

    def _keep(self, image: Any, manifest: dict[str, Any]) -> Path:
        path = self.path / "samples" / f"step_{self.state.step:08d}.png"
        if self.world.leads:
            save_png(image, path, manifest)
            self.loggers.picture(path, self.state.samples)
        return path
