"""Write samples and their manifest atomically as a picture, an array file, or a folder of files."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sfumato import pictures
from sfumato.conditions import Label, Text
from sfumato.data import DataSpec, file_format
from sfumato.data.lengths import MANIFEST
from sfumato.errors import SfumatoError
from sfumato.files import atomic, forsaken, reason, write_text

OWN = (".png", ".npz", ".npy")
OF_SEQUENCES = (".png", ".npz", ".parquet")
KEYS = ("x", "labels", "classes", "manifest")  # of an .npz; conditions with these names are renamed
Columns = dict[str, list[Any]]  # conditions by name, one value per sample


def default_name(spec: DataSpec) -> str:
    """The default output: a picture for images, an array file for other data; never an existing file."""
    return free("samples.png" if spec.kind == "image" else "samples.npz")


def free(name: str) -> str:
    """The name of a file or folder, or if that is taken the first free one of name-2, name-3 ..."""
    path, number = Path(name), 1
    while path.exists():
        number += 1
        path = Path(name).with_stem(f"{Path(name).stem}-{number}")
    return str(path)


def check_samples(out: str, number: int, spec: DataSpec) -> Path:
    """The path of a file or folder of so many samples, checked as by `check`."""
    own = OF_SEQUENCES if spec.lengths is not None else OWN
    path = check(out, (*own, *file_format.written()))
    if is_folder(out):
        if (ending := file_format.of_samples(spec.stored)) is not None:
            file_format.require_writable(path / f"0{ending}", spec.shape, spec.stored)
    elif not path.name.lower().endswith(own):
        form = file_format.of(path)
        if spec.lengths is not None and not (form is not None and form.one):
            raise SfumatoError(
                f"{out} holds samples of one shape, and these end where they do: write a .npz or a folder/"
            )
        if form is not None and form.one and number > 1:
            raise SfumatoError(
                f"{out} holds one {form.what}, not {number:,}: draw -n 1, or give a folder, {path.stem}/"
            )
        file_format.require_writable(path, spec.shape, spec.stored)
    return path


def check(out: str, kinds: Collection[str], one: str = "") -> Path:
    """The path of the output, of one of these kinds. one: what is always a single file, and no folder.

    Raises SfumatoError, before any work is done, if it cannot be written.
    """
    path = Path(out).expanduser()
    folder = is_folder(out)
    if folder and one:
        raise SfumatoError(f"{out} is a folder, and {one} is one file: end it in {', '.join(kinds)}")
    if not folder and not path.name.lower().endswith(tuple(kinds)):
        more = "" if one else ", or in / for a folder"
        raise SfumatoError(f"{out} has no known kind: end it in {', '.join(kinds)}{more}")
    if folder and path.exists() and not path.is_dir():
        raise SfumatoError(f"{out} is a file, not a folder: give another name")
    if not folder and path.is_dir():
        raise SfumatoError(f"{out} is a folder, not a file: give another name")
    nearest = path
    while not nearest.exists():
        nearest = nearest.parent
    if not folder and nearest == path:
        nearest = path.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise SfumatoError(f"{out} cannot be written: {nearest}: {reason(error)}") from None
    if (place := path if folder else path.parent).is_dir():
        forsaken(place, "*" if folder else path.name)
    return path


def is_folder(out: str) -> bool:
    """Whether the output is a folder: a trailing slash, an existing folder, or a name without a suffix."""
    return out.endswith(("/", os.sep)) or Path(out).is_dir() or not Path(out).suffix


def write(
    path: Path, folder: bool, x: Any, given: Columns, spec: DataSpec, facts: dict[str, Any], plain: bool = False
) -> int:
    """Write samples x (N, *shape), or a list of sequences, in user units with their conditions; returns the number of
    files. plain: a single picture as it is, and not as a grid of one."""
    if folder:
        return _folder(path, x, given, spec, facts)
    classes = {name: i for i, name in enumerate(spec.classes)}
    labels = np.array([classes.get(name, -1) for name in given["label"]]) if classes and "label" in given else None
    given = {name: _whole(values, spec.conditions.get(name)) for name, values in given.items()}
    kind = path.suffix.lower()
    if kind == ".png" and plain and spec.kind == "image" and len(x) == 1:
        _save_image(path, _full_scale(x[0], spec), facts)
        return 1
    if kind == ".png":
        columns, names, order, below = layout(len(x), labels, spec, _captions(given, spec))
        made = pictures.picture(
            np.asarray(spec.together(x))[order], spec.kind, spec.bounds, columns, names, captions=below
        )
        pictures.save_png(made, path, facts)
        return 1
    if kind == ".parquet":
        return _save_lists(path, x, given, facts)
    if kind not in OWN:
        _save_as(
            path,
            x if isinstance(x, np.ndarray) else np.stack(x),
            {name: array(values) for name, values in given.items()},
            spec,
            facts,
        )
        return 1
    named = {"x": x} if spec.lengths is None else {f"{i:05d}": one for i, one in enumerate(x, int(facts["first"]))}
    arrays: dict[str, Any] = {**named, "manifest": np.array(json.dumps(facts))}
    if labels is not None:
        arrays |= {"labels": labels, "classes": np.array(list(spec.classes))}
    for name, values in given.items():
        if name != "label" or labels is None:
            arrays[name if name not in KEYS else f"condition_{name}"] = array(values)
    with atomic(path) as temporary, temporary.open("wb") as file:
        if kind == ".npz":
            np.savez_compressed(file, **arrays)
        else:
            np.save(file, x, allow_pickle=False)
    return 1


def _save_lists(path: Path, x: list[np.ndarray], given: Columns, facts: Mapping[str, Any]) -> int:
    """Write sequences as a column "x" of lists of a Parquet file, beside their conditions, with the manifest."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise SfumatoError(
            f"{path} is written by pyarrow, which is not installed: pip install 'sfumato[parquet]'"
        ) from None
    kind = pa.list_(pa.from_numpy_dtype(x[0].dtype))
    lists = pa.array([one.tolist() for one in x], kind if x[0].ndim == 1 else pa.list_(kind))
    table = pa.table({"x": lists, **{name if name != "x" else "condition_x": values for name, values in given.items()}})
    with atomic(path) as temporary:
        parquet.write_table(table.replace_schema_metadata({"sfumato": json.dumps(facts)}), temporary)
    return 1


def _save_as(
    path: Path, x: np.ndarray, beside: Mapping[str, np.ndarray], spec: DataSpec, facts: Mapping[str, Any]
) -> None:
    """Write samples (N, *shape) in the format of another package, as the ending says."""
    form = file_format.require_writable(path, spec.shape, spec.stored)
    stored = {"key": "x", **spec.stored, "ending": form.ending(path)}
    beside = {name if name != stored["key"] else f"condition_{name}": values for name, values in beside.items()}
    with atomic(path) as temporary, file_format.reading(path, form.what, form.extra):
        form.write(temporary, x, beside, stored, json.dumps(facts))


def _whole(values: list[Any], condition: Any) -> list[Any]:
    """Classes by their names, or as whole numbers where all names are those of whole numbers, as data have them."""
    names = condition.classes if isinstance(condition, Label) else ("",)
    whole = all(re.fullmatch(r"0|-?[1-9]\d{0,17}", name) for name in names) and None not in values
    return [int(value) for value in values] if whole else values


def array(values: list[Any]) -> np.ndarray:
    """Per-sample values as numbers, with NaN for None, or as text, with "" for None; names of a set are separated by
    commas."""
    first = next((value for value in values if value is not None), None)
    if isinstance(first, int):
        return np.array(values, np.int64)
    if isinstance(first, str):
        return np.array([value or "" for value in values])
    if isinstance(first, list) and all(isinstance(name, str) for name in first):
        return np.array([", ".join(names or ()) for names in values])
    shape = () if first is None else np.shape(first)
    return np.array([np.full(shape, np.nan) if value is None else value for value in values], np.float64)


def _captions(given: Columns, spec: DataSpec) -> list[str] | None:
    """The text of each sample, if there is a condition that is one."""
    texts = [values for name, values in given.items() if isinstance(spec.conditions.get(name), Text)]
    return [value or "" for value in texts[0]] if texts and len(spec.shape) > 2 else None


def layout(
    count: int, labels: np.ndarray | None, spec: DataSpec, captions: list[str] | None = None
) -> tuple[int | None, list[str] | None, np.ndarray, list[str] | None]:
    """(columns, name of each row, order of samples, captions below them) of a grid.

    One class or caption per row, if all have equally many samples and more than one; else captions are below.
    """
    everything = np.arange(count)
    if captions is not None:
        texts = list(dict.fromkeys(captions))
        each = count // len(texts)
        if 1 < each < count and all(captions.count(text) == each for text in texts):
            return each, texts, np.argsort([texts.index(text) for text in captions], kind="stable"), None
        return None, None, everything, captions
    if labels is None or len(spec.shape) == 1 and spec.shape[0] == 2:
        return None, None, everything, None
    shown, counts = np.unique(labels, return_counts=True)
    if len(shown) == 1 or len(set(counts.tolist())) > 1:
        return None, None, everything, None
    return int(counts[0]), [spec.classes[i] for i in shown], np.argsort(labels, kind="stable"), None


def _folder(path: Path, x: np.ndarray, given: Columns, spec: DataSpec, facts: dict[str, Any]) -> int:
    """Write one file per sample, named by its number and class: in the format of the training data where each of their
    files is a sample or more, or else PNG for images, .npy for other data."""
    labels = given.get("label") if spec.classes else None
    others = {name: values for name, values in given.items() if values is not labels and _short(values[0])}
    first = int(facts["first"])
    width = max(5, len(str(first + len(x) - 1)))
    save: Callable[[Path, np.ndarray, dict[str, Any]], None] = _save_image if spec.kind == "image" else _save_array
    suffix = ".png" if spec.kind == "image" else ".npy"
    if (ending := file_format.of_samples(spec.stored)) is not None:
        suffix, save = ending, lambda place, sample, own: _save_as(place, sample[None], {}, spec, own)
    for i, sample in enumerate(x):
        own = {**facts, "index": first + i}
        name = f"{first + i:0{width}d}"
        if others:
            own["conditions"] = {name: values[i] for name, values in others.items()}
        if labels is not None and labels[i] is not None:
            own["class"] = labels[i]
            name += "_" + re.sub(r"[^\w-]+", "-", own["class"]).strip("-")
        for key in ("first", "number"):
            own.pop(key)
        save(path / f"{name}{suffix}", _full_scale(sample, spec) if suffix == ".png" else sample, own)
    if spec.lengths is not None and suffix == ".npy":  # which of the axes are the steps, no file says
        write_text(path / MANIFEST, json.dumps(facts))
    return len(x)


def _short(value: Any) -> bool:
    """Whether a value is short enough for the manifest of a sample."""
    return np.ndim(value) < 2


def _full_scale(x: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Scale pictures with declared bounds such as 0..16 to the full range of their dtype, as viewers expect."""
    if spec.kind != "image" or spec.bounds is None:
        return x
    (low, high), top = spec.bounds, np.iinfo(x.dtype).max
    if low == 0 and high == top:
        return x
    return np.round((x.astype(np.float64) - low) / (high - low) * top).astype(x.dtype)


def _save_array(path: Path, x: np.ndarray, facts: dict[str, Any]) -> None:
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, x, allow_pickle=False)


def _save_image(path: Path, x: np.ndarray, facts: dict[str, Any]) -> None:
    """Write x (C, H, W): 8 bit and grey 16 bit unchanged, colour 16 bit as its upper 8 bits (a limit of Pillow)."""
    from PIL import Image

    if x.dtype == np.uint16 and len(x) > 1:
        x, facts = (x / 257).round().astype(np.uint8), {**facts, "depth": "8 of 16 bits; -o out.npz keeps all"}
    image = Image.fromarray(x[0] if len(x) == 1 else np.ascontiguousarray(x.transpose(1, 2, 0)))
    pictures.save_png(image, path, facts)
