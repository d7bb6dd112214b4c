"""One string or object -> a Source: the samples in the user's dtype and units, with ids, labels and notes."""

import difflib
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError
from ..machine import fits
from . import arrays, builtin
from .column import Column
from .dataset import LABEL, Source, class_counts
from .folders import TABLE_SUFFIXES, TAR_SUFFIXES, open_folder, open_table, open_tars
from .images import Size
from .items import IMAGE_SUFFIXES
from .labels import encode_labels
from .picture import check_size, fit_cover
from .rows import Mapped, Samples
from .settle import columns, settled, with_label
from .spec import DataSpec
from .tars import expand

__all__ = ["Size", "Source", "class_counts", "open"]


def open(
    obj: Any,
    labels: Any = None,
    size: Size | None = None,
    name: str | None = None,
    conditions: Mapping[str, str] | DataSpec | None = None,
) -> Source:
    """Sniff a data source.

    obj: a folder of images (flat, or one sub-folder a class), a .npy or .npz file, archives of pictures as WebDataset
        writes them ("photos.tar", "photos-{000..012}.tar", "photos-*.tar", or their folder), tables of pictures or
        numbers (.parquet files, or a folder that `datasets` saved), the name of a built-in set ("fashion", "emoji",
        "digits"), a tensor or array (N, *shape), a pair (x, labels), or a dict {"x": x, "temperature": t, ...} of the
        samples and their conditions, as an .npz file has them.
    labels: one integer or string a sample; replaces those that the source brings.
    size: side in pixels, or (height, width), for images only.
    name: what to call it.
    conditions: name -> "label", "multilabel", "scalar", "vector" or "field", where it should not be guessed from the
        values, or "ignore" to leave one out; the spec of a model, for data as it knows them.

    Raises SfumatoError, in one sentence, for whatever cannot be used.
    """
    known = isinstance(conditions, DataSpec)
    said = _kinds(conditions) if isinstance(conditions, DataSpec) else conditions
    if _is_pair(obj):
        obj, labels = obj[0], obj[1] if labels is None else labels
    if isinstance(obj, Source):
        source = obj
    elif isinstance(obj, str | os.PathLike):
        source = _open_text(os.fspath(obj), size, said or {})
    else:
        source = _open_object(obj)
    if size is not None:
        source = _resized(source, size)
    if labels is not None:
        source = source.having({LABEL: _labels(labels, len(source))} | _without(source.conditions, LABEL))
    return settled(replace(source, name=name or source.name), said, known)


def _kinds(spec: DataSpec) -> dict[str, str]:
    return {name: each.kind for name, each in spec.conditions.items()}


def _without(conditions: Mapping[str, Column], name: str) -> dict[str, Column]:
    return {other: each for other, each in conditions.items() if other != name}


def _labels(labels: Any, count: int) -> Column:
    """Labels that are given apart: one a sample, none missing."""
    indices, classes = encode_labels(labels, count)
    return Column(indices.numpy(), np.ones(count, bool), tuple(classes))


def _open_text(text: str, size: Size | None, said: Container[str]) -> Source:
    if not text.strip():
        raise SfumatoError(f"no data given: name a folder, a file or one of {', '.join(builtin.NAMES)}")
    if text in builtin.NAMES:
        source = _built_in(text)
        if Path(text).exists():
            source.notes.append(f"This is the built-in set; for the file or folder of that name write ./{text}")
        return source
    path = Path(text).expanduser()
    several = [] if path.exists() else expand(text)
    if several:
        return _open_files(several, size, several[0].resolve().parent.name, said)
    if not path.exists():
        raise SfumatoError(_missing(path, text))
    if path.is_dir():
        return open_folder(path, size, said)
    return _open_files([path], size, path.name.partition(".")[0], said)


def _open_files(paths: Sequence[Path], size: Size | None, name: str, said: Container[str]) -> Source:
    """Files of one kind, by their ending; only archives and tables may be several."""
    path = paths[0]
    if path.name.lower().endswith(TAR_SUFFIXES):
        return open_tars(paths, size, name)
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        return open_table(paths, size, name, said)
    if len(paths) > 1:
        raise SfumatoError(f"{path} and {len(paths) - 1:,} more: only .tar archives and .parquet tables may be several")
    if suffix == ".npy":
        return _from_array(arrays.read_npy(path), {}, str(path), path.stem)
    if suffix == ".npz":
        return _from_array(*arrays.read_npz(path), str(path), path.stem)
    if suffix in IMAGE_SUFFIXES:
        raise SfumatoError(f"{path} is one image: give the folder that holds the images")
    raise SfumatoError(
        f"{path} is not a kind of data that can be read: give a folder of images, a .npy, .npz, .tar or .parquet file, "
        f"or one of {', '.join(builtin.NAMES)}"
    )


def _missing(path: Path, text: str) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near_set = difflib.get_close_matches(text.lower(), builtin.NAMES, n=1)
    near_file = difflib.get_close_matches(path.name, siblings, n=1)
    if near_set:
        return f"{text} does not exist: did you mean the built-in set {near_set[0]!r}?"
    if near_file:
        return f"{text} does not exist: did you mean {path.parent / near_file[0]}?"
    return f"{text} does not exist, and it is none of the built-in sets ({', '.join(builtin.NAMES)})"


def _built_in(name: str) -> Source:
    data = builtin.load(name)
    x, kind, _ = arrays.arrange(torch.from_numpy(data.x), name)
    labels, classes = encode_labels(data.labels, len(x), data.classes)
    ids = data.ids or _positions(len(x))
    return Source(x, labels, classes, ids, kind, name, notes=[data.note], groups=data.groups or ids, bounds=data.bounds)


def _open_object(obj: Any) -> Source:
    x, rest = arrays.pick(obj, "the dict") if isinstance(obj, Mapping) else (obj, {})
    if isinstance(x, list | tuple) and x and all(isinstance(item, Tensor) for item in x):
        x = _stacked(x)
    if x is None or isinstance(x, bytes) or callable(x):
        raise SfumatoError(f"a {type(obj).__name__} is not data: give an array, a tensor, a folder or a file")
    _require_one_each(rest, x)
    return _from_array(x, rest, "the array", "array")


def _require_one_each(beside: Mapping[str, Any], x: Any) -> None:
    """Refuse what lies beside the samples of a dict and is not one a sample; of a file, which another wrote, it is a
    note.
    """
    for name, values in beside.items():
        if _counts(values) and _counts(x) and len(values) != len(x):
            raise SfumatoError(
                f"the condition {name!r} has {len(values):,} entries for {len(x):,} samples: give one a sample, or "
                "leave it out"
            )


def _counts(values: Any) -> bool:
    """Whether these are several values and not one."""
    one = isinstance(values, str | bytes | Mapping) or getattr(values, "ndim", 1) == 0
    return hasattr(values, "__len__") and not one


def _is_pair(obj: Any) -> bool:
    """Whether obj is (x, labels): a tuple of two whose first is itself a data source."""
    return (
        isinstance(obj, tuple)
        and len(obj) == 2
        and (isinstance(obj[0], str | os.PathLike | Mapping | list) or getattr(obj[0], "ndim", 0) > 0)
    )


def _stacked(items: Sequence[Tensor]) -> Tensor:
    if len({item.shape for item in items}) > 1:
        raise SfumatoError("the tensors in the list have different shapes: every sample must have the same")
    return torch.stack(list(items))


def _from_array(data: Any, beside: Mapping[str, Any], where: str, name: str) -> Source:
    """beside: what lies beside the samples, by name."""
    x, kind, notes = _arranged(data, where)
    arrays.require_finite(x, where)
    label = next((beside[key] for key in arrays.LABEL_KEYS if beside.get(key) is not None), None)
    if label is not None and len(label) != len(x):
        raise SfumatoError(f"there are {len(label):,} labels for {len(x):,} samples: give exactly one label a sample")
    found, unread = columns(beside, len(x))
    found = with_label(found, arrays.LABEL_KEYS)
    dtype = str(x.dtype).removeprefix("torch.")
    notes.insert(0, f"{len(x):,} samples of shape {tuple(x.shape[1:])}, {dtype}.")
    return Source(x, None, [], _positions(len(x)), kind, name, notes=[*notes, *unread]).having(found)


def _arranged(data: Any, where: str) -> tuple[Samples, str, list[str]]:
    if isinstance(data, np.memmap) and not data.flags.writeable and not fits(data.nbytes):  # as `read_npy` maps it
        rows = Mapped(data, where)
        note = f"{rows.nbytes / 2**30:.1f} GiB are more than memory should hold: samples are read when needed."
        return rows, rows.kind, [*rows.notes, note]
    return arrays.arrange(arrays.to_tensor(data, where), where)


def _positions(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _resized(source: Source, size: Size) -> Source:
    """Images of another size than `size` resized to cover it and cropped at the centre."""
    target = check_size(size)
    if len(source.shape) == 3 and source.shape[1:] == target:
        return source
    if source.kind != "image":
        raise SfumatoError(f"size is for images, but {source.name} holds arrays of shape {source.shape}")
    if not isinstance(source.x, Tensor):
        raise SfumatoError(
            f"{source.name} is larger than memory, and size cannot change it: resize it once and save it"
        )
    pictures = source.x.numpy().transpose(0, 2, 3, 1)
    resized = np.stack([fit_cover(np.ascontiguousarray(p), target) for p in pictures])
    if source.bounds is not None:  # the filter overshoots at edges
        resized = resized.clip(*(resized.dtype.type(bound) for bound in source.bounds))
    x = torch.from_numpy(resized)
    note = f"All images were resized to cover {target[0]} x {target[1]} and cropped at the centre, as asked."
    return replace(source, x=x.movedim(-1, 1).contiguous(), notes=[*source.notes, note], identity=None)
