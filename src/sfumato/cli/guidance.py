"""The flags of guidance as a model, and `explain-guidance`."""

from __future__ import annotations

import argparse
from typing import Any

from sfumato import serialization
from sfumato.cascade import Staged
from sfumato.cli import conditions as asked
from sfumato.cli.process import at_work
from sfumato.cli.run import Voice
from sfumato.conditions import declared
from sfumato.errors import SfumatoError
from sfumato.guidance import SCALE, Autoguided, Rescaled, Scale, Thresholded, guide
from sfumato.guidance_laws import explain_guidance as laws_of
from sfumato.machine import device_of
from sfumato.objectives.taught import lesson
from sfumato.registry import bare

FLAGS = ("negative", "rescale", "threshold", "autoguide")  # beside --guidance and its interval


@at_work()
def explain_guidance(options: Any, voice: Voice) -> None:
    model = serialization.load_sampler(options.model, options.weights, device_of(options.device))
    known = asked.spec_of(model, options.model).conditions
    given = asked.values(asked.said(options, known, options.class_), known)
    if not given:
        raise SfumatoError("guidance is explained for one condition: give --class CLASS or --condition NAME=VALUE")
    found = laws_of(
        model, options.guidance, options.number, options.steps, measured=options.measured, seed=options.seed, cond=given
    )
    voice.emit(found.to_dict())
    voice.say(*str(found).split("\n"))


def guided(options: Any, model: Any, scale: Scale | None) -> Any:
    """The model under the guidance that the flags name, of one of stages each, to the conditions that it knows."""
    negative = None if options.negative is None else _negative(options.negative, model)
    if not isinstance(model, Staged):
        return _guided(options, model, scale, negative, options.threshold)
    if options.autoguide is not None:
        raise SfumatoError("--autoguide guides one model by another, and this one has stages: leave it out")

    def one(stage: Any) -> Any:
        bounded = stage.spec is None or stage.spec.bounds is not None  # embeddings have no bounds
        own, away = model.for_stage(stage, scale), model.for_stage(stage, negative)
        return _guided(options, stage, None if own == {} else own, away, options.threshold if bounded else None)

    return model.each_stage(one)


def _guided(options: Any, model: Any, scale: Scale | None, negative: Any, threshold: str | None) -> Any:
    interval, share = options.guidance_interval, options.rescale
    if options.autoguide is not None:
        if share is not None or negative is not None:
            raise SfumatoError("--autoguide guides away from a model: leave --negative and --rescale out")
        found: Any = Autoguided(model, _weak(options, model), 1.0 if scale is None else scale, interval)
    elif share is not None and scale is not None:
        found = Rescaled(model, scale, interval, negative, share)
    else:
        found = model if scale is None else guide(model, scale, interval, negative)
    return found if threshold is None else Thresholded(found, _quantile(threshold))


def heard(options: Any, model: Any) -> Any:
    """The options for a student that hears its scale of guidance: --guidance is then its condition. Raises
    SfumatoError for one whose guidance is in its weights."""
    if options.guidance is None or not getattr(model, "two_times", False):
        return options
    if SCALE not in (declared(model) or {}):
        if options.solver is not None and bare(options.solver) != "map":  # which takes it as a denoiser
            return options
        taught = lesson(model.provenance.get("loss"))
        fixed = "" if taught is None else f": it was distilled {taught.guided()}"
        raise SfumatoError(
            f"the guidance of a student is in its weights{fixed}; leave --guidance out, or distil its teacher with "
            "--guidance 1:4, a range of which samples choose"
        )
    given = [*options.condition, (SCALE, f"{options.guidance:g}")]
    return argparse.Namespace(**{**vars(options), "guidance": None, "condition": given})


def refuse_alone(options: Any, scale: Scale | None) -> None:
    """Raise SfumatoError for flags that need a scale, where there is none."""
    alone = next((name for name in ("negative", "rescale", "autoguide") if getattr(options, name) is not None), None)
    if scale is None and alone is not None:
        raise SfumatoError(f"--{alone} needs a guidance scale: also set --guidance")


def refuse_guidance(options: Any, what: str) -> None:
    """Raise SfumatoError for flags of guidance, given to what has no conditions to guide to."""
    for name in ("guidance", "guidance_interval", *FLAGS):
        if getattr(options, name) is not None:
            raise SfumatoError(f"{what} has no guidance: leave --{name.replace('_', '-')} out")


def _negative(text: str, model: Any) -> dict[str, Any]:
    """The negative condition, as typed: NAME=VALUE, or a class."""
    known = model.spec.conditions
    name, found, value = text.partition("=")
    typed = {name: value} if found and name in known else asked.said(_Nothing, known, text)
    return asked.values(typed, known)


class _Nothing:
    """Options without any condition."""

    condition = ()


def _weak(options: Any, model: Any) -> Any:
    path, weights = (options.model, "raw") if options.autoguide == "raw" else (options.autoguide, "ema")
    weak = serialization.load_sampler(path, weights, model.device)
    weak.compute_dtype = model.compute_dtype
    return weak


def _quantile(text: str) -> float | None:
    if text == "static":
        return None
    try:
        return float(text)
    except ValueError:
        raise SfumatoError(f"--threshold is static or a quantile, such as 0.995, not {text!r}") from None
