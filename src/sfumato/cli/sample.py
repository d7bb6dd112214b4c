"""`sample`: draw samples from a model file and write them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sfumato import __version__, sampling, serialization
from sfumato.cli import conditions as asked
from sfumato.cli import edit, table, text, write
from sfumato.cli.guidance import FLAGS, guided, heard, refuse_alone, refuse_guidance
from sfumato.cli.process import Follower, at_work
from sfumato.cli.run import Voice
from sfumato.conditions import Conditions, Field, Text
from sfumato.coupling_flow import CouplingFlow
from sfumato.data import DataSpec
from sfumato.diagnostics.examples import default_guidance
from sfumato.distributed import ALONE, World, joined
from sfumato.errors import SfumatoError, counted, whole
from sfumato.guidance import SCALE, Scale
from sfumato.machine import device_of
from sfumato.model import Denoiser
from sfumato.progress import counting
from sfumato.solvers import Plan
from sfumato.training.precision import compute_dtype

PER_CLASS, PER_CAPTION, MOST_CLASSES, NUMBER = 10, 4, 20, 64


def sample(options: Any, voice: Voice) -> None:
    with joined(device_of(options.device)) as world:
        made = draw(options, voice.note, world)
    voice.emit(made)
    voice.say(*text.shown(made.get("texts", ())), shown(made))


def shown(made: Mapping[str, Any]) -> str:
    """What was drawn, how and where, in words."""
    facts = made["manifest"]
    several = made["files"] > 1 and write.is_folder(made["out"])
    what = f"{made['files']:,} files in {made['out']}" if several else made["out"]
    how = f"{facts['solver']}, " + (
        f"{counted(facts['calls'], 'call')} each" if "calls" in facts else counted(facts["steps"], "step")
    )
    return f"{counted(facts['number'], 'sample')} in {made['seconds']:.1f} s ({how}): {what}"


@at_work()
def draw(options: Any, note: Callable[[str], None], world: World = ALONE, plain: bool = False) -> dict[str, Any]:
    """Sample and write according to the command's `options`; returns out, files, seconds and the manifest.

    plain: no classes in turn, and a single picture is written as it is, and not as a grid of one.

    Each of several processes draws a share of the samples, and the first one writes.
    """
    started = time.monotonic()
    contract = serialization.read_contract(options.model)
    device = device_of(options.device) if world.size == 1 else world.device
    denoiser = serialization.load_sampler(options.model, options.weights, device, sampling.STATELESS)
    spec, options = asked.spec_of(denoiser, options.model), heard(options, denoiser)
    options, notes = asked.retrieved(options, spec.conditions)
    stages, follow = getattr(denoiser, "stages", (denoiser,)), Follower()
    denoiser.compute_dtype = compute_dtype(options.precision, denoiser.device)
    for stage in stages:
        getattr(stage, "net", stage).register_forward_pre_hook(lambda *_: follow())
    _refuse_edits(options, denoiser)
    if spec.text is not None:
        edit.refuse(options, "text", "use --infill")
        given = asked.said(options, spec.conditions, options.class_)
        index = _index(options, spec, given)
        refuse_guidance(options, "a model of text")
        asked.conditions(given, spec, index)  # text has none, which this says
        return text.draw(options, denoiser, origin(options, contract, denoiser, index), world)
    text.refuse(options, "length" if spec.lengths is not None else "")
    if spec.table is not None:
        edit.refuse(options, "tables", "use --given, or sfumato impute for empty cells")
        index = _index(options, spec, {})
        refuse_guidance(options, "a model of tables")
        return table.draw(options, denoiser, origin(options, contract, denoiser, index), world)
    table.refuse(options)
    if (asked_edit := edit.wanted(options)) is not None:
        if world.size > 1:
            raise SfumatoError(f"--{asked_edit} is done by one process: start it without torchrun")
        options.number = edit.NUMBER if options.number is None else options.number
        index = _index(options, spec, {})
        _say(notes, note)
        return edit.draw(asked_edit, options, denoiser, origin(options, contract, denoiser, index), note)
    out = world.broadcast_result(lambda: options.out or write.default_name(spec))
    given = asked.said(options, spec.conditions, options.class_)
    index = _index(options, spec, given)
    path, folder = world.broadcast_result(lambda: (write.check_samples(out, len(index), spec), write.is_folder(out)))
    cond = asked.conditions(given, spec, index)
    cond = cond if plain else asked.in_turn(cond, spec, index)
    scale = guidance_scale(options, denoiser, cond)
    refuse_alone(options, scale)
    model = guided(options, denoiser, scale)
    plans = sampling.plans(model, options.steps, options.solver)
    if not plain:
        _say(notes, note)
        _say_choices(options, spec, given, cond, scale, note)
    for stage, plan in zip(stages, plans, strict=False):  # a coupling flow has no plan
        _say_plan(options, stage, plan, note)
    x = _draw(model, options, index, cond, world)
    columns = asked.columns(cond, spec) | asked.texts(given, spec, index)
    facts = manifest(options, contract, denoiser, plans, scale, index, given, columns)
    files = world.broadcast_result(lambda: write.write(path, folder, x, columns, spec, facts, plain))
    return {"out": out, "files": files, "seconds": round(time.monotonic() - started, 2), "manifest": facts}


def _say(lines: Sequence[str], note: Callable[[str], None]) -> None:
    for line in lines:
        note(line)


def _refuse_edits(options: Any, model: Any) -> None:
    """Raise SfumatoError for edits that the model cannot do, and for guidance of a coupling flow."""
    one = edit.wanted(options)
    if isinstance(model, CouplingFlow):
        refuse_guidance(options, "a coupling flow")
        if one is not None:
            raise SfumatoError(f"--{one} asks a model with noise levels, and this is a coupling flow: train a denoiser")
    edit.require(one, model)


def _index(options: Any, spec: DataSpec, given: Mapping[str, str]) -> torch.Tensor:
    """The numbers of the samples."""
    number, each = options.number, options.length if isinstance(options.length, list) else []
    if each and (spec.lengths is None or number not in (None, len(each))):
        where = f"-n is {number:,}: leave -n out" if spec.lengths is not None else "this model takes one: give one"
        raise SfumatoError(f"--length has {len(each):,} numbers, and {where}")
    captions = _captions(spec, given)
    number = len(each) if each else number
    if number is None and captions:
        number = PER_CAPTION * captions
    if number is None:
        few = 0 < len(spec.classes) <= MOST_CLASSES and "label" not in given
        number = (
            PER_CLASS * len(spec.classes)
            if few
            else {"text": text.NUMBER, "table": table.NUMBER}.get(spec.kind, NUMBER)
        )
    batch = 1 if options.batch is None else options.batch
    for name, value, least in (("-n", number, 1), ("--batch", batch, 1), ("--first", options.first, 0)):
        whole(name, value, least)
    if not 0 <= options.seed < 2**63:
        raise SfumatoError(f"--seed must be from 0 to 2^63 - 1, not {options.seed}")
    sampling.affordable(number, spec.shape)
    whole("the number of the last sample", options.first + number)
    return torch.arange(options.first, options.first + number)


def _captions(spec: DataSpec, given: Mapping[str, str]) -> int:
    """How many captions were given."""
    found = asked.values({n: v for n, v in given.items() if isinstance(spec.conditions.get(n), Text)}, spec.conditions)
    return max((len(each) if isinstance(each, list) else 1 for each in found.values()), default=0)


def guidance_scale(options: Any, denoiser: Denoiser, given: Collection[str]) -> Scale | None:
    """The guidance scale: the user's, or that of the model's training grids; None without guidance."""
    known = {} if denoiser.spec is None else denoiser.spec.conditions
    if given and options.guidance is None:
        usual = float(denoiser.provenance.get("guidance", 1.0))
        scale = default_guidance({name: known[name] for name in given}, usual)
        if scale is None and options.guidance_interval is not None:
            raise SfumatoError("--guidance-interval needs a scale here: also set --guidance")
        return scale
    if given or (options.guidance is not None and getattr(options, "autoguide", None) is not None):
        return float(options.guidance)
    if options.guidance is not None or options.guidance_interval is not None:
        if known:
            raise SfumatoError(
                f"there is nothing to guide to: give one of {', '.join(known)} by --condition NAME=VALUE"
            )
        raise SfumatoError("this model has no classes, so there is nothing to guide to: leave --guidance out")
    return None


def _say_choices(
    options: Any, spec: DataSpec, given: Mapping[str, str], cond: Conditions, scale: Scale | None,
    note: Callable[[str], None],
) -> None:  # fmt: skip
    """Print notes on choices that were made for the user."""
    if spec.classes and "label" not in given:
        classes = counted(len(spec.classes), "class", "classes")
        note(f"No --class was given: the samples go through all {classes} in turn.")
    left = [name for name in spec.conditions if name not in cond or not bool(cond.given(name).present.any())]
    if left:
        what = "FILE" if isinstance(spec.conditions[left[0]], Field) else "VALUE"
        sets = '--caption "TEXT"' if isinstance(spec.conditions[left[0]], Text) else f"--condition {left[0]}={what}"
        note(f"Sampled without a value for {', '.join(left)}: {sets} sets one.")
    if given and scale is None and SCALE not in given:  # a student of a range of guidance has it as a condition
        note("Not guided; --guidance sets a scale.")
    if scale is not None and options.guidance is None:
        each = scale.items() if isinstance(scale, Mapping) else ()
        words = ", ".join(f"{w:g} to {name}" for name, w in each) or f"{scale:g}"
        note(f"Guidance scale {words}; --guidance sets another.")


def _say_plan(options: Any, model: Any, plan: Plan, note: Callable[[str], None]) -> None:
    """Print a note where the model has a plan of its own for this number of steps."""
    steps = counted(plan.steps, "step")
    if any(plan is own for own in model.plans.values()):
        note(f"Using the model's own plan of {steps} ({plan.name}); --solver selects another.")
    elif options.solver is None and any(own.steps == plan.steps for own in model.plans.values()):
        note(f"The model's plan of {steps} is not used: `sfumato tune` fitted it for another guidance.")


def _draw(model: Any, options: Any, index: torch.Tensor, given: Conditions, world: World) -> Any:
    """Samples batch by batch: an array, or a list of the arrays of sequences of several lengths."""
    parts: list[Any] = []
    how = {name: getattr(options, name) for name in ("steps", "solver", "seed")} | {"world": world}
    length = options.length
    with counting("Drawing samples", len(index)) as count:
        for rows in torch.arange(len(index)).split((options.batch or sampling.BATCH) * world.size):
            own = [length[i] for i in rows.tolist()] if isinstance(length, list) else length
            parts.append(sampling.sample(model, index=index[rows], cond=given.rows(rows), length=own, **how))
            count(len(rows))
    if isinstance(parts[0], list):
        return [_plain(one) for part in parts for one in part]
    return _plain(torch.cat(parts))


def _plain(x: torch.Tensor) -> np.ndarray:
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()  # NumPy has no bfloat16


def origin(options: Any, contract: dict[str, Any], denoiser: Denoiser, index: torch.Tensor) -> dict[str, Any]:
    """What drew the samples, and which of a seed they are."""
    return {
        "software": f"sfumato {__version__}, torch {torch.__version__}",
        "model": contract["path"],
        "model_hash": contract["hash"],
        "weights": options.weights,
        "seed": options.seed,
        "first": int(index[0]),
        "number": len(index),
        "precision": str(denoiser.compute_dtype or torch.float32).removeprefix("torch."),
        "device": denoiser.device.type,
    }


def manifest(
    options: Any, contract: dict[str, Any], denoiser: Denoiser, plans: Sequence[Plan], scale: Scale | None,
    index: torch.Tensor, given: Mapping[str, str], columns: Mapping[str, list[Any]],
) -> dict[str, Any]:  # fmt: skip
    """Everything needed to draw the same samples again."""
    facts = origin(options, contract, denoiser, index)
    solvers = "; ".join(dict.fromkeys(plan.name for plan in plans))
    if plans:
        facts |= {"solver": solvers, "steps": plans[0].steps, "calls": sum(plan.spent for plan in plans)}
    else:
        facts |= {"solver": "the inverse of the flow", "steps": 1, "calls": 1}
    if scale is not None:
        facts |= {"guidance": scale, "guidance_interval": options.guidance_interval}
    facts |= {name: getattr(options, name) for name in (*FLAGS, "length")}
    spec = denoiser.spec
    facts["layout"] = spec.lengths.layout if spec is not None and spec.lengths is not None else None
    if spec is not None and spec.classes:
        drawn = set(columns["label"]) if "label" in given else {"all in turn"}
        facts |= {"class": drawn.pop()} if len(drawn) == 1 else {}
    others = {name: value for name, value in given.items() if name != "label" or "class" not in facts}
    if others:
        facts["conditions"] = others
    return {name: value for name, value in facts.items() if value is not None}
