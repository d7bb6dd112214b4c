"""A model, or samples, measured against real data: each metric beside its floor, under the hash of its protocol.

    value = metric(n samples, n real),    floor = metric(n other real, n real)

Samples are drawn under the conditions of the other real samples, so that value and floor differ by the model alone.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from sfumato import data, noise, sampling, serialization
from sfumato.autoregressive import Autoregressive
from sfumato.conditions import of_data
from sfumato.data import Source, frames
from sfumato.data.opening import lengthened
from sfumato.diagnostics.memorization import drawn
from sfumato.diagnostics.samples import fits, trained_on
from sfumato.errors import SfumatoError, counted, suggest, whole
from sfumato.guidance import guide
from sfumato.machine import default_cpu, device_of
from sfumato.metrics.metric import Metric
from sfumato.metrics.reference import Reference, converted, described, digest
from sfumato.model import unordered as without_order
from sfumato.registry import make
from sfumato.solver_selection import AnySolver
from sfumato.state import samples
from sfumato.text_samples import STEPS, sample_text

NUMBER, TEXTS = 1000, 100  # samples, if there are so many real ones
PARTS = ("train", "holdout", "all")
IMAGES = ("kid", "precision", "recall", "density", "coverage", "marginals", "spectrum")
FIELDS = ("sliced-wasserstein", "mmd", "energy", "marginals", "spectrum", "autocorrelation")
SETS = ("lengths", "sliced-wasserstein", "mmd", "energy", "marginals")
SEQUENCES = (*SETS, "step-marginals", "autocorrelation")
OF_PLACES = ("spectrum", "autocorrelation")
OF_ROWS = ("total-variation", "kolmogorov", "association", "worst-association", "rows-c2st", "utility")
OF_TABLES = ("closer-to-train", "copies")
OF_TEXT = ("ngram-overlap", "distinct", "known-words")
GIVEN: dict[str, Any] = {"sampler": "given"}
SWEPT = ("steps", "solver", "guidance", "seed")
_AND = re.compile(r",(?![^(]*\))\s*")  # a comma between names, and not between the settings of one


def named(metrics: Sequence[Any] | str) -> list[Any]:
    """Metrics one by one, of text with commas between their names or of a list, "kid,mmd(bandwidth=2)"."""
    listed = [metrics] if isinstance(metrics, str) else metrics
    return [one for each in listed for one in (_AND.split(each) if isinstance(each, str) else [each])]


@final
class Evaluator:
    """A model or samples with their real data: `Evaluator(...)(steps=10)` measures one way to sample.

    The arguments are those of `evaluate`.
    """

    def __init__(
        self, model: Any, reference: Any, metrics: Sequence[Any] | str | None = None, n: int | None = None, *,
        features: Any = None, part: str | None = None, weights: str | None = None, batch: int = 256,
        device: str | torch.device = "cpu", unordered: bool | None = None,
    ) -> None:  # fmt: skip
        if weights is None and isinstance(model, str | os.PathLike):
            weights = "ema"
        self.model, self.weights, self.batch = opened(model, weights, device), weights, whole("batch", batch)
        known = getattr(self.model, "spec", None)
        self.source = data.open(reference, conditions=known)
        self.unordered = without_order(self.model) if unordered is None else unordered
        self.given = None if is_model(self.model) else self._samples(self.model)
        self.part, self.split = self._rows(part)
        self.rows = {"train": self.split[0], "holdout": self.split[1], "all": torch.arange(len(self.source))}
        self.own_part = "holdout" if part is None and self.part == "train" else self.part
        rows = self.rows[self.part]
        n = self._number(n, len(rows))
        self.reference = Reference(self.source, rows, n, features, device_of(device), self.unordered)
        chosen = self._usual() if metrics is None else named(metrics)
        self.metrics = {str(each): make("metric", each) for each in chosen}

    def __call__(
        self, steps: int | None = None, solver: AnySolver | None = None, guidance: float | None = None, seed: int = 0,
        samples: Tensor | None = None,
    ) -> dict[str, Metric]:  # fmt: skip
        """Metrics by name, of new samples of the model; given samples are measured as they are.

        samples: n or more that the model has drawn so, under the conditions of `reference.rest`, instead of new ones.
        """
        judged, facts = self.given, GIVEN
        if self.given is None and any(metric.space != "model" for metric in self.metrics.values()):
            judged, facts = self._drawn(steps, solver, guidance, seed, samples)
        found = {}
        for name, metric in self.metrics.items():
            if metric.space == "model":
                found[name] = self._of_model(name, metric)
                continue
            value, floor = self.reference.measure(metric, self._as_real(judged))
            found[name] = Metric(value, floor, {**self.reference.protocol(metric), "part": self.part, **facts})
        return found

    def _as_real(self, judged: Any) -> Any:
        """Samples with the values missing that real ones lack."""
        return self.reference.with_gaps(judged) if isinstance(judged, Tensor) and self.source.missing else judged

    def _of_model(self, name: str, metric: Any) -> Metric:
        """A measure of the model itself, on what was held out if no part was asked for."""
        if self.given is not None:
            raise SfumatoError(f"{name} measures a model, and samples are none: leave it out.")
        protocol = {"metric": described(metric), "reference": self.source.name, "weights": self.weights}
        rows = self.rows[self.own_part]
        protocol |= {"part": self.own_part, "reference_hash": digest(self.source, rows)}
        protocol["likelihood"] = "exact" if isinstance(self.model, Autoregressive) else "bound"
        return Metric(metric(self.model, self.source, self.split[0], rows), None, protocol)

    def _samples(self, given: Any) -> Any:
        """The samples that are given, in the units of the real data."""
        if isinstance(given, str | os.PathLike):
            given = data.open(given, conditions=self._known())
        if self.source.text is not None:
            if isinstance(given, list) and all(isinstance(each, str) for each in given):
                return given
            raise SfumatoError("Samples of text are given as a list of strings, in Python.")
        table = self.source.table
        if table is not None:
            if isinstance(given, Source) and given.table is not None:
                return table.encode(given.table.decode(given.x[torch.arange(len(given))]))
            return table.encode(frames.columns_of(frames.arrow_of(given), table))
        if self.source.layout:
            return self._sequences(given)
        if isinstance(given, Source):
            if given.layout or (given.missing and not self.source.missing):
                raise SfumatoError(f"{given.name} has {given.gaps}, and metrics compare whole samples of one shape.")
            return converted(given.x[torch.arange(len(given))], given, self.source)
        x = samples(given, "evaluate", gaps=bool(self.source.missing)).detach().cpu()
        if tuple(x.shape[1:]) != self.source.shape:
            raise SfumatoError(
                f"The samples have shape {tuple(x.shape[1:])}, but {self.source.name} {self.source.shape}."
            )
        return x

    def _known(self) -> data.DataSpec | None:
        """How sequences that are given lie; None for other data."""
        return data.DataSpec.fit(self.source) if self.source.layout else None

    def _sequences(self, given: Any) -> Tensor:
        """Sequences that are given, padded as the real ones, which are padded to the longest of both."""
        if not isinstance(given, Source | Tensor):
            given = data.open(given, conditions=self._known())
        x = given.x[torch.arange(len(given))] if isinstance(given, Source) else given.detach().cpu()
        if x.ndim != 3 or x.shape[1] != self.source.shape[0]:
            raise SfumatoError(
                f"The samples have shape {tuple(x.shape[1:])}, and {self.source.name} has sequences of "
                f"{counted(self.source.shape[0], 'channel')}, which are given as a list or a file of them."
            )
        self.source = lengthened(self.source, x.shape[2])
        return torch.nn.functional.pad(x, (0, self.source.shape[1] - x.shape[2]), value=torch.nan)

    def _rows(self, part: str | None) -> tuple[str, tuple[Tensor, Tensor]]:
        """(part, (rows of training, rows held out)): those of the training, where it was on these data."""
        every = torch.arange(len(self.source))
        made = getattr(self.model, "provenance", None) or {}
        if self.given is not None or not trained_on(self.model, self.source) or not made.get("holdout"):
            if part not in (None, "all"):
                raise SfumatoError(f"--part {part} needs the data that the model was trained on, with a hold-out.")
            return "all", (every, every)
        if part is not None and part not in PARTS:
            raise SfumatoError(f"There is no part {part!r}: {suggest(part, PARTS)}")
        return part or "train", self.source.split(made["holdout"])

    def _number(self, n: int | None, rows: int) -> int:
        """The number of samples: at most half of the real ones."""
        have = rows // 2 if self.given is None else min(rows // 2, len(self.given))
        usual = TEXTS if self.source.text is not None else NUMBER
        n = min(usual, have) if n is None else whole("n, the number of samples,", n, 2)
        if self.given is not None:
            if len(self.given) < n:
                raise SfumatoError(
                    f"There are {len(self.given):,} samples, and {n:,} were asked for: choose fewer (-n)."
                )
            order = noise.permutation(0, 0, len(self.given))[:n].tolist()
            self.given = [self.given[i] for i in order] if isinstance(self.given, list) else self.given[order]
        return n

    def _usual(self) -> Sequence[str]:
        if self.source.text is not None:
            return OF_TEXT if self.given is not None else ("bits-per-character", *OF_TEXT)
        if self.source.table is not None:
            return self._of_rows()
        if self.source.layout:
            return SETS if self.unordered else SEQUENCES if self.source.shape[1] >= 4 else SEQUENCES[:-1]
        places = () if self.unordered else self.source.shape[1:]
        chosen = IMAGES if self.source.kind == "image" else FIELDS
        return chosen if places and min(places) >= 4 else [name for name in chosen if name not in OF_PLACES]

    def _of_rows(self) -> Sequence[str]:
        """The metrics of tables that this one's columns allow; of the model where training held rows out."""
        table = self.source.table
        assert table is not None
        numbers, levels = table.numbers, len(table.fields) - table.numbers + sum(f.missing for f in table.fields)
        left = {"total-variation"} if not levels else set()
        left |= {"kolmogorov"} if not numbers else set()
        left |= {"association", "worst-association", "utility"} if len(table.fields) < 2 else set()
        own = OF_TABLES if self.given is None and not torch.equal(*self.split) else ()
        return [*(name for name in OF_ROWS if name not in left), *own]

    def _drawn(
        self, steps: int | None, solver: AnySolver | None, guidance: float | None, seed: int, x: Tensor | None
    ) -> tuple[Any, dict[str, Any]]:
        """(x or new samples, the fields of the protocol that say how they were drawn)."""
        model, n, seed = self.model, self.reference.n, whole("seed", seed, None)
        kept = {"guidance": guidance, "seed": seed, "weights": self.weights}
        kept["precision"] = str(getattr(model, "compute_dtype", None) or torch.float32).removeprefix("torch.")
        cond = of_data(model, self.source, self.reference.rest)
        if guidance is not None and not cond:
            raise SfumatoError("The model and the real data share no condition, so there is no guidance: leave it out.")
        if self.source.text is not None:
            texts = sample_text(model, n, steps=steps, solver=solver, seed=seed, batch=self.batch)
            whole_text = isinstance(model, Autoregressive)
            calls = model.shape[-1] if whole_text else min(steps or STEPS, model.shape[-1])
            name = "autoregressive" if whole_text else str(solver or "reveal")
            return texts, {"sampler": name, "steps": calls, "calls": calls, "conditions": [], **kept}
        fits(model, self.source)
        drawn_from = model if guidance is None else guide(model, guidance)
        plans = sampling.plans(drawn_from, steps, solver)
        x = drawn(drawn_from, n, steps, seed, cond, self.batch, solver=solver) if x is None else x[:n]
        facts: dict[str, Any] = {"sampler": "coupling flow", "steps": 1, "calls": 1}
        if plans:
            names = "; ".join(dict.fromkeys(plan.name for plan in plans))
            facts = {"sampler": names, "steps": plans[0].steps, "calls": sum(plan.spent for plan in plans)}
        return x, {**facts, "conditions": sorted(cond), **kept}


@default_cpu()
def evaluate(
    model: Any,
    reference: Any,
    metrics: Sequence[Any] | str | None = None,
    n: int | None = None,
    *,
    features: Any = None,
    part: str | None = None,
    steps: int | None = None,
    solver: AnySolver | None = None,
    guidance: float | None = None,
    seed: int = 0,
    weights: str | None = None,
    batch: int = 256,
    device: str | torch.device = "cpu",
    unordered: bool | None = None,
) -> dict[str, Metric]:
    """Metrics by name of a model against real data, each with its interval, its floor and its protocol.

    model: a denoiser, the path of a model file or run folder, or samples: a tensor or array (n, *shape) in the units of
    the reference, a list of texts, or the path of samples in files. reference: real data, as `sf.data.open` takes them.
    metrics: names such as "kid" or "kid,mmd(bandwidth=2)", or objects; by default those usual for this kind of data.
    n: samples, 1,000 by default (texts 100), at most half of the real ones. features: a name, a file of weights
    (.safetensors or .pth) of the FID's Inception network, or a module or a function x (n, *shape) in the units of the
    data -> (n, F). part: of the training data: train (the default), holdout or all. steps, solver, guidance, seed: of
    the samples, which are drawn under the conditions of real ones, and by default unguided. weights: "ema" (the
    default) or "raw" of a path; of a model, what the protocol is to say of its weights. unordered: whether samples are
    sets of points (C, L), whose order says nothing; by default those of a network without positions are.

    Of sequences of several lengths samples are a list of arrays. Beyond each end metrics of numbers see 0 and a mask.
    Where real samples have missing values, the same are taken out of the others, which is fair if they are missing at
    random.

    Raises SfumatoError for too few real samples, and where a metric cannot be measured so.
    """
    how = {"features": features, "part": part, "weights": weights, "batch": batch, "device": device}
    how["unordered"] = unordered
    return Evaluator(model, reference, metrics, n, **how)(steps, solver, guidance, seed)


class Point(NamedTuple):
    """One way to sample, and what was measured of it."""

    settings: dict[str, Any]
    metrics: dict[str, Metric]


@default_cpu()
def sweep(evaluator: Evaluator, over: Mapping[str, Sequence[Any]], **fixed: Any) -> list[Point]:
    """Metrics for every combination of settings: `sweep(sf.metrics.Evaluator(...), {"steps": [5, 10, 20]})`.

    over: steps, solver, guidance or seed -> values; fixed: the others of them.
    """
    for name in over:
        if name not in SWEPT:
            raise SfumatoError(f"{name} cannot be swept: {suggest(name, SWEPT)}")
    if evaluator.given is not None:
        raise SfumatoError("Samples that are given cannot be drawn anew: sweep a model.")
    points = []
    for values in itertools.product(*over.values()):
        settings = dict(zip(over, values, strict=True))
        points.append(Point(settings, evaluator(**{**fixed, **settings})))
    return points


def is_model(thing: Any) -> bool:
    """Whether this draws samples, rather than being some."""
    return hasattr(thing, "process") or isinstance(thing, (Autoregressive, *sampling.STATELESS))


def opened(model: Any, weights: str | None, device: str | torch.device) -> Any:
    """The model of a path, or the samples of one; anything else as it is."""
    if isinstance(model, Tensor | np.ndarray):
        return samples(model, "evaluate", gaps=True)
    if not isinstance(model, str | os.PathLike):
        return model
    path = Path(model).expanduser()
    if path.suffix == ".safetensors" or (path / serialization.FILE).is_file() or (path / "checkpoints").is_dir():
        return serialization.load_sampler(model, weights or "ema", device_of(device), sampling.STATELESS)
    return path if path.exists() else data.open(model)
