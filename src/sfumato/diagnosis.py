"""`sf.doctor`: a run folder, a model file or a denoiser in memory -> a report of what is wrong with it, by code."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfumato import data, folder, nets, serialization
from sfumato.compose import Wrapped
from sfumato.data import DataSpec, Source
from sfumato.data.labels import read_labels
from sfumato.diagnostics.checks import Evidence, Report, Sample, examine
from sfumato.diagnostics.checks.evidence import draw
from sfumato.diagnostics.checks.gather import TRAINED, answers, broken, labels, told, weights
from sfumato.diagnostics.samples import fits
from sfumato.errors import SfumatoError
from sfumato.noise import seeded
from sfumato.process import Gaussian
from sfumato.training import checkpoint
from sfumato.training.config import TrainConfig, from_dict
from sfumato.training.health import recorded
from sfumato.training.parts import known_here, rebuilt


def doctor(
    subject: Any,
    data: Any = None,
    labels: Any = None,
    *,
    size: int | None = None,
    average: Any = None,
    initial: dict[str, Tensor] | None = None,
    log: Sequence[dict[str, Any]] | None = None,
    steps: int = 0,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Report:
    """What is wrong with a run or a model, each fault under a code with its evidence, its cure and a page.

    subject: a run folder (finished, stopped or under way), a model file, or a denoiser. data: whatever `sf.data.open`
    takes, in the user's units, with labels and size; a run whose data came from a path brings its own. For a loop of
    one's own, beside a denoiser of raw weights: average, that of the moving average; initial, the state dict of the
    network before the first step (keep a copy); log, dicts with step, loss, and valid_raw, valid_ema, valid_trivial
    where there are validations; steps taken. seed: of the draws.
    Nothing is changed. The report says what was looked for and what could not be, and why. Raises SfumatoError for
    what is neither a run nor a model, and for data of another shape.
    """
    given = None if data is None else _open(data, labels, size)
    if not isinstance(subject, str | os.PathLike):
        return _of_denoiser(subject, given, average, initial, log, steps, seed)
    path = Path(subject).expanduser()
    if path.is_dir() and folder.is_run(path):
        return _of_run(path, given, seed, torch.device(device))
    return _of_file(path, given, seed, device)


class _Patient(NamedTuple):
    """What a subject is: its raw denoiser and its average, and what its file says of its training."""

    raw: Any
    average: Any
    times: str | None
    made: dict[str, Any]
    steps: int | None


def _open(obj: Any, given: Any, size: int | None, kinds: Mapping[str, str] | None = None) -> Source:
    if isinstance(given, str | os.PathLike):
        given = read_labels(os.fspath(given))
    return data.open(obj, labels=given, size=size, conditions=kinds)


def _of_denoiser(
    model: Any, given: Source | None, average: Any, initial: Any, log: Any, steps: int, seed: int
) -> Report:
    if isinstance(model, Wrapped):
        raise SfumatoError(
            f"A doctor looks at what a network answers, and a {type(model).__name__} changes that: give the denoiser "
            "within it, model.inner."
        )
    if not hasattr(model, "net") or not hasattr(model, "predict"):
        raise SfumatoError(f"A doctor looks at a denoiser, a model file or a run, and not at a {type(model).__name__}.")
    made = getattr(model, "provenance", None) or {}
    patient = _Patient(model, average, made.get("times"), made, steps or made.get("steps"))
    absent = {"incidents": "without a run", "log": "without a log", "weights": "without the initial weights"}
    known = weights(model, average, initial, steps or int(made.get("steps", 0))) if initial is not None else None
    evidence = Evidence(log=None if log is None else list(log), weights=known, absent=absent)
    return _examined(evidence, patient, given, f"the {type(model).__name__}", seed, "without data: give data=...", ())


def _of_file(path: Path, given: Source | None, seed: int, device: str | torch.device) -> Report:
    facts = serialization.read_contract(path)
    average = serialization.load_sampler(path, device=device)
    made = average.provenance
    raw = serialization.load_sampler(path, "raw", device) if facts["raw"] else average
    patient = _Patient(raw, average if facts["raw"] else None, made.get("times"), made, made.get("steps"))
    absent = {"incidents": "since a file alone has no log", "log": "since a file alone has no log",
              "weights": "since a file alone does not hold the initial weights"}  # fmt: skip
    why = "since a file alone has no data: give --data"
    return _examined(Evidence(absent=absent), patient, given, str(path), seed, why, ())


def _of_run(path: Path, given: Source | None, seed: int, device: torch.device) -> Report:
    contract, tensors, notes = checkpoint.weights(path)
    known_here(contract["config"], path)
    settings = from_dict(contract["config"], where=str(path))
    raw, average = _models(contract, tensors, settings, device)
    steps = int(contract["counters"]["step"])
    first = _initial(contract, settings)
    log = folder.read(path / "metrics.jsonl")
    why = ""
    if given is None:
        given, why = _own_data(settings)
    evidence = Evidence(
        log=log,
        settings=settings.to_dict(),
        weights=weights(raw, average, first, steps),
        incidents=folder.incidents(path),
        recorded=recorded(path),
    )
    state = "finished" if log and log[-1].get("done") else "not finished"
    patient = _Patient(raw, average, settings.times, {"holdout": settings.holdout}, steps)
    return _examined(evidence, patient, given, f"{path} ({state}, step {steps:,})", seed, why, tuple(notes))


def _models(
    contract: dict[str, Any], tensors: Mapping[str, Tensor], settings: TrainConfig, device: torch.device
) -> tuple[Any, Any]:
    """(the denoiser of the raw weights, that of their average or None) of a checkpoint."""
    found = []
    for prefix in ("net.", "ema."):
        state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        denoiser = None
        if state:
            denoiser = rebuilt(contract, settings, device)
            denoiser.net.load_state_dict(state)
            denoiser.eval().requires_grad_(False)
        found.append(denoiser)
    return found[0], found[1]


def _initial(contract: dict[str, Any], settings: TrainConfig) -> dict[str, Tensor] | None:
    """The weights before the first step, made anew from the seed; none where the run was given its start."""
    if contract.get("given"):
        return None
    with seeded(settings.seed):
        return {name: p.detach() for name, p in nets.from_config(contract["net"]).named_parameters()}


def _own_data(settings: TrainConfig) -> tuple[Source | None, str]:
    """(the data that a run names, why they cannot be had)."""
    if not settings.data:
        return None, "since the data were in memory: give --data"
    try:
        return _open(settings.data, settings.labels, settings.size, settings.conditions), ""
    except SfumatoError as error:
        return None, f"since the data cannot be read ({str(error).rstrip('.')}): give --data"


def _examined(
    evidence: Evidence, patient: _Patient, source: Source | None, subject: str, seed: int, why: str,
    notes: tuple[str, ...],
) -> Report:  # fmt: skip
    """The report, with what the data and the network's answers on them add."""
    model, spec = patient.raw, patient.raw.spec
    evidence = dataclasses.replace(evidence, broken=broken(model, patient.average))
    if evidence.broken:  # such a network answers with nothing that could be judged
        evidence = dataclasses.replace(evidence, weights=None)
        missing = dict.fromkeys(("sample", "answers", "weights", "log"), "since the weights are not finite")
        return examine(dataclasses.replace(evidence, log=None, absent={**evidence.absent, **missing}), subject, notes)
    if source is None:
        missing = {**evidence.absent, "sample": why, "answers": why}
        return examine(dataclasses.replace(evidence, absent=missing), subject, notes)
    fits(model, source)
    train, held, note = _sides(source, patient.made)
    sample = _sample(source, train, spec, seed, float(getattr(model, "sigma_data", 1.0)))
    asked = held if len(held) else train
    if patient.steps is not None and patient.steps < TRAINED:
        early = f"since the network has hardly learned in {patient.steps} steps"
        known = dataclasses.replace(evidence, sample=sample, absent={**evidence.absent, "answers": early})
        return examine(known, subject, notes)
    process = getattr(model, "process", None)
    if not isinstance(process, Gaussian):
        other = f"since they are about real numbers, and the states of {type(process).__name__} are others"
        other = f"since a {type(model).__name__} has no noise levels" if process is None else other
        known = dataclasses.replace(evidence, sample=sample, absent={**evidence.absent, "answers": other})
        return examine(known, subject, notes)
    found = answers(model, source, asked, patient.times, seed, held=len(held) > 0 or not note)
    both = dataclasses.replace(evidence, sample=sample, answers=found, told=told(model, source, asked, seed))
    return examine(both, subject, (*notes, *((note,) if note else ())))


def _sides(source: Source, made: dict[str, Any]) -> tuple[Tensor, Tensor, str]:
    """(rows of training, rows held out, a note): of the training data what was held out, of others all."""
    fraction = made.get("holdout")
    own = "samples" not in made or (made["samples"], made.get("data")) == (len(source), source.name)
    if fraction is None or not own:
        every = torch.arange(len(source))
        return every, every, ""
    train, held = source.split(fraction)
    if len(held) < 8:
        return (
            train,
            held[:0],
            "Too little was held out to judge by: the network is asked about what it was trained on.",
        )
    return train, held, ""


def _sample(source: Source, rows: Tensor, spec: DataSpec | None, seed: int, scale: float) -> Sample:
    known = labels(source, rows, spec)
    return draw(source.x, rows, known, spec, seed, 1.0 if spec is not None else scale)
