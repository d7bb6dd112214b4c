"""`sf.doctor`: find faults in a run folder, a model file or a denoiser in memory, each reported under a code."""

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
from sfumato.data import Source
from sfumato.data.labels import read_labels
from sfumato.diagnostics import summary
from sfumato.diagnostics.checks import Evidence, Report, Weights, examine
from sfumato.diagnostics.checks.evidence import TRAINED, answers, draw, information, not_finite, parameters, paths
from sfumato.diagnostics.samples import fits
from sfumato.errors import SfumatoError, an, counted
from sfumato.flow_map import FlowMap
from sfumato.machine import default_cpu
from sfumato.noise import seeded
from sfumato.process import Gaussian, Paired
from sfumato.training import checkpoint
from sfumato.training.config import TrainConfig, from_dict
from sfumato.training.health import recorded
from sfumato.training.parts import known_here, rebuilt
from sfumato.training.run import opened


@default_cpu()
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
    """Find the faults of a run or a model; each has a code, evidence, a cure and a page in the documentation.

    subject: a run folder (finished, stopped or in progress), a model file, or a denoiser. data: whatever `sf.data.open`
    takes, in the user's units, with labels and size; not needed for a run on data from a path. For your own training
    loop, pass a denoiser with raw weights and also: average, the denoiser of the moving average; initial, the network's
    state dict before the first step (keep a copy); log, dicts with step, loss, and for validations valid_raw,
    valid_ema, valid_trivial; steps taken. seed: of the draws. Nothing is changed. The report lists which checks were
    made, and which could not be and why. Raises SfumatoError for anything that is neither a run nor a model, and for
    data of another shape.
    """
    given = None if data is None else _open(data, labels, size)
    if not isinstance(subject, str | os.PathLike):
        patient = _of_denoiser(subject, average, initial, log, steps)
        return _examined(patient, given, seed)
    path = Path(subject).expanduser()
    if path.is_dir() and folder.is_run(path):
        patient, settings = _of_run(path, torch.device(device))
        if given is None:
            given, why = _own_data(settings)
            patient = patient._replace(no_data=why)
    else:
        patient = _of_file(path, device)
    return _examined(patient, given, seed)


class _Patient(NamedTuple):
    """A subject: the denoisers of its raw weights and of their average, and the evidence that needs no data.

    made: its provenance. no_data: why there are no data unless the caller passes some.
    """

    name: str
    raw: Any
    average: Any
    made: Mapping[str, Any]
    known: Evidence
    no_data: str
    notes: tuple[str, ...] = ()


def _open(obj: Any, given: Any, size: int | None) -> Source:
    if isinstance(given, str | os.PathLike):
        given = read_labels(os.fspath(given))
    return data.open(obj, labels=given, size=size)


def _of_denoiser(model: Any, average: Any, initial: Any, log: Any, steps: int) -> _Patient:
    if isinstance(model, Wrapped) and not isinstance(model, FlowMap):
        raise SfumatoError(
            f"The doctor examines a network's outputs, which {an(type(model).__name__)} changes: pass the denoiser "
            "inside it, model.inner."
        )
    if not hasattr(model, "net") or not hasattr(model, "predict"):
        raise SfumatoError(f"The doctor examines a denoiser, a model file or a run, not {an(type(model).__name__)}.")
    made = dict(getattr(model, "provenance", None) or {})
    made["steps"] = steps or made.get("steps")
    absent = {"incidents": "without a run", "log": "without a log", "weights": "without the initial weights"}
    weights = None if initial is None else _weights(model, average, initial, made["steps"] or 0)
    known = Evidence(log=None if log is None else list(log), weights=weights, absent=absent)
    return _Patient(f"the {type(model).__name__}", model, average, made, known, "without data: give data=...")


def _of_file(path: Path, device: str | torch.device) -> _Patient:
    both = serialization.read_contract(path)["raw"]
    average = serialization.load_sampler(path, device=device)
    raw = serialization.load_sampler(path, "raw", device) if both else average
    absent = {"incidents": "since a file alone has no log", "log": "since a file alone has no log",
              "weights": "since a file alone does not hold the initial weights"}  # fmt: skip
    why = "since a file alone has no data (give --data)"
    return _Patient(str(path), raw, average if both else None, average.provenance, Evidence(absent=absent), why)


def _of_run(path: Path, device: torch.device) -> tuple[_Patient, TrainConfig]:
    contract, tensors, notes = checkpoint.weights(path)
    known_here(contract["config"], path)
    settings = from_dict(contract["config"], where=str(path))
    raw, average = (_model(contract, tensors, prefix, settings, device) for prefix in ("net.", "ema."))
    steps = int(contract["counters"]["step"])
    log = folder.read(path / "metrics.jsonl")
    known = Evidence(
        log=log,
        settings=settings.to_dict(),
        weights=_weights(raw, average, _initial(contract, tensors, settings), steps),
        incidents=folder.incidents(path),
        recorded=recorded(path),
    )
    state = summary.state(path, bool(log and log[-1].get("done")))
    made = {"times": settings.times, "holdout": settings.holdout, "steps": steps}
    return _Patient(f"{path} ({state}, step {steps:,})", raw, average, made, known, "", tuple(notes)), settings


def _model(
    contract: dict[str, Any], tensors: Mapping[str, Tensor], prefix: str, settings: TrainConfig, device: torch.device
) -> Any:
    """The denoiser with the weights of a checkpoint under this prefix; None if there are none."""
    if not any(name.startswith(prefix) for name in tensors):
        return None
    state = {  # an average has the weights that are trained alone
        name.removeprefix(each): value
        for each in ("net.", prefix)
        for name, value in tensors.items()
        if name.startswith(each)
    }
    denoiser = rebuilt(contract, checkpoint.size(tensors), settings, device)
    try:
        denoiser.net.load_state_dict(state)
    except RuntimeError:
        raise SfumatoError("The checkpoint does not hold the weights of its network.") from None
    for _, part in serialization.parts(denoiser):
        part.eval().requires_grad_(False)
    return denoiser


def _initial(
    contract: dict[str, Any], tensors: Mapping[str, Tensor], settings: TrainConfig
) -> dict[str, Tensor] | None:
    """The weights before the first step, recreated from the seed; None if the caller supplied them."""
    if contract.get("given"):
        return None
    size = checkpoint.size(tensors)
    with seeded(settings.seed), serialization.building(contract["net"], *size, "the checkpoint"):
        return {name: p.detach() for name, p in nets.from_config(contract["net"]).named_parameters()}


def _weights(model: Any, average: Any, initial: dict[str, Tensor] | None, steps: int) -> Weights:
    return Weights(initial, parameters(model), None if average is None else parameters(average), steps)


def _own_data(settings: TrainConfig) -> tuple[Source | None, str]:
    """(the data that a run names, why they are not available)."""
    if not settings.data:
        return None, "since the data were in memory (give --data)"
    try:
        return opened(settings.data, None, settings), ""
    except SfumatoError as error:
        return None, f"since the data cannot be read (give --data; {str(error).rstrip('.')})"


def _examined(patient: _Patient, source: Source | None, seed: int) -> Report:
    """The report, with the evidence from the data and the network's outputs on them."""
    known = dataclasses.replace(patient.known, not_finite=not_finite(patient.raw, patient.average))
    notes = patient.notes
    if known.not_finite:  # its outputs cannot be judged
        known = dataclasses.replace(known, weights=None, log=None)
        absent = dict.fromkeys(("sample", "answers", "weights", "log"), "since the weights are not finite")
    elif source is None:
        absent = dict.fromkeys(("sample", "answers"), patient.no_data)
    else:
        fits(patient.raw, source)
        train, held, note = _sides(source, patient.made)
        known = dataclasses.replace(known, sample=draw(patient.raw, source, train, seed))
        absent = _unasked(patient)
        unseen = {} if known.sample is not None else {"sample": "since hardly any sample is whole"}
        rows = held if len(held) else train
        if not absent:
            known = dataclasses.replace(
                known,
                answers=answers(patient.raw, source, rows, patient.made.get("times"), seed, held=len(held) > 0),
                information=information(patient.raw, source, rows, seed),
            )
            notes += (note,) if note else ()
        if not _untrained(patient):
            known = dataclasses.replace(known, paths=paths(patient.raw, source, rows, seed))
        absent |= unseen
    return examine(dataclasses.replace(known, absent={**known.absent, **absent}), patient.name, notes)


def _unasked(patient: _Patient) -> dict[str, str]:
    """Why the network's outputs are not examined; empty if they are."""
    model = patient.raw
    process = getattr(model, "process", None)
    if _untrained(patient):
        return {"answers": f"since the network has hardly learned in {counted(patient.made['steps'], 'step')}"}
    if getattr(model, "gamma", 0):
        return {"answers": "since a flow map that renews noise between its calls need not be a denoiser"}
    if process is None:
        return {"answers": f"since {an(type(model).__name__)} has no noise levels"}
    if isinstance(process, Paired):
        return {"answers": f"since {type(process).__name__} has a source beside its state"}
    if not isinstance(process, Gaussian):
        return {"answers": f"since they need real numbers, and {type(process).__name__} has other states"}
    return {}


def _untrained(patient: _Patient) -> bool:
    """Whether a network has hardly learned."""
    steps = patient.made.get("steps")
    return steps is not None and steps < TRAINED


def _sides(source: Source, made: Mapping[str, Any]) -> tuple[Tensor, Tensor, str]:
    """(rows of training, rows held out, a note): for the training data as training split it, for other data all."""
    fraction = made.get("holdout")
    own = "samples" not in made or (made["samples"], made.get("data")) == (len(source), source.name)
    if fraction is None or not own:
        every = torch.arange(len(source))
        return every, every, ""
    train, held = source.split(fraction)
    if len(held) >= 8:
        return train, held, ""
    return train, held[:0], "Too little was held out to judge by: the network is examined on its training samples."
