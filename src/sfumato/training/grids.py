"""samples/step_*.png: grids of samples during a run and at its end, with as many samples as the run can afford; of text
samples/step_*.txt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato import noise
from sfumato.conditions import Given, Text, of_data
from sfumato.data import frames
from sfumato.diagnostics.examples import default_guidance
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.guidance import guide
from sfumato.noised import evaluating
from sfumato.pictures import beside, picture, save_png
from sfumato.sampling import sample
from sfumato.text_samples import RULE, STEPS, sample_text
from sfumato.training.evaluation_schedule import GRID, LAST_GRID
from sfumato.training.loggers import Loggers
from sfumato.training.loop import Progress
from sfumato.training.session import Gone, Hook, Session

GRID_STEPS = 10  # solver steps: quick, and enough to judge by
_LEAST_GRID, _POINTS = 4, 500  # fewest samples of a grid, most of a scatter plot
_ROWS, _COLUMNS = 10, 4
_TABLE_ROWS = 16


def _affordable(session: Session, share: float) -> int:
    """Number of samples that cost this share of the run's work; a network call counts as a third of a training step."""
    guided = default_guidance(session.denoiser.spec.conditions, session.config.guidance) is not None
    steps = GRID_STEPS if session.source.text is None else STEPS
    calls = steps * (1 + bool(session.state.ema)) * (1 + guided)
    return int(3 * share * session.total / calls)


def halfway(session: Session) -> bool:
    """Whether the run can afford a grid halfway by default."""
    return _affordable(session, GRID) >= _LEAST_GRID


class Grids(Hook):
    """Draws a grid halfway, or as often as the settings say, and one at the end."""

    def __init__(self, loggers: Loggers) -> None:
        self.loggers = loggers

    def step(self, session: Session, progress: Progress) -> None:
        every = session.config.sample_every
        if every is None:
            due = progress.before < 0.5 <= progress.fraction and halfway(session)
        else:
            due = bool(every) and progress.step % every == 0
        if due and not progress.done:
            self.draw(session)

    def end(self, session: Session) -> None:
        self.draw(session)

    def draw(self, session: Session) -> None:
        """Draw a grid of samples. If that fails, a note says so and training continues."""
        with session.state.spending("grids"):
            try:
                if session.source.text is not None:
                    self._texts(session)
                elif session.source.table is not None:
                    self._rows(session)
                elif hasattr(session.denoiser, "process"):
                    self._samples(session)
                else:
                    self._reconstructions(session)
            except Gone:
                raise
            except SfumatoError as error:
                session.console.note(f"No samples were drawn at step {session.state.step:,}: {error}")

    def _samples(self, session: Session) -> None:
        """Draw samples of the raw weights and of their moving average, side by side."""
        columns, labels, names = _layout(session)
        denoiser, state = session.denoiser, session.state
        cond, spec = _shown(session, labels), denoiser.spec
        scale = default_guidance({name: spec.conditions[name] for name in cond}, session.config.guidance)
        below = _captions(session, cond)
        models = {"raw": denoiser} | ({"moving average": state.ema.denoiser} if state.ema else {})
        images = []
        for model in models.values():
            guided = model if scale is None else guide(model, scale)
            with evaluating(model):
                x = sample(guided, len(labels), GRID_STEPS, seed=session.config.seed, world=session.world, cond=cond)
                x = spec.together(x)
            x = x.float() if x.dtype == torch.bfloat16 else x
            images.append(picture(x, spec.kind, spec.bounds, columns, names, captions=below))
        manifest = {"sampling_steps": GRID_STEPS, "guidance": 1.0 if scale is None else scale}
        self._keep(session, beside(images, list(models)), manifest)

    def _texts(self, session: Session) -> None:
        """Texts of the averaged weights, one window each."""
        best = session.state.best
        count = max(1, min(_COLUMNS, _affordable(session, LAST_GRID if session.finished else GRID)))
        with evaluating(best):
            texts = sample_text(best, count, seed=session.config.seed)
        if session.world.leads:
            session.look()
            write_text(session.path / "samples" / f"step_{session.state.step:08d}.txt", RULE.join(texts))

    def _rows(self, session: Session) -> None:
        """Rows of a table, drawn by the averaged weights, as a .csv file."""
        best = session.best
        with evaluating(best):
            z = sample(best, _TABLE_ROWS, GRID_STEPS, seed=session.config.seed, normalised=True, world=session.world)
        if session.world.leads:
            session.look()
            rows = best.spec.denormalise(best.process.table(z))
            frames.write(
                frames.arrow(best.spec.table, rows), session.path / "samples" / f"step_{session.state.step:08d}.csv"
            )

    def _reconstructions(self, session: Session) -> None:
        """Show images beside their reconstructions by an autoencoder with averaged weights."""
        spec, best = session.denoiser.spec, session.state.best
        rows = (session.holdout if len(session.holdout) else session.train)[: _COLUMNS**2]
        if spec.kind != "image" or not hasattr(best, "decode"):
            return
        x = session.source.x[rows]
        with evaluating(best), torch.no_grad():
            back = best(x).cpu()
        images = [picture(each, spec.kind, spec.bounds, _COLUMNS, None) for each in (x, back)]
        self._keep(session, beside(images, ["data", "reconstruction"]), {"samples": len(x)})

    def _keep(self, session: Session, image: Any, manifest: Mapping[str, Any]) -> None:
        session.look()
        path: Path = session.path / "samples" / f"step_{session.state.step:08d}.png"
        if session.world.leads:
            save_png(image, path, {**session.provenance(), **manifest})
            self.loggers.picture(path, session.state.samples)


def _layout(session: Session) -> tuple[int, list[str], list[str] | None]:
    """(columns, class of each sample, names of the rows) for as many samples as the run can afford."""
    classes, points = session.source.classes, session.source.shape == (2,)
    count = max(_LEAST_GRID, _affordable(session, LAST_GRID if session.finished else GRID))
    if not classes:
        if points:
            return 1, [""] * min(_POINTS, count), None
        side = min(6, math.isqrt(count))
        return side, [""] * side**2, None
    rows = min(_ROWS, len(classes), count)
    columns = min(_POINTS // rows if points else _COLUMNS, count // rows)
    return columns, [name for name in classes[:rows] for _ in range(columns)], classes[:rows]


def _captions(session: Session, cond: Mapping[str, Any]) -> list[str] | None:
    """The texts of a grid's samples, as the model reads them."""
    spec = session.denoiser.spec
    name = next((name for name in cond if isinstance(spec.conditions[name], Text)), None)
    if name is None or len(spec.shape) < 3:
        return None
    return [text or "" for text in spec.conditions[name].decode(Given.of(cond[name]))]


def _shown(session: Session, labels: list[str]) -> Mapping[str, Any]:
    """The conditions of a grid: these classes, with all other conditions taken from unseen samples of the classes."""
    source, spec = session.source, session.denoiser.spec
    given = {"label": labels} if source.classes else {}
    if len(spec.conditions) <= len(given):
        return given
    unseen = session.holdout if len(session.holdout) else session.train
    unseen = unseen[noise.permutation(session.config.seed, 0, len(unseen))]
    rows, known = [], source.labels
    for i, label in enumerate(labels):
        own = unseen if known is None else unseen[known[unseen] == source.classes.index(label)]
        rows.append((own if len(own) else unseen)[i % max(len(own), 1)])
    return {**of_data(spec, source, torch.stack(rows)), **given}
