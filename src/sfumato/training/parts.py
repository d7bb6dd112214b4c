"""What a run is made of: the model that it trains and the loss, from settings and from objects of the caller's."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfumato import nets, registry, serialization, trees
from sfumato.conditions import Conditions
from sfumato.data import DataSpec, Source
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser
from sfumato.noise import seeded
from sfumato.objectives.density import TimeDensity, drawn_levels
from sfumato.objectives.factor import check
from sfumato.process import Gaussian, Product
from sfumato.training.config import NAMING, TrainConfig, choices
from sfumato.training.goal import goal_of, loss_of
from sfumato.training.objective import schedule_of, times_of, weight_of
from sfumato.training.precision import compute_dtype

_THE_MODELS = ("net", "schedule", "target", "variance", "energy")  # settings that a given model brings itself


@dataclasses.dataclass(frozen=True)
class Own:
    """Objects of the caller's that stand for words of the settings: net a network, model to go on from, loss."""

    net: nn.Module | None = None
    model: Any = None
    loss: Any = None


def taken(settings: Mapping[str, Any], modules: Iterable[type] = ()) -> tuple[dict[str, Any], Own]:
    """(settings as words, objects) of settings among which objects stand for words.

    Raises SfumatoError for an object that no file could describe, before anything is done with it.
    """
    registry.add(modules)
    settings = {**settings, **_process_in_words(settings.get("process"))}
    words, own = dict(settings), {name: settings.get(name) for name in ("net", "model", "loss")}
    own = {name: value for name, value in own.items() if value is not None and not isinstance(value, str)}
    for name, value in own.items():
        if name == "model":
            trees.tree(value)
            words[name] = "given"
            continue
        if not isinstance(value, nn.Module):
            raise SfumatoError(f"{name} takes a name or a torch.nn.Module, not a {type(value).__name__}.")
        if name == "loss":
            loss_of(value)
        words[name] = _described(name, value)
        registry.add([type(value)])
    return words, Own(**own)


def _process_in_words(process: Any) -> dict[str, str]:
    """A process that is given as an object, as the settings name it."""
    if process is None or isinstance(process, str):
        return {}
    if isinstance(process, Product):
        raise SfumatoError(
            "A product of processes is trained as that of a model: model=sf.Denoiser(net, process), with a network for "
            "process.net_shape()."
        )
    return {"process": trees.word(process.config())}


def _described(name: str, value: nn.Module) -> str:
    """An object as a word of the settings."""
    try:
        return trees.word(trees.tree(value))
    except SfumatoError:
        if name == "loss":  # it is no part of the file: given again, a run goes on with it
            return type(value).__name__
        raise


def known_here(kept: Mapping[str, Any], path: Path) -> None:
    """Refuse a run whose settings name a class of the user's that is not here."""
    for setting, kind in NAMING.items():
        name = registry.bare(kept.get(setting))
        if isinstance(name, str) and name not in choices(setting) and not registry.known(kind, name):
            raise SfumatoError(
                f"{path} was trained with the {registry.KINDS[kind].words} {name!r}, which is not here. "
                f"{trees.give(name)}"
            )


def loss_for(own: Own, settings: TrainConfig) -> Any:
    """What the run minimises."""
    return goal_of(settings) if own.loss is None else loss_of(own.loss)


def model_for(own: Own, settings: TrainConfig, source: Source, spec: DataSpec, loss: Any, device: torch.device) -> Any:
    """What the run trains, on the device."""
    if settings.model is not None:
        model = _given(own, settings, spec)
    else:
        process = _process(settings, spec)
        net = _network(own, settings, spec, process, loss, len(source))
        model = loss.model(net, spec)
        if model is not None and not isinstance(process, Gaussian):
            raise SfumatoError(
                f"The loss {settings.loss} brings its own model, which has no process {settings.process!r}: leave one "
                "of the two out."
            )
        model = model or _denoiser(net, process, settings, spec)
    loss.suits(model)
    _keep_levels(model, getattr(loss, "times", None))
    return placed(model, settings, device)


def told(model: Any, settings: TrainConfig) -> TrainConfig:
    """The settings with the schedule and the target that the model brings itself, where they are others."""
    process = getattr(model, "process", None)
    if not isinstance(process, Gaussian):
        return settings
    own = {"target": process.target, "variance": process.variance}
    if schedule_of(settings.schedule) != process.schedule:
        own["schedule"] = trees.word(trees.tree(process.schedule))
    return settings.replace(**own)


def placed(model: Any, settings: TrainConfig, device: torch.device) -> Any:
    """The model on the device, with what it computes in, all its weights to be trained."""
    for _, part in serialization.parts(model):
        part.to(device).requires_grad_(True)
    inner: Any = model
    while hasattr(inner, "inner"):
        inner = inner.inner
    inner.compute_dtype = compute_dtype(settings.precision, device)
    return model


def _keep_levels(model: Any, times: Any) -> None:
    """Tell a denoiser at which noise levels it is trained, beside those that it was trained at before."""
    if isinstance(model, Denoiser) and isinstance(times, TimeDensity):
        low, high = drawn_levels(times, model.process)
        before = model.noise_levels or (low, high)
        model.noise_levels = (min(low, before[0]), max(high, before[1]))


def _given(own: Own, settings: TrainConfig, spec: DataSpec) -> Any:
    """A copy of the caller's model, or that of a file, which has to be of such data."""
    usual = TrainConfig()
    said = [name for name in _THE_MODELS if getattr(settings, name) != getattr(usual, name)]
    if said:
        raise SfumatoError(f"A model that is given brings its own {', '.join(_THE_MODELS)}: leave out {said[0]}.")
    model = serialization.load(str(settings.model)) if own.model is None else copy.deepcopy(own.model)
    if not isinstance(getattr(model, "net", None), nn.Module):
        raise SfumatoError(f"Nothing of a {type(model).__name__} could be trained: give a model that has a network.")
    if model.spec is None:
        model.spec = spec
    have, want = (spec.shape, dict(spec.conditions)), (model.spec.shape, dict(model.spec.conditions))
    if have[0] != want[0] or have[1].keys() != want[1].keys():
        raise SfumatoError(
            f"The model is of data of shape {want[0]} with the conditions {sorted(want[1])}, and these have the shape "
            f"{have[0]} and {sorted(have[1])}."
        )
    return model


def _process(settings: TrainConfig, spec: DataSpec) -> Any:
    """The process of the settings; of symbols there are as many as the largest of the training data."""
    given = {
        "schedule": schedule_of(settings.schedule), "target": settings.target, "variance": settings.variance,
        "states": max(2, int(max(spec.statistics.high)) + 1),
    }  # fmt: skip
    return registry.make("process", settings.process, given)


def _network(own: Own, settings: TrainConfig, spec: DataSpec, process: Any, loss: Any, samples: int) -> nn.Module:
    if own.net is not None:
        return own.net
    outputs = 2 if settings.variance == "learned" else 1
    word = settings.net
    if loss.network is not None and registry.get("network", registry.bare(word)) in _sizes():
        word = loss.network
    with seeded(settings.seed):
        heard = {name: condition.network() for name, condition in spec.conditions.items()}
        more = heard if heard.keys() - ({"label"} if spec.classes else set()) else None  # a label alone is `classes`
        net = nets.named(word, process.net_shape(spec.shape), len(spec.classes), samples, outputs, more)
        return nets.Energy(net) if settings.energy and not isinstance(net, nets.Energy) else net


def _sizes() -> list[Any]:
    return [registry.get("network", size) for size in nets.SIZES]


def _denoiser(net: nn.Module, process: Any, settings: TrainConfig, spec: DataSpec) -> Denoiser:
    if isinstance(process, Gaussian):
        check(process.schedule, process.target, times_of(settings.times), weight_of(settings.weight))
    denoiser = Denoiser(net, process, spec=spec)
    if not _ships(net) and isinstance(process, Gaussian):
        _ask(denoiser, spec)
    return denoiser


def _ships(net: nn.Module) -> bool:
    return registry.ships("network", type(net).__name__)


def _ask(denoiser: Denoiser, spec: DataSpec) -> None:
    """Ask a network of the caller's about one batch, so that what is wrong with it is said before a run begins."""
    x = torch.zeros(2, *spec.shape, device=denoiser.device)
    cond = Conditions({name: condition.encode(None, 2) for name, condition in spec.conditions.items()}).to(x.device)
    name, training = type(denoiser.net).__name__, denoiser.net.training
    like = f"It is called as net(x (B, {', '.join(map(str, spec.shape))}), noise_level (B,)"
    like += "".join(f", {each}=.." for each in cond) + ")"
    try:
        with torch.no_grad():
            y = denoiser.eval().predict(x, 0.5, **cond)
    except SfumatoError:
        raise
    except Exception as error:
        raise SfumatoError(f"{name} could not be asked ({' '.join(str(error).split())[:200]}). {like}.") from None
    denoiser.net.train(training)
    if y.shape != x.shape:
        raise SfumatoError(f"{name} gives {tuple(y.shape)} for {tuple(x.shape)}. {like}, and gives the shape of x.")


def rebuilt(contract: Mapping[str, Any], settings: TrainConfig, device: torch.device) -> Any:
    """The model that a checkpoint's contract describes, with fresh weights."""
    with seeded(settings.seed):
        if "model" in contract:
            model = trees.build(contract["model"], "model")
        else:  # of before there were other models
            spec = DataSpec.from_dict(contract["spec"])
            model = _denoiser(nets.from_config(contract["net"]), _process(settings, spec), settings, spec)
    return placed(model, settings, device)


def with_net(model: Any, net: nn.Module) -> Any:
    """The same model with another network of the same kind in the place of its own; nothing is copied."""
    made = copy.copy(model)
    if isinstance(model, nn.Module) and "net" in model._modules:
        made._modules = {**model._modules, "net": net}
    elif isinstance(model, nn.Module):
        made._modules = {**model._modules, "inner": with_net(model.inner, net)}
    else:
        made.inner = with_net(model.inner, net)
    return made
