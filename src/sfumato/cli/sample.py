"""`sample`: from the path of a model alone to files."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sfumato import __version__, artefact, plans, sampling
from sfumato.cli import write
from sfumato.cli.run import Voice
from sfumato.compose import guide
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser
from sfumato.solvers import Plan
from sfumato.training.precision import compute_dtype, device_of
from sfumato.world import ALONE, World, joined

PER_CLASS, MOST_CLASSES, NUMBER = 10, 20, 64


def sample(options: Any, voice: Voice) -> None:
    with joined(device_of(options.device)) as world, world.together():
        made = draw(options, voice.note, world)
    facts = made["manifest"]
    voice.emit(made)
    what = made["out"] if made["files"] == 1 else f"{made['files']:,} files in {made['out']}"
    how = f"{facts['solver']}, {facts['calls']} calls each"
    voice.say(f"{facts['number']:,} samples in {made['seconds']:.1f} s ({how}): {what}")


def draw(options: Any, note: Callable[[str], None], world: World = ALONE) -> dict[str, Any]:
    """Sample and write as `options` (of the command) say; returns out, files, seconds and the manifest.

    Of many processes each samples a share, and the first writes.
    """
    started = time.monotonic()
    contract = artefact.read_contract(options.model)
    device = device_of(options.device) if world.size == 1 else world.device
    denoiser = artefact.load(options.model, options.weights, device)
    spec = _spec(denoiser, options.model)
    denoiser.compute_dtype = compute_dtype(options.precision, denoiser.device)
    out = world.told(lambda: options.out or write.default_name(spec))
    path, folder = world.told(lambda: (write.check(out), write.is_folder(out)))
    index = _index(options, spec)
    labels = _labels(options, spec, index)
    scale = guidance_scale(options, denoiser)
    interval = options.guidance_interval
    plan = plans.make_plan(denoiser, options.steps, options.solver, guidance=scale, interval=interval)
    model = denoiser if scale is None else guide(denoiser, scale, interval)
    _say_choices(options, spec, scale, note)
    if any(plan is own for own in denoiser.plans.values()):
        note(f"The model's own plan of {plan.steps} steps is used ({plan.name}); --solver takes another.")
    x = _draw(model, plan, options, index, labels, world)
    facts = manifest(options, contract, denoiser, plan, scale, index, spec)
    names = None if labels is None else labels.numpy()
    files = world.told(lambda: write.write(path, folder, x, names, spec, facts))
    return {"out": out, "files": files, "seconds": round(time.monotonic() - started, 2), "manifest": facts}


def _spec(denoiser: Denoiser, where: str) -> DataSpec:
    if denoiser.spec is None:
        raise SfumatoError(f"{where} has no data spec, so its samples have no units: use sf.sample in Python")
    return denoiser.spec


def _index(options: Any, spec: DataSpec) -> torch.Tensor:
    """The numbers of the samples."""
    number = options.number
    if number is None:
        few = 0 < len(spec.classes) <= MOST_CLASSES and options.class_ is None
        number = PER_CLASS * len(spec.classes) if few else NUMBER
    for name, value, least in (("-n", number, 1), ("--batch", options.batch, 1), ("--first", options.first, 0)):
        if value < least:
            raise SfumatoError(f"{name} must be at least {least}, not {value}")
    if not 0 <= options.seed < 2**63:
        raise SfumatoError(f"--seed must be from 0 to 2^63 - 1, not {options.seed}")
    return torch.arange(options.first, options.first + number)


def _labels(options: Any, spec: DataSpec, index: torch.Tensor) -> torch.Tensor | None:
    """The class of each sample: the one asked for, or all in turn by the sample's number."""
    if options.class_ is not None:
        return torch.full_like(index, spec.class_index(options.class_))
    return index % len(spec.classes) if spec.classes else None


def guidance_scale(options: Any, denoiser: Denoiser) -> float | None:
    """The guidance scale: asked for, or that of the model's training grids; None for a model without classes."""
    if denoiser.spec is not None and denoiser.spec.classes:
        return float(denoiser.provenance.get("guidance", 1.0) if options.guidance is None else options.guidance)
    if options.guidance is not None or options.guidance_interval is not None:
        raise SfumatoError("this model has no classes, so there is nothing to guide to: leave --guidance out")
    return None


def _say_choices(options: Any, spec: DataSpec, scale: float | None, note: Callable[[str], None]) -> None:
    """What was chosen where nobody said."""
    if spec.classes and options.class_ is None:
        note(f"No --class was given: the samples go through all {len(spec.classes)} classes in turn.")
    if scale is not None and options.guidance is None:
        note(f"Guidance scale {scale:g}; --guidance sets another.")


def _draw(
    model: Any, plan: Plan, options: Any, index: torch.Tensor, labels: torch.Tensor | None, world: World
) -> np.ndarray:
    """Samples batch by batch, with a bar on a terminal."""
    from tqdm import tqdm

    parts = []
    with tqdm(total=len(index), unit=" samples", disable=None if world.leads else True, leave=False) as bar:
        for rows in torch.arange(len(index)).split(options.batch * world.size):
            cond: dict[str, Any] = {} if labels is None else {"label": labels[rows]}
            parts.append(sampling.sample(model, solver=plan, seed=options.seed, index=index[rows], world=world, **cond))
            bar.update(len(rows))
    x = torch.cat(parts)
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()  # NumPy has no bfloat16


def manifest(
    options: Any, contract: dict[str, Any], denoiser: Denoiser, plan: Plan, scale: float | None,
    index: torch.Tensor, spec: DataSpec,
) -> dict[str, Any]:  # fmt: skip
    """What made the samples, enough to make them again."""
    dtype = denoiser.compute_dtype or torch.float32
    facts = {
        "software": f"sfumato {__version__}, torch {torch.__version__}",
        "model": contract["path"],
        "model_hash": contract["hash"],
        "weights": options.weights,
        "solver": plan.name,
        "steps": plan.steps,
        "calls": plan.spent,
        "seed": options.seed,
        "first": int(index[0]),
        "number": len(index),
        "precision": str(dtype).removeprefix("torch."),
        "device": denoiser.device.type,
    }
    if scale is not None:
        facts |= {"guidance": scale, "guidance_interval": options.guidance_interval}
        facts["class"] = "all in turn" if options.class_ is None else spec.classes[spec.class_index(options.class_)]
    return {name: value for name, value in facts.items() if value is not None}
