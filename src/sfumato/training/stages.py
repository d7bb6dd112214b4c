"""Train and resume: one model, an autoencoder and then the denoiser of its codes, a cascade, an unCLIP pair, or a
student in two stages, in one run folder.

RUN/autoencoder/    the run of the autoencoder, or the file of a given one, and the codes of the data
RUN/size_16/        the run of the first stage of a cascade, of size 16; the stages between likewise
RUN/embedding/      the embedder of an unCLIP pair, and the embeddings of the data; RUN/prior/, the run of the prior;
                    RUN/autoencoder/, that of the decoder if it draws codes
RUN/paths/          the run of the first stage of a student, which the second goes on from
RUN/                the run of the denoiser, or of the last stage; its model file holds all stages
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sfumato import folder, nets, registry, serialization
from sfumato.autoencoder import Codec
from sfumato.cascade import Cascade
from sfumato.diagnostics import summary
from sfumato.distributed import joined, leads
from sfumato.embedder import Embedder
from sfumato.errors import SfumatoError, counted
from sfumato.files import write_text
from sfumato.machine import device_of
from sfumato.progress import reporting_to
from sfumato.training import embeddings, teacher_samples
from sfumato.training import run as single
from sfumato.training.codes import AUTOENCODER
from sfumato.training.config import TrainConfig, from_yaml
from sfumato.training.console import Console
from sfumato.training.ladder import FIRST
from sfumato.training.parts import loss_of, separate
from sfumato.training.run import Interrupted, Run
from sfumato.training.session import Session
from sfumato.unclip import UnCLIP

SHARE = 0.4  # of the budget, for the autoencoder
STUDENT = 0.4, 0.6  # of the budget, for the two stages of a student
SIZE, BLURRED = "size_{}", 256  # folders of a cascade's stages; the size from which one hears blurred pictures
REGRESSION, PRIOR = "regression", "prior"  # a prior without a network; the folder of the prior of an unCLIP pair
LOSS = "autoencoding(beta=0.1, spectral=0.1)"
_BOTH = (
    "size", "conditions", "columns", "split", "key", "max_gb", "normalise", "batch", "micro", "workers",
    "holdout", "seed", "checkpoint_every", "loggers", "threads", "device", "precision", "parallel",
)  # fmt: skip
_OURS = ("data", "out", "labels", "latent", "autoencoder", "unclip", "embedding")


def train(
    data: Any,
    out: str | os.PathLike[str] | None = None,
    labels: Any = None,
    console: Console | None = None,
    on_start: Callable[[Session], None] | None = None,
    modules: Iterable[type] = (),
    latent: bool = False,
    autoencoder: Any = None,
    cascade: Any = None,
    unclip: bool = False,
    embedding: Any = None,
    **settings: Any,
) -> Run:
    """Train a denoiser on data of any kind and write a run folder: `sf.train("photos/", minutes=10)`.

    data: whatever `sf.data.open` takes. labels: one class label per sample, or a file of them. settings: those of
    `TrainConfig`, three of which may also be objects: net, a torch.nn.Module called as net(x, noise_level, label=..),
    which is trained in place; init, a denoiser or a wrapper of one, of which a copy is trained further (`fine_tuning`);
    loss, a module with `losses(model, batch)` (`objectives.loss`). modules: your own classes that the settings name, if
    they are not registered. console: shows progress (default: lines or a bar on stderr). on_start: called with the
    session in each process before the first step.
    latent=True trains an autoencoder first, on two fifths of the budget, and then a denoiser of its codes; the run's
    model is a `Latent`, which holds both. autoencoder: a trained one, a `Codec` or its file or run folder, or the
    network of a new one, "Autoencoder(latent=8)"; either implies latent. cascade: the sizes of its stages, (16, 32),
    between which the budget is divided equally; the run's model is a `Cascade`. unclip=True trains a prior of
    embeddings and a decoder of pictures, each on half of the budget; the run's model is an `UnCLIP`, whose decoder is
    a `Latent` with latent=True. embedding: what
    embeds, an `Embedder` or its file, or the name of features; without unclip the prior alone is trained.
    Raises SfumatoError before training if anything is wrong with data, settings or folder, and before the second stage
    if the autoencoder reconstructs or spreads badly (`codes.check`). If the run is stopped by a command (`control`)
    or, in a single process, by a KeyboardInterrupt, it saves a checkpoint and raises Interrupted, a KeyboardInterrupt.
    An interrupt in the middle of a weight update falls back to the checkpoint before.
    """
    modules, how = tuple(modules), dict[str, Any](console=console, on_start=on_start)
    pair = unclip or embedding is not None
    _require_one(settings, latent or autoencoder is not None, cascade is not None, pair, unclip)
    if pair:
        space = {"latent": latent or autoencoder is not None, "autoencoder": autoencoder}
        return _new_unclip(data, out, labels, modules, how, settings, unclip, embedding, space)
    if cascade is not None:
        return _new_cascade(data, out, labels, modules, how, {**settings, "cascade": cascade})
    if not latent and autoencoder is None:
        return single.train(data, out, labels, modules=modules, **how, **settings)
    with joined(device_of(settings.get("device", "auto"))) as world:
        words, _ = separate(settings, modules)
        word = autoencoder if isinstance(autoencoder, str) and not is_file(autoencoder) else None
        chosen, _ = single.in_words(data, out, labels, {**words, "latent": True, "autoencoder": word})
        path = world.broadcast_result(lambda: _begun(chosen, autoencoder))
    if autoencoder is None or word is not None:
        _first(path, chosen, data, labels, modules, how)
        settings = {**settings, **share_of_budget(chosen, 1 - SHARE)}
    return _second(path, data, labels, modules, how, settings)


def resume(
    run: str | os.PathLike[str],
    data: Any = None,
    labels: Any = None,
    console: Console | None = None,
    on_start: Callable[[Session], None] | None = None,
    changed: bool = False,
    modules: Iterable[type] = (),
    **changes: Any,
) -> Run:
    """Resume a run from its newest intact checkpoint, exactly as if it had not stopped.

    data, labels: needed if the run was trained on an array in memory. changes: new values for the settings in
    `CHANGEABLE`; minutes and steps are totals of the whole run, of a latent model those of the denoiser. changed:
    accept settings that were edited in RUN/config.yaml; without it such edits are an error that lists them. modules:
    your own classes in the run, if they are not registered; passing objects of such classes as net or loss also works,
    and is required for a loss that no file describes. Checkpoints do not hold the state of torch's own generators,
    which dropout uses: a resumed run that uses them is valid, but its draws differ from those of an uninterrupted one.
    A latent model's run goes on with whichever stage was stopped.
    """
    path, modules, how = folder.existing(run), tuple(modules), dict[str, Any](console=console, on_start=on_start)
    place = path / AUTOENCODER
    if not folder.found(path) and ((path / FIRST).is_dir() or _is_student(path, data)):
        return _student(path, data, labels, modules, how, changes)
    if (path / PRIOR).is_dir():
        return _resumed_unclip(path, data, labels, modules, how, changed, changes)
    if any(path.glob(SIZE.format("*"))):
        return _resumed_cascade(path, data, labels, modules, how, changed, changes)
    if folder.found(path) or not place.is_dir():
        return single.resume(path, data, labels, changed=changed, modules=modules, **how, **changes)
    chosen, new = from_yaml(str(path / "config.yaml")), chosen_file(path)
    if not _complete(place):
        _stage(path, lambda: single.resume(place, data, labels, modules=modules, **how), how["console"])
    kept = {name: value for name, value in chosen.to_dict().items() if name not in _OURS and name not in changes}
    if chosen.autoencoder != new and not {"minutes", "steps"} & set(changes):
        kept |= share_of_budget(chosen, 1 - SHARE)
    data, labels = chosen.data if data is None else data, chosen.labels if labels is None else labels
    return _second(path, data, labels, modules, how, {**kept, **changes})


def chosen_file(path: Path) -> str:
    """The setting `autoencoder` of a run in whose second stage the autoencoder is trained."""
    return str(path / AUTOENCODER)


def _require_one(settings: dict[str, Any], latent: bool, cascade: bool, pair: bool, unclip: bool) -> None:
    """Raise SfumatoError for two ways to train in stages, and for one of them with a model that is trained further."""
    if settings.get("init") is not None and (latent or cascade or pair):
        raise SfumatoError(
            "A model that is trained further (init) keeps its autoencoder, size and embedding: leave latent, "
            "autoencoder and cascade out, and unclip and embedding."
        )
    if settings.get("prior") == REGRESSION and not unclip:
        raise SfumatoError("prior is that of an unCLIP pair: train with unclip, or leave it out.")
    if cascade + (latent or pair) > 1 or (latent and pair and not unclip):
        raise SfumatoError(
            "A model is trained in one kind of stages: take one of latent (with its autoencoder), cascade and unclip, "
            "or latent and unclip for a pair whose decoder draws codes."
        )


def is_file(word: str) -> bool:
    """Whether the setting autoencoder is a place, not a network."""
    return not registry.known("network", registry.bare(word))


def _begun(chosen: TrainConfig, autoencoder: Any, embedder: Embedder | None = None) -> Path:
    """The folder of a new run with its settings, and with the autoencoder or embedder that is given."""
    kind = "unclip" if embedder is not None else "latent" if chosen.cascade is None else "cascade"
    with folder.new(chosen.out, f"{Path(chosen.data).stem or 'data'}-{kind}") as path:
        if embedder is not None:
            place = path / embeddings.EMBEDDING
            place.mkdir(exist_ok=True)
            serialization.save(embedder, place / serialization.FILE)
            chosen = chosen.replace(embedding=str(place))
            if chosen.unclip:  # by which a run to resume is known
                (path / PRIOR).mkdir(exist_ok=True)
        place = path / AUTOENCODER
        if isinstance(autoencoder, Codec):
            place.mkdir(exist_ok=True)
            serialization.save(autoencoder, place / serialization.FILE)
        elif autoencoder is not None and (not isinstance(autoencoder, str) or is_file(autoencoder)):
            found = serialization.locate(autoencoder)
            place.mkdir(exist_ok=True)
            shutil.copyfile(found, place / serialization.FILE)
        if chosen.cascade is not None:  # by which a run to resume is known
            (path / SIZE.format(chosen.sizes[0])).mkdir(exist_ok=True)
        if place.is_dir():
            chosen = chosen.replace(autoencoder=chosen_file(path))
        write_text(path / "config.yaml", chosen.replace(out=str(path)).to_yaml())
        return path


def _first(path: Path, chosen: TrainConfig, data: Any, labels: Any, modules: Any, how: dict[str, Any]) -> None:
    """Train the autoencoder."""
    own = of_autoencoder(chosen)
    _stage(path, lambda: single.train(data, path / AUTOENCODER, labels, modules=modules, **how, **own), how["console"])


def of_autoencoder(chosen: TrainConfig) -> dict[str, Any]:
    """The settings of the first stage of a latent model."""
    own = {name: getattr(chosen, name) for name in _BOTH if getattr(chosen, name) != getattr(TrainConfig(), name)}
    return own | {"net": chosen.autoencoder or "auto", "loss": LOSS, **share_of_budget(chosen, SHARE)}


def _second(path: Path, data: Any, labels: Any, modules: Any, how: dict[str, Any], settings: dict[str, Any]) -> Run:
    """Train the denoiser of the codes."""
    own = {**settings, "latent": True, "autoencoder": chosen_file(path)}
    return single.train(data, path, labels, modules=modules, **how, **own)


def _new_cascade(data: Any, out: Any, labels: Any, modules: Any, how: dict[str, Any], settings: dict[str, Any]) -> Run:
    words, _ = separate(settings, modules)
    if words.get("loss", "auto") != "auto":
        raise SfumatoError("The stages of a cascade have losses of their own: leave loss out.")
    with joined(device_of(settings.get("device", "auto"))) as world:
        chosen, _ = single.in_words(data, out, labels, words)
        path = world.broadcast_result(lambda: _begun(chosen, None))
    rest = {name: value for name, value in settings.items() if name not in ("cascade", "loss", "size")}
    return _cascade(path, chosen, data, labels, modules, how, rest)


def _resumed_cascade(
    path: Path, data: Any, labels: Any, modules: Any, how: dict[str, Any], changed: bool, changes: dict[str, Any]
) -> Run:
    if folder.found(path):
        _cascaded(path, from_yaml(str(path / "config.yaml")))  # says what cannot be read before settings change
        how = _in_one_file(how, partial(_cascaded, path))
        return single.resume(path, data, labels, changed=changed, modules=modules, **how, **changes)
    chosen = from_yaml(str(path / "config.yaml"))
    rest = {name: v for name, v in chosen.to_dict().items() if name not in (*_OURS, "cascade", "loss", "size")}
    data, labels = chosen.data if data is None else data, chosen.labels if labels is None else labels
    return _cascade(path, chosen, data, labels, modules, how, {**rest, **changes})


def _cascade(
    path: Path, chosen: TrainConfig, data: Any, labels: Any, modules: Any, how: dict[str, Any], settings: dict[str, Any]
) -> Run:
    """Train what is not yet trained of a cascade, and write it."""
    sizes, settings = chosen.sizes, {**settings, **share_of_budget(chosen, 1 / len(chosen.sizes))}
    for at, size in enumerate(sizes[:-1]):
        place = path / SIZE.format(size)
        if folder.found(place):
            if not _complete(place):
                _stage(path, partial(single.resume, place, data, labels, modules=modules, **how), how["console"])
            continue
        own = {**settings, "size": size, **_enlarging(sizes, at)}
        _stage(path, partial(single.train, data, place, labels, modules=modules, **how, **own), how["console"])
    last = {**settings, "size": sizes[-1], "cascade": chosen.cascade, **_enlarging(sizes, len(sizes) - 1)}
    how = _in_one_file(how, partial(_cascaded, path))
    return single.train(data, path, labels, modules=modules, **how, **last)


def _new_unclip(
    data: Any, out: Any, labels: Any, modules: Any, how: dict[str, Any], settings: dict[str, Any], unclip: bool,
    embedding: Any, space: dict[str, Any],
) -> Run:  # fmt: skip
    words, _ = separate(settings, modules)
    given = space["autoencoder"]
    with joined(device_of(settings.get("device", "auto"))) as world:
        word = given if isinstance(given, str) and not is_file(given) else None
        own = {"unclip": unclip, "latent": space["latent"], "autoencoder": word}
        chosen, kept = single.in_words(data, out, labels, {**words, **own})

        def make() -> Embedder:
            source = single.opened(data, kept, chosen)
            if chosen.prior == REGRESSION:
                embeddings.heard_by_regression(source, chosen)
            return embeddings.embedder(source, embedding, chosen.holdout)

        path = world.broadcast_result(lambda: _begun(chosen, given, make()))
    chosen = chosen.replace(embedding=str(path / embeddings.EMBEDDING))
    if unclip:
        return _unclip(path, chosen, data, labels, modules, how, settings)
    return single.train(data, path, labels, modules=modules, **how, **settings, embedding=chosen.embedding)


def _resumed_unclip(
    path: Path, data: Any, labels: Any, modules: Any, how: dict[str, Any], changed: bool, changes: dict[str, Any]
) -> Run:
    if folder.found(path):
        serialization.load(path / PRIOR)  # says what cannot be read before settings change
        how = _in_one_file(how, partial(_paired, path))
        return single.resume(path, data, labels, changed=changed, modules=modules, **how, **changes)
    chosen = from_yaml(str(path / "config.yaml")).replace(embedding=str(path / embeddings.EMBEDDING))
    rest = {name: value for name, value in chosen.to_dict().items() if name not in _OURS}
    data, labels = chosen.data if data is None else data, chosen.labels if labels is None else labels
    return _unclip(path, chosen, data, labels, modules, how, {**rest, **changes})


def _unclip(
    path: Path, chosen: TrainConfig, data: Any, labels: Any, modules: Any, how: dict[str, Any], settings: dict[str, Any]
) -> Run:
    """Train what is not yet trained of an unCLIP pair, and write it."""
    share = 1.0 if chosen.prior == REGRESSION else 0.5  # of the budget, for the decoder
    settings = {**settings, "embedding": chosen.embedding, **share_of_budget(chosen, share)}
    place, space = path / PRIOR, path / AUTOENCODER
    if chosen.prior == REGRESSION:
        if leads() and not _complete(place):
            source = single.opened(data, labels, chosen.replace(unclip=False))
            serialization.save(embeddings.regression(source, chosen), place / serialization.FILE)
    elif not folder.found(place):
        size = chosen.net if chosen.net in nets.SIZES else "auto"  # a network by name is the decoder's
        loss = "auto" if registry.bare(chosen.loss) == "decoding" else chosen.loss  # of the decoder alone
        own = {**settings, "net": size, "normalise": "auto", "loss": loss, **_optimiser_of_prior(chosen)}
        _stage(path, partial(single.train, data, place, labels, modules=modules, **how, **own), how["console"])
    elif not _complete(place):
        _stage(path, partial(single.resume, place, data, labels, modules=modules, **how), how["console"])
    last = _in_one_file(how, partial(_paired, path))
    if not chosen.latent:
        return single.train(data, path, labels, modules=modules, **last, **settings, unclip=True)
    half = chosen.replace(**share_of_budget(chosen, share))
    if not space.is_dir():
        _first(path, half, data, labels, modules, how)
    elif not _complete(space):
        _stage(path, partial(single.resume, space, data, labels, modules=modules, **how), how["console"])
    if (space / "config.yaml").exists():  # it was trained here
        settings |= share_of_budget(half, 1 - SHARE)
    return _second(path, data, labels, modules, last, {**settings, "unclip": True})


def _optimiser_of_prior(chosen: TrainConfig) -> dict[str, Any]:
    """AdamW for captions that an encoder has embedded, unless an optimiser or a rate is named: there it is better than
    muon and three times as fast; words, which are learned with the prior, are learned sooner by muon."""
    usual, kinds = TrainConfig(), (chosen.conditions or {}).values()
    if (chosen.optimizer, chosen.lr) != (usual.optimizer, usual.lr) or not any(k.startswith("text(") for k in kinds):
        return {}
    return {"optimizer": "adamw", "lr": 2e-3}


def student(path: Path, stages: list[dict[str, Any]], data: Any, labels: Any, how: dict[str, Any]) -> Run:
    """Train a student in one stage or two, whose settings these are; the last begins at what the first ends with.

    All are written down before the first step, so that a run that is killed from here on can be resumed.
    """
    *first, last = stages
    last = {**last, "init": str(path / FIRST)} if first else last
    with joined(device_of(last.get("device", "auto"))) as world:
        for place, settings in (*((path / FIRST, each) for each in first), (path, last)):
            chosen, _ = single.in_words(data, place, labels, settings)
            world.broadcast_result(partial(_written_down, place, chosen))
    return _student(path, data, labels, (), how, {})


def complete(path: Path, loss: str, device: str, console: Console | None) -> None:
    """Draw the samples of the teacher of a loss that a run folder asks for and lacks."""
    console = console or Console()
    with joined(device_of(device)) as world:
        if not world.broadcast_result(lambda: teacher_samples.awaited(path)):
            return
        teacher = registry.make("loss", loss).beside(torch.empty(0, device=world.device))
        count, note = (console.count, console.note) if world.leads else (None, lambda line: None)
        with folder.held(path) if world.leads else nullcontext(), reporting_to(count):
            try:
                teacher_samples.draw(path, teacher, world, note)
            except KeyboardInterrupt:
                message = f"Stopped while samples of the teacher were drawn. To resume: sfumato resume {path}"
                note(message)
                raise Interrupted(message) from None


def _is_student(path: Path, data: Any) -> bool:
    """Whether a run without a checkpoint is that of a student, all of whose settings are written down."""
    if not (path / "config.yaml").exists():
        return False
    chosen = from_yaml(str(path / "config.yaml"))
    return "teacher=file(" in chosen.loss and bool(chosen.init) and (data is not None or bool(chosen.data))


def _written_down(place: Path, chosen: TrainConfig) -> None:
    place.mkdir(exist_ok=True)
    write_text(place / "config.yaml", chosen.to_yaml())


def _student(
    path: Path, data: Any, labels: Any, modules: Any, how: dict[str, Any], changes: dict[str, Any]
) -> Run:  # fmt: skip
    """Draw what is not yet drawn of the samples of its teacher, and train what is not yet trained of a student."""
    place, usual, chosen = path / FIRST, TrainConfig(), from_yaml(str(path / "config.yaml"))
    complete(path, chosen.loss, chosen.device, how["console"])

    def new(place: Path, changes: dict[str, Any], share: float = 1.0) -> Run:
        chosen = from_yaml(str(place / "config.yaml"))
        own = {name: each for name, each in chosen.to_dict().items() if each != getattr(usual, name)}
        own = {name: each for name, each in own.items() if name not in ("data", "out", "labels")} | {"lr": chosen.lr}
        x, y = chosen.data if data is None else data, chosen.labels if labels is None else labels
        own |= changes
        if share < 1 and not {"minutes", "steps"} & set(own):
            minutes = single.usual_minutes(single.opened(x, y, chosen))
            own["minutes"] = share * minutes
            if leads():
                budget = f"{share:.0%} of {counted(minutes, 'minute')}, chosen from the data size"
                (how["console"] or Console()).note(f"This stage has {budget} (set minutes or steps).")
        return single.train(x, place, y, modules=modules, **how, **own)

    if not place.is_dir():
        return new(path, changes)
    if not folder.found(place):
        _stage(path, partial(new, place, {}, STUDENT[0]), how["console"])
    elif not _complete(place):
        _stage(path, partial(single.resume, place, data, labels, modules=modules, **how), how["console"])
    return new(path, {**changes, "init": str(place)}, STUDENT[1])


def _in_one_file(how: dict[str, Any], all_of: Callable[[TrainConfig], Callable[[Any], Any]]) -> dict[str, Any]:
    """The arguments of the last stage, whose file holds all stages whenever it is written: all_of(settings)(model)."""

    def begin(session: Session) -> None:
        session.together = all_of(session.config)
        if how["on_start"] is not None:
            how["on_start"](session)

    return {**how, "on_start": begin}


def _paired(path: Path, config: TrainConfig) -> Callable[[Any], UnCLIP]:
    """What makes an unCLIP pair of its decoder."""
    prior, embedder = serialization.load(path / PRIOR), embeddings.loaded(path / embeddings.EMBEDDING)
    noise = getattr(loss_of(config), "noise", 0.0)
    return lambda decoder: UnCLIP(prior, decoder, embedder, noise)


def _cascaded(path: Path, config: TrainConfig) -> Callable[[Any], Cascade]:
    """What makes a cascade of its last stage."""
    small, *larger = [serialization.load(path / SIZE.format(size)) for size in config.sizes[:-1]]

    def cascade(last: Any) -> Cascade:
        model: Any = small
        for size, before, stage in zip(config.sizes[1:], config.sizes, [*larger, last], strict=False):
            model = Cascade(model, stage, size // before, _augmentation(size))
        return model

    return cascade


def _augmentation(size: int) -> str:
    """Large pictures are enlarged from blurred ones, since noise hides little of them."""
    return "blur" if size >= BLURRED else "noise"


def _enlarging(sizes: tuple[int, ...], at: int) -> dict[str, Any]:
    """The loss of a stage, of the first none of its own."""
    if not at:
        return {}
    return {"loss": f"upscaling(factor={sizes[at] // sizes[at - 1]}, augmentation={_augmentation(sizes[at])})"}


def _stage(path: Path, train: Callable[[], Run], console: Console | None) -> None:
    """Train a stage before the last; if it is stopped, message and console name the folder of all."""
    try:
        train()
    except Interrupted as stopped:
        every = f"All stages: sfumato resume {path}"
        if leads():
            (console or Console()).note(every)
        raise Interrupted(f"{stopped} {every}") from None


def share_of_budget(chosen: TrainConfig, share: float) -> dict[str, Any]:
    """A share of the budget of the settings; of none none, since each stage then takes its own."""
    steps = None if chosen.steps is None else max(1, round(share * chosen.steps))
    return {"minutes": None if chosen.minutes is None else share * chosen.minutes, "steps": steps}


def _complete(place: Path) -> bool:
    """Whether the first stage has ended, or its autoencoder was given."""
    if not (place / "config.yaml").exists():
        return (place / serialization.FILE).exists()
    lines = folder.read(place / "metrics.jsonl") if (place / "metrics.jsonl").exists() else []
    return bool(lines and lines[-1].get("done")) and not summary.missing(place)
