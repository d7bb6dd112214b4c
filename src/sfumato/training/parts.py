"""Build the model that a run trains, and its loss, from settings and the caller's objects."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfumato import columns, nets, noise, registry, serialization, trees
from sfumato.autoencoder import Codec
from sfumato.autoregressive import Autoregressive
from sfumato.conditions import EMBEDDING, MISSING, PREVIOUS, Conditions
from sfumato.coupling_flow import CouplingFlow
from sfumato.data import DataSpec, Source
from sfumato.data.table_schema import TableSchema
from sfumato.errors import SfumatoError, an
from sfumato.latent_diffusion import Latent
from sfumato.model import Denoiser
from sfumato.noise import seeded
from sfumato.objectives import Objective, times, weights
from sfumato.objectives.density import TimeDensity, drawn_levels
from sfumato.objectives.factor import check
from sfumato.objectives.loss import CompletedLoss, Loss
from sfumato.process import (
    Deletion,
    Discrete,
    Embedded,
    Gaussian,
    Masked,
    Product,
    RectifiedFlow,
    Spectral,
    alphabet,
    heard,
    source_of,
)
from sfumato.schedule import schedule_of
from sfumato.training import codes
from sfumato.training.config import NAMING, NO_PROCESS, TrainConfig, choices, renamed
from sfumato.training.fine_tuning import adapt, extend
from sfumato.training.precision import compute_dtype

OF_SYMBOLS = "cosmap"  # their usual density: under one with lighter tails the variance of the bound has no limit
_COUNTED = 10_000  # samples in which symbols are counted


@dataclasses.dataclass(frozen=True)
class Objects:
    """Objects passed instead of names in the settings: net, a network; init, a model to train further; loss.

    said: the names of the settings that were given, in words or as objects.
    """

    net: nn.Module | None = None
    init: Any = None
    loss: Any = None
    said: frozenset[str] = frozenset()


def separate(settings: Mapping[str, Any], modules: Iterable[type] = ()) -> tuple[dict[str, Any], Objects]:
    """Separate settings into (settings in words, which files can hold; objects).

    Raises SfumatoError for an object that no file can describe.
    """
    registry.add(modules)
    settings = renamed(settings)
    if isinstance(settings.get("init"), os.PathLike):
        settings = {**settings, "init": os.fspath(settings["init"])}
    words = {**settings, **_process_in_words(settings.get("process"))}
    given = {name: settings.get(name) for name in ("net", "init", "loss")}
    given = {name: value for name, value in given.items() if value is not None and not isinstance(value, str)}
    for name, value in given.items():
        if name == "init":
            trees.tree(value)
            words[name] = "given"
            continue
        if not isinstance(value, nn.Module):
            raise SfumatoError(f"{name} takes a name or a torch.nn.Module, not {an(type(value).__name__)}.")
        if name == "loss":
            as_loss(value)
        words[name] = _described(name, value)
        registry.add([type(value)])
    return words, Objects(**given, said=frozenset(settings))


def _process_in_words(process: Any) -> dict[str, str]:
    """The settings that describe a process passed as an object."""
    if process is None or isinstance(process, str):
        return {}
    if isinstance(process, Product):
        raise SfumatoError(
            "A product of processes has to be passed as part of a model: init=sf.Denoiser(net, process), with a "
            "network for process.net_shape()."
        )
    return {"process": trees.word(process.config())}


def _described(name: str, value: nn.Module) -> str:
    """The setting that describes an object."""
    try:
        return trees.word(trees.tree(value))
    except SfumatoError:
        if name == "loss":  # files hold only its name; resuming needs the object again
            return type(value).__name__
        raise


def known_here(kept: Mapping[str, Any], path: Path) -> None:
    """Raise SfumatoError if the settings of a run name a class of the user's that is not registered here."""
    for setting, kind in NAMING.items():
        name = registry.bare(kept.get(setting))
        if isinstance(name, str) and name not in choices(setting) and not registry.known(kind, name):
            raise SfumatoError(
                f"{path} was trained with the {registry.KINDS[kind].words} {name!r}, which is not registered here. "
                f"{trees.give(name)}"
            )


def objective_of(config: TrainConfig) -> Objective:
    """The objective of a run's settings: schedule, target, time density and weight."""
    return Objective(schedule_of(config.schedule), config.target, config.times, config.weight)


def loss_of(config: TrainConfig, given: Any = None) -> Any:
    """The loss that a run minimises: the module passed by the caller, or the one that the settings name."""
    if given is not None:
        return as_loss(given)
    word = _usual_loss(config) if config.loss == "auto" else config.loss
    known = {"times": times.named(config.times), "weight": weights.chosen(config.weight), "seed": config.seed}
    return as_loss(registry.make("loss", word, known))


def require_heard(config: TrainConfig, given: Any = None) -> None:
    """Raise SfumatoError for a density or a weight that the loss of the settings does not take."""
    if given is not None:
        return
    name = registry.bare(_usual_loss(config) if config.loss == "auto" else config.loss)
    takes = inspect.signature(registry.get("loss", name)).parameters
    for setting in ("times", "weight"):
        if setting not in takes and getattr(config, setting) != getattr(TrainConfig(), setting):
            raise SfumatoError(f"The loss {name} takes no {setting}: leave {setting} out, or use another loss.")


def _usual_loss(config: TrainConfig) -> str:
    """The loss of masks is the one by exact counts, unless a weight or density is asked for."""
    usual = TrainConfig()
    if registry.bare(config.process) == "product":
        return "table"
    if config.sources is not None and config.pairs is None:
        return "coupled"
    if registry.bare(config.process) == "masked" and (config.times, config.weight) == (usual.times, usual.weight):
        return "masked"
    return "hybrid" if config.variance == "learned" else "decoding" if config.unclip else "denoising"


def as_loss(module: Any) -> Any:
    """Any module with a method `losses`, as a `Loss`."""
    if isinstance(module, Loss):
        return module
    if isinstance(module, nn.Module) and hasattr(module, "losses"):
        return CompletedLoss(module)
    raise SfumatoError(
        "A loss is a module with `losses(model, batch)` that returns one number per sample, and a "
        f"{type(module).__name__} has none: add it, or wrap a function in `Plain`."
    )


def suited(settings: TrainConfig, spec: DataSpec, said: Collection[str] = ()) -> TrainConfig:
    """The settings for these data: text is masked, unless another process is named, or the loss takes none; a table
    is a product of numbers, of which F is predicted, and masked symbols. The levels of symbols reach further than those
    of numbers, and those of a rectified flow to its source. said: the names of the settings that were given."""
    if settings.process == NO_PROCESS:
        if settings.init is None and registry.bare(settings.loss) not in ("autoregressive", "coupling-flow"):
            raise SfumatoError(
                "Only the losses autoregressive and coupling-flow train a model without a process: leave process out."
            )
        settings = settings.replace(process=TrainConfig().process)
    if spec.table is not None and settings.init is None:
        if settings.process != "product" and (settings.process != TrainConfig().process or "process" in said):
            raise SfumatoError(
                f"A table is learned as numbers and symbols together, not by the process {settings.process}: leave "
                "process out."
            )
        idle = next((name for name in ("target", "schedule") if name in said), None)
        if idle and not spec.table.numbers:
            raise SfumatoError(f"The {idle} is that of numbers, and this table has none: leave {idle} out.")
        # of independent columns, which are normal, F is 0, as the output of a new network is
        usual = settings.target == TrainConfig().target and "target" not in said
        target = "F" if usual else settings.target
        return settings.replace(process="product", target=target)
    if settings.init is not None:
        return settings
    if settings.sources is not None and settings.process == TrainConfig().process:
        settings = settings.replace(process="bridge" if settings.pairs else "rectified-flow")
    if spec.text is not None and settings.process == TrainConfig().process:
        settings = settings.replace(process="masked")
    kind: Any = registry.get("process", registry.bare(settings.process))
    of_symbols = issubclass(getattr(kind, "func", kind), Discrete)
    if isinstance(kind, type) and issubclass(kind, Spectral) and settings.target == TrainConfig().target:
        settings = settings.replace(target="F")  # which is determined in every coefficient
    if kind is RectifiedFlow and settings.times == TrainConfig().times:
        settings = settings.replace(times="uniform")  # others leave out the source, where all is guessed
    by_counts = settings.loss == "auto" and _usual_loss(settings) == "masked"
    if not of_symbols or by_counts or settings.times != TrainConfig().times:
        return settings
    return settings.replace(times=OF_SYMBOLS)


def model_for(
    given: Objects, settings: TrainConfig, source: Source, spec: DataSpec, loss: Any, device: torch.device
) -> Any:
    """The model that the run trains, on the device. given.init: as `fine_tuning.start` leaves it."""
    if settings.init is not None:
        before = given.init.net
        model = extend(given.init, source, spec, settings.seed)
        with seeded(settings.seed):  # a student has weights of its own
            model = loss.begun(model)
        model = adapt(model, before, settings)
    else:
        space = None if settings.autoencoder is None else _space(settings, source, spec, device)
        spec = spec if space is None else space.spec
        process = _process(settings, spec, source if space is None else None)
        net = _network(settings, spec, process, loss, len(source)) if given.net is None else given.net
        model = loss.model(net, spec)
        usual = (
            isinstance(process, Gaussian)
            or spec.table is not None
            or (spec.text is not None and not isinstance(process, Embedded))
        )
        if model is not None and not usual:  # text is always symbols
            raise SfumatoError(
                f"The loss {settings.loss} builds its own model, which cannot use the process {settings.process!r}: "
                "leave out one of the two."
            )
        model = model or _denoiser(net, process, settings, spec)
        model = model if space is None else _in_space(model, process, space, settings)
    loss.suits(model)
    if spec.missing:
        _require_gaps(model, loss, source)
    _keep_levels(model.inner if isinstance(model, Latent) else model, getattr(loss, "times", None))
    return placed(model, settings, device)


class _Space(NamedTuple):
    """The space of a latent model: its autoencoder, and the spec of the codes."""

    autoencoder: Codec
    spec: DataSpec


def _space(settings: TrainConfig, source: Source, spec: DataSpec, device: torch.device) -> _Space:
    """The space of the autoencoder of the settings. Raises SfumatoError for data or an autoencoder that do not suit."""
    if spec.text is not None or spec.table is not None or spec.missing or settings.sources is not None:
        raise SfumatoError(
            f"{source.name} is no data for a latent model, which takes whole samples of numbers (no text, tables, "
            "pairs or missing values): leave latent out."
        )
    autoencoder = codes.load_autoencoder(settings.autoencoder, device)
    if autoencoder.shape != spec.shape:
        raise SfumatoError(
            f"The autoencoder takes samples of shape {autoencoder.shape}, and those of {source.name} have "
            f"{spec.shape}: train one on these data, by latent without autoencoder."
        )
    kept, (train, held) = codes.stored(settings.autoencoder, source, autoencoder), source.split(settings.holdout)
    own = codes.spec_of(kept, autoencoder, spec, train)
    rows = held if len(held) else train
    share = codes.check(autoencoder, kept, own, source, rows, settings.reconstruction)
    numbers = math.prod(spec.shape), math.prod(own.shape)
    source.notes.append(
        f"The autoencoder explains {share:.1%} of the variance of {'held-out' if len(held) else 'training'} samples, "
        f"with codes of {numbers[1]:,} numbers for {numbers[0]:,}."
    )
    return _Space(autoencoder, own)


def _in_space(model: Any, process: Any, space: _Space, settings: TrainConfig) -> Latent:
    if not isinstance(model, Denoiser) or not isinstance(process, Gaussian):
        raise SfumatoError(
            f"A latent model is a denoiser of numbers under the gaussian process, and these settings (loss "
            f"{settings.loss}, process {settings.process}) make another: leave latent or these out."
        )
    return Latent(model, space.autoencoder)


def _require_gaps(model: Any, loss: Any, source: Source) -> None:
    """Raise SfumatoError for a model or a loss that takes whole samples alone."""
    if not (getattr(loss, "skips", False) and isinstance(getattr(model, "process", None), Gaussian)):
        raise SfumatoError(
            f"{source.name} has {source.gaps}, which only the denoising loss of the gaussian process leaves out: take "
            f"these, or {'cut all to one length' if source.layout else 'fill the values'}."
        )
    if not model.spec.missing:
        raise SfumatoError(
            f"{source.name} has {source.gaps}, and the model was trained on whole samples, so that its network gets "
            "no mask of them: train a new one, or fill the values."
        )


def with_model(settings: TrainConfig, model: Any) -> TrainConfig:
    """The settings with target, variance and schedule taken from the model, and that its symbols are masked, or that it
    has no process."""
    process = getattr(model, "process", None)
    if isinstance(model, Autoregressive | CouplingFlow):
        return settings.replace(process=NO_PROCESS)
    if isinstance(process, Masked) and settings.init is not None:
        return settings.replace(process="masked")
    if not isinstance(process, Gaussian):
        return settings
    found = {"target": process.target, "variance": process.variance}
    if schedule_of(settings.schedule) != process.schedule:
        found["schedule"] = trees.word(trees.tree(process.schedule))
    return settings.replace(**found)


def placed(model: Any, settings: TrainConfig, device: torch.device) -> Any:
    """The model on the device, trainable but for weights beside adapters, computing in the settings' precision."""
    for _, part in serialization.parts(model):
        part.to(device).requires_grad_(not (isinstance(model, Latent) and part is model.autoencoder))
        for adapted in (each for each in part.modules() if isinstance(each, nets.Adapted)):
            adapted.freeze()
    inner: Any = model
    while hasattr(inner, "inner"):
        inner = inner.inner
    inner.compute_dtype = compute_dtype(settings.precision, device)
    return model


def _keep_levels(model: Any, times: Any) -> None:
    """Record in a denoiser the range of noise levels that it is trained on, joined with the range recorded before."""
    if isinstance(model, Denoiser) and isinstance(times, TimeDensity):
        low, high = drawn_levels(times, model.process)
        before = model.noise_levels or (low, high)
        model.noise_levels = (min(low, before[0]), max(high, before[1]))


def _process(settings: TrainConfig, spec: DataSpec, source: Source | None = None) -> Any:
    """The process that the settings name; of data but text, there is one symbol more than the largest in training.

    A spectral one is fitted to the training data.
    """
    if spec.table is not None:
        return table_process(spec.table, settings)
    states = spec.text.size + spec.whole_texts if spec.text is not None else max(2, int(max(spec.statistics.high)) + 1)
    given = {
        "schedule": schedule_of(settings.schedule), "target": settings.target, "variance": settings.variance,
        "states": states, "shape": spec.shape,
    }  # fmt: skip
    if source is not None and registry.bare(settings.process) == "marginal":
        given["weights"] = _frequencies(source, settings, states)
    process = registry.make("process", settings.process, given)
    if spec.text is not None and spec.whole_texts != isinstance(process, Deletion):
        raise SfumatoError(
            f"Text is cut into windows for every process but deletion, which takes whole texts, and these are "
            f"{'whole' if spec.whole_texts else 'windows'}: open them with whole_texts={not spec.whole_texts}, or take "
            "another process."
        )
    if (name := source_of(process)) is not None and name not in spec.conditions:
        raise SfumatoError(
            f"A {type(process).__name__} starts from the condition {name!r}, which the data do not have: give the "
            "sources by --from, or beside the samples under this name."
        )
    if isinstance(process, Spectral) and not process.power and source is not None:
        return process.fitted(spec.normalise(source.x[_some(source, settings)]))
    return process


def table_process(table: TableSchema, settings: TrainConfig) -> Product:
    """Numbers as one vector, and symbols by their number of states."""
    parts: dict[str, Any] = {}
    if table.numbers:
        parts[columns.NUMBERS] = Gaussian(schedule_of(settings.schedule), settings.target)
    symbols = {f"symbols of {states}": count for states, count in table.parts.items()}
    parts |= {name: Masked(schedule_of("flow"), states) for name, states in zip(symbols, table.parts, strict=True)}
    shapes = {columns.NUMBERS: (table.numbers,)} if table.numbers else {}
    return Product(parts, {**shapes, **{name: (count,) for name, count in symbols.items()}})


def _frequencies(source: Source, settings: TrainConfig, states: int) -> tuple[float, ...]:
    """(n_k + 1) / (N + K) of each symbol in the training data, in at most 10,000 samples; the last of them are larger
    than any seen there."""
    x = alphabet.symbols(source.x[_some(source, settings)], states)
    counts = x.flatten().bincount(minlength=states).double() + 1
    return tuple((counts / counts.sum()).tolist())


def _some(source: Source, settings: TrainConfig) -> Tensor:
    """The rows of at most 10,000 training samples."""
    rows = source.split(settings.holdout)[0]
    return rows[noise.permutation(settings.seed, 0, len(rows))[:_COUNTED]]


def _network(settings: TrainConfig, spec: DataSpec, process: Any, loss: Any, samples: int) -> nn.Module:
    codes = process if isinstance(process, Embedded) else None
    outputs = getattr(process, "outputs", 2 if settings.variance == "learned" else 1)
    word = settings.net
    sizes = [registry.get("network", size) for size in nets.SIZES]
    if loss.network is not None and registry.get("network", registry.bare(word)) in sizes:
        word = loss.network
    with seeded(settings.seed):
        inputs = {name: condition.network() for name, condition in heard(process, spec.conditions).items()}
        if spec.missing:
            inputs[MISSING] = {"kind": "missing", "shape": list(spec.shape)}
        if loss.carries and not getattr(registry.get("network", registry.bare(word)), "carries", False):
            inputs[PREVIOUS] = {"kind": "field", "shape": list(process.net_shape(spec.shape))}
        inputs |= loss.inputs(process.net_shape(spec.shape))
        inputs |= columns.condition(spec.table.numbers) if spec.table is not None else {}
        more = inputs if inputs.keys() - ({"label"} if spec.classes else set()) else None  # a label alone is `classes`
        classes, text = len(spec.classes), spec.text is not None
        shape = process.net_shape(spec.shape)
        vocabulary = codes.states if codes else 0
        numbers = spec.table.numbers if spec.table is not None else 0
        known = (classes, samples, outputs, more, text, loss.mask, vocabulary, numbers)
        net = nets.named(word, shape, *known, vectors=(EMBEDDING,) if settings.unclip else ())
        if codes and codes.codebook == "learned":
            net = nets.Codebook(net, codes.states, codes.dim)
        return nets.Energy(net) if settings.energy and not isinstance(net, nets.Energy) else net


def _denoiser(net: nn.Module, process: Any, settings: TrainConfig, spec: DataSpec) -> Denoiser:
    if isinstance(process, Gaussian):
        check(process.schedule, process.target, times.named(settings.times), weights.chosen(settings.weight))
    denoiser = Denoiser(net, process, spec=spec)
    if not registry.ships("network", type(net).__name__) and isinstance(process, Gaussian):
        _try(denoiser, spec)
    return denoiser


def _try(denoiser: Denoiser, spec: DataSpec) -> None:
    """Call the caller's network once, so that an error in it shows before the run begins."""
    x = torch.zeros(2, *spec.shape, device=denoiser.device)
    cond = Conditions({name: condition.encode(None, 2) for name, condition in spec.conditions.items()}).to(x.device)
    x, cond = spec.apart(x, cond)
    name, training = type(denoiser.net).__name__, denoiser.net.training
    like = f"It is called as net(x (B, {', '.join(map(str, spec.shape))}), noise_level (B,)"
    like += "".join(f", {each}=.." for each in cond) + ")"
    try:
        with torch.no_grad():
            y = denoiser.eval().predict(x, 0.5, **cond)
    except SfumatoError:
        raise
    except Exception as error:
        raise SfumatoError(f"{name} could not be called ({' '.join(str(error).split())[:200]}). {like}.") from None
    denoiser.net.train(training)
    if y.shape != x.shape:
        raise SfumatoError(
            f"{name} returns shape {tuple(y.shape)} for input {tuple(x.shape)}. {like}, and must return the shape of x."
        )


def rebuilt(contract: Mapping[str, Any], size: tuple[int, int], settings: TrainConfig, device: torch.device) -> Any:
    """The model that a checkpoint's contract describes, with fresh weights. size: `checkpoint.size` of its tensors."""
    described, space = contract.get("model", contract["net"]), None
    if settings.autoencoder is not None:  # its weights are in its own file
        space = codes.load_autoencoder(settings.autoencoder, device, contract.get("autoencoder"))
        described = described["args"]["inner"]
    with seeded(settings.seed), serialization.building(described, *size, "the checkpoint"):
        if "model" in contract:
            model = trees.build(described, "model")
        else:  # written by a version that only knew denoisers
            spec = DataSpec.from_dict(contract["spec"])
            model = _denoiser(nets.from_config(contract["net"]), _process(settings, spec), settings, spec)
    return placed(model if space is None else Latent(model, space), settings, device)
