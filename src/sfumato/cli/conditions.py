"""`--class`, `--caption` and `--condition`: conditions from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato import data
from sfumato.conditions import Condition, Conditions, Field, Label, MultiLabel, Scalar, Text, resolve
from sfumato.conditions.text import texts_of
from sfumato.data import DataSpec
from sfumato.data.images import IMAGE_SUFFIXES, ImageFiles, read_images
from sfumato.data.numpy_files import load
from sfumato.errors import SfumatoError, counted
from sfumato.files import first_line, require_plain
from sfumato.model import Denoiser

LABEL, SHOWN = "label", 8  # SHOWN: most captions in a note
_FILES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".npy", ".npz")  # what a caption does not end in


def spec_of(denoiser: Denoiser, where: Any) -> DataSpec:
    """The data spec of a model, by which a command reads and writes data. Raises SfumatoError if it has none."""
    if denoiser.spec is None:
        raise SfumatoError(f"{where} has no data spec, so its samples have no units: use it in Python")
    return denoiser.spec


def said(options: Any, known: Mapping[str, Condition], label: str | None = None) -> dict[str, str]:
    """Name -> value, as typed; --class sets the condition that holds classes, and --caption the one that is a text,
    whatever their names; several captions are lines of one value."""
    given: dict[str, str] = dict(options.condition)
    for name, text in given.items():
        if isinstance(condition := known.get(name), Text):
            _require_captions(name, text, condition)
    if captions := getattr(options, "caption", None):
        name = _of_texts(known)
        if name in given:
            raise SfumatoError(f"--caption and --condition {name}=... are the same: leave out one of them")
        given[name] = "\n".join(captions)
    if label is None:
        return given
    name = _of_classes(known, label)
    if given.setdefault(name, label) != label:
        raise SfumatoError(f"--class and --condition {name}=... give different values: leave out one of them")
    return given


def _of_classes(known: Mapping[str, Condition], label: str) -> str:
    """The condition that --class refers to: "label", or the only one with classes; a text if there is no other."""
    labels = [name for name, each in known.items() if isinstance(each, Label)]
    if LABEL in known or len(labels) == 1:
        return LABEL if LABEL in known else labels[0]
    near = labels or [name for name, each in known.items() if isinstance(each, MultiLabel)]
    if near:
        ways = " or ".join(f"--condition {name}={label}" for name in near)
        raise SfumatoError(f"--class does not fit this model, which has no single condition of classes: give {ways}")
    if [type(each) for each in known.values()] == [Text]:
        return next(iter(known))
    others = f"only {', '.join(known)}" if known else "and no other conditions"
    raise SfumatoError(f"there is no class {label!r}: this model has no classes, {others}: leave --class out")


def _of_texts(known: Mapping[str, Condition]) -> str:
    """The condition that --caption refers to: the only text."""
    texts = [name for name, each in known.items() if isinstance(each, Text)]
    if len(texts) == 1:
        return texts[0]
    if texts:
        raise SfumatoError(
            f"there are several texts, {', '.join(texts)}: give --condition NAME=TEXT in place of --caption"
        )
    others = f"only {', '.join(known)}" if known else "and no other conditions"
    raise SfumatoError(f"this model was trained without captions, {others}: leave --caption out")


def conditions(given: Mapping[str, str], spec: DataSpec, index: torch.Tensor) -> Conditions:
    """Encode typed conditions for samples with these numbers: one value, several in turn, or a file with one value
    or one per sample: a .npy file, or pictures for a field.
    """
    found = values(given, spec.conditions)
    turns = {name: _turns(name, each, index) for name, each in found.items() if isinstance(each, list)}
    return resolve(spec, {"cond": {**found, **turns}}, len(index))


def _turns(name: str, several: list[str], index: torch.Tensor) -> list[str]:
    """One of several values for each sample, by its number."""
    if len(several) > int(index.max()) + 1:
        least, samples = len(several) - int(index[0]), counted(len(index), "sample")
        raise SfumatoError(f"--condition {name} has {len(several)} values for {samples}: -n {least} draws one of each")
    return [several[i % len(several)] for i in index.tolist()]


def values(given: Mapping[str, str], known: Mapping[str, Condition]) -> dict[str, Any]:
    """Name -> text, a list of texts for several values, or the array in the file that a text names."""
    return {name: _value(text, known.get(name)) for name, text in given.items()}


def retrieved(options: Any, known: Mapping[str, Condition]) -> tuple[Any, list[str]]:
    """(the options, with --retrieval with trained captions in the place of others; notes on those others)."""
    chosen, given = dict(options.condition), values(_of_kind(Text, said(options, known), known), known)
    if options.retrieval and not given:
        raise SfumatoError("--retrieval looks up captions, and none is given: also give --caption")
    notes: list[str] = []
    for name, value in given.items():
        condition = known[name]
        assert isinstance(condition, Text)
        if options.retrieval:
            near = condition.retrieved(value)
            chosen[name] = "\n".join(near.get(text, text) for text in (each or "" for each in texts_of(value)))
            pairs = [f"{text!r} as {other!r}" for text, other in near.items()]
            notes += [f"Drawn as the nearest captions of training: {_few(pairs)}."] if pairs else []
            alone = [repr(text) for text in condition.untrained(value) if text not in near]
            notes += [f"Drawn as they are, as no caption of training resembles them: {_few(alone)}."] if alone else []
        elif untrained := condition.untrained(value):
            notes.append(
                f"Not among the {len(condition.trained):,} captions of training: {_few(list(map(repr, untrained)))}; "
                "--retrieval draws the nearest of those."
            )
    if not options.retrieval:
        return options, notes
    return argparse.Namespace(**{**vars(options), "caption": None, "condition": list(chosen.items())}), notes


def _few(texts: list[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN:,} more" if len(texts) > SHOWN else "")


def _of_kind(kind: type, given: Mapping[str, str], known: Mapping[str, Condition]) -> dict[str, str]:
    return {name: value for name, value in given.items() if isinstance(known.get(name), kind)}


def in_turn(given: Conditions, spec: DataSpec, index: torch.Tensor) -> Conditions:
    """The conditions with all classes in turn, by the number of each sample, if no class was set."""
    if LABEL in given or not spec.classes:
        return given
    return Conditions({LABEL: index % len(spec.classes), **given})


def _value(text: str, condition: Condition | None) -> Any:
    path = Path(text).expanduser()
    if path.suffix.lower() == ".npy":
        return load(path)
    if isinstance(condition, Field) and (path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES):
        return _pictures(path, condition.shape)
    if isinstance(condition, Text):
        lines = _lines(path) if path.suffix.lower() == ".txt" and path.is_file() else text.split("\n")
        return lines[0] if len(lines) == 1 else lines
    single = not isinstance(condition, Label | Scalar) or "," not in text or _is_class(condition, text)
    return text if single else [part.strip() for part in text.split(",")]


def _require_captions(name: str, text: str, known: Text) -> None:
    """Raise SfumatoError for the place of a file, one word with a slash or an ending, where no file of captions is."""
    path = Path(text).expanduser()
    place = path.suffix.lower() in _FILES or ("/" in text and not any(map(str.isspace, text)))
    if place and text not in known.trained and not (path.suffix.lower() in (".txt", ".npy") and path.is_file()):
        what = "is not a .txt file" if path.is_file() else "is not there"
        raise SfumatoError(
            f"--condition {name}={text}: the file {what}: give a .txt file with a caption a line, or one by --caption"
        )


def _lines(path: Path) -> list[str]:
    """The captions in a file, one a line."""
    require_plain(path)
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SfumatoError(f"{path} holds no captions: {first_line(error)}") from None
    if not lines:
        raise SfumatoError(f"{path} holds no captions: write one a line")
    return lines


def _pictures(path: Path, shape: tuple[int, ...]) -> Any:
    """A picture, or those of a folder, (n, *shape) in whole numbers; resized and cropped to the field's sides."""
    if len(shape) != 3:
        raise SfumatoError(f"{path} is a picture, and the condition has values of shape {shape}: give a .npy file")
    size = (shape[1], shape[2])
    if path.is_dir():
        return data.open(path, size=size).x[:].numpy()
    require_plain(path)
    return read_images(ImageFiles(path.parent, [path]), size).x[:].numpy()


def _is_class(condition: Condition, text: str) -> bool:
    """Whether the whole text, including commas, is the name of a class."""
    return isinstance(condition, Label) and text.casefold() in map(str.casefold, condition.classes)


def texts(given: Mapping[str, str], spec: DataSpec, index: torch.Tensor) -> dict[str, list[Any]]:
    """Name -> the text of each sample as it was typed, of conditions that are texts."""
    found = values(_of_kind(Text, given, spec.conditions), spec.conditions)
    return {n: _turns(n, v, index) if isinstance(v, list) else [v] * len(index) for n, v in found.items()}


def columns(given: Conditions, spec: DataSpec) -> dict[str, list[Any]]:
    """Name -> one value per sample, in the user's spelling and units, None where unset."""
    return {name: spec.conditions[name].decode(given.given(name)) for name in given}
