"""Training that starts from a trained model: what it keeps, what new data add to it, and which weights are trained.

kept      process, network, units (normaliser, bounds), names and units of the conditions
added     classes and conditions of the data that the model does not have; its output is at first the same
trained   all weights; or with `lora` adapters of that rank, and what was added; or with train_only="conditions"
          what was added
"""

from __future__ import annotations

import ast
import copy
import dataclasses
from collections.abc import Collection
from typing import Any

from torch import nn

from sfumato import nets, registry, serialization, trees
from sfumato.adapters import fingerprint, merge
from sfumato.columns import uncalibrated
from sfumato.data import DataSpec, Source
from sfumato.errors import SfumatoError
from sfumato.model import with_net
from sfumato.nets.growth import core, difference, grown
from sfumato.noise import seeded
from sfumato.process import heard, source_of
from sfumato.schedule import schedule_of
from sfumato.training.config import TrainConfig

FIXED = ("process", "net", "schedule", "target", "variance", "energy", "normalise")  # settings that the model fixes
_CHECKED = 1024  # samples whose units are checked


def start(init: Any, settings: TrainConfig, said: Collection[str] = ()) -> Any:
    """A copy of the caller's model, or the model of a file, with adapters merged into its weights.

    said: names of the settings that the caller gave. Raises SfumatoError if one of `FIXED` is not the model's.
    """
    model = serialization.load(str(settings.init)) if init is None else copy.deepcopy(init)
    if not isinstance(getattr(model, "net", None), nn.Module):
        raise SfumatoError(f"A {type(model).__name__} has nothing to train: give a model with a network.")
    usual = TrainConfig()
    for name in FIXED:
        asked = getattr(settings, name)
        own = _own(model, name, asked) if name in said or asked != getattr(usual, name) else None
        if own is not None:
            raise SfumatoError(
                f"The model to train further has the {name} {own}, and {asked} is asked for: leave out {name}, since "
                "a model keeps its process, network and units, or train a new one."
            )
    model = uncalibrated(merge(model))
    if getattr(_denoiser(model), "plans", None):
        _denoiser(model).plans = {}  # they were fitted to the weights before
    return model


def _own(model: Any, name: str, asked: Any) -> str | None:
    """The model's value of a setting of `FIXED` in words, if it is not the one that is asked for."""
    process, net = getattr(model, "process", None), core(model.net) or model.net
    if name == "process":
        kind: Any = registry.get("process", registry.bare(asked))
        kind = getattr(kind, "func", kind)
        return None if isinstance(kind, type) and isinstance(process, kind) else type(process).__name__
    if name == "net":
        return None if asked in ("auto", "given") or _describes(asked, net) else trees.word(trees.tree(net))
    if name == "schedule":
        own = getattr(process, "schedule", None)
        return None if own == schedule_of(asked) else trees.word(trees.tree(own))
    if name == "energy":
        own = isinstance(model.net, nets.Energy)
        return None if own == asked else str(own)
    if name == "normalise":
        own = None if model.spec is None else model.spec.normaliser.kind
        return None if registry.bare(asked) in ("auto", own) else str(own)
    own = getattr(process, name, None)
    return None if own == asked else str(own)


def _describes(word: str, net: Any) -> bool:
    """Whether a word such as DiT(depth=8) names the kind of a network, and arguments that it has, or tiny its size."""
    if word in nets.SIZES:
        known: dict[str, Any] = {"conditions": getattr(net, "given", {}), "symbols": isinstance(net, nets.Transformer)}
        with seeded(0):
            made = nets.named(word, net.shape, outputs=getattr(net, "outputs", 1), **known)
        return bool(trees.tree(made) == trees.tree(net))
    if registry.bare(word) != type(net).__name__:
        return False
    call: Any = ast.parse(word if word.endswith(")") else f"{word}()", mode="eval").body
    args: dict[str, Any] = trees.tree(net)["args"]
    same = (ast.literal_eval(each.value) == args.get(each.arg) for each in call.keywords)
    return not call.args and all(same)


def extend(model: Any, source: Source, spec: DataSpec, seed: int = 0) -> Any:
    """The model with the classes and conditions of these data beside its own.

    spec: fitted to the data. seed: of new embeddings. Notes on the source say what is new and what is missing. Raises
    SfumatoError for data of another shape or in other units.
    """
    if model.spec is None:
        model.spec = spec
        return model
    _require_alike(model, source, spec)
    conditions = dict(model.spec.conditions)
    for name, condition in spec.conditions.items():
        try:
            conditions[name] = conditions[name].extended(condition) if name in conditions else condition
        except SfumatoError as error:
            raise SfumatoError(f"The condition {name!r} is not that of the model: {error}.") from None
    _say(source, model.spec.conditions, conditions)
    law = spec.lengths or model.spec.lengths  # lengths are drawn as these data have them
    if (conditions, law) == (model.spec.conditions, model.spec.lengths):
        return model
    process, inner = getattr(model, "process", None), core(model.net)
    had, has = (
        {name: each.network() for name, each in heard(process, known).items()}
        for known in (model.spec.conditions, conditions)
    )
    if had != has:
        with seeded(seed):
            model = with_net(model, grown(model.net, {**getattr(inner, "given", {}), **has}).net)
    _denoiser(model).spec = dataclasses.replace(model.spec, conditions=conditions, lengths=law)
    return model


def _denoiser(model: Any) -> Any:
    """The innermost model, which has the spec."""
    while hasattr(model, "inner"):
        model = model.inner
    return model


def _require_alike(model: Any, source: Source, spec: DataSpec) -> None:
    own = model.spec
    if spec.text != own.text:
        raise SfumatoError("The model and the data have other tokens: open the data by sf.data.open(.., model.spec).")
    if spec.table != own.table:
        raise SfumatoError(f"The columns of {source.name} are not those of the model's table.")
    if spec.shape != own.shape:
        resize = (
            f"; --size {own.shape[1]} resizes pictures" if spec.kind == "image" and len(set(own.shape[1:])) == 1 else ""
        )
        raise SfumatoError(
            f"The model needs data of shape {own.shape}, but {source.name} has shape {spec.shape}{resize}."
        )
    begin = source_of(getattr(model, "process", None))
    if begin is not None and begin not in spec.conditions:
        raise SfumatoError(
            f"The model starts from the condition {begin!r}, which {source.name} does not have (--from)."
        )
    if own.text is None and own.table is None and own.kind in ("image", "array"):
        try:
            own.check(source.x[: min(len(source), _CHECKED)], whole=not spec.missing)
        except SfumatoError as error:
            raise SfumatoError(f"{source.name} is not in the units of the model: {error}.") from None


def _say(source: Source, before: Any, after: Any) -> None:
    """Notes on conditions and classes that are new, or that the data lack."""
    for name, condition in after.items():
        if name not in source.conditions:
            source.notes.append(f"The model has the condition {name}, which these data lack: it is trained without.")
        elif name not in before:
            source.notes.append(f"A new condition of the model: {name}, {condition.describe()}.")
        elif condition.network() != before[name].network():
            source.notes.append(f"New classes of the model: {name} is now {condition.describe()}.")


def adapt(model: Any, before: nn.Module, settings: TrainConfig) -> Any:
    """The model with those weights fixed that the settings do not train. before: the network of the model's file.

    Raises SfumatoError if nothing is left to train.
    """
    if not settings.lora and settings.train_only == "all":
        return model
    if settings.parallel == "fsdp":
        raise SfumatoError("A network of which few weights are trained has no use for shards: use parallel='ddp'.")
    new, parts = difference(before, model.net)
    if not (settings.lora or new or parts):
        raise SfumatoError(
            "These data have no class and no condition that the model lacks, so that nothing is left to train: use "
            "lora, or train all weights."
        )
    base = fingerprint(before)
    with seeded(settings.seed):
        net = nets.Adapted(model.net, settings.lora or 0, new=new, parts=parts, base=base)
    return with_net(model, net)
