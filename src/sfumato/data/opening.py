"""Any string or object -> a Source; only `_read` decides what it is."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError, place
from ..files import require_plain
from ..machine import fits
from . import arrays, builtin, limits, tables
from .folders import open_archives, open_pictures, open_table
from .images import IMAGE_SUFFIXES, Size, hidden
from .kinds import columns, with_kinds, with_label
from .labels import encode_labels
from .picture import check_size, fit_cover
from .rows import Mapped, Samples
from .source import LABEL, Source
from .spec import DataSpec
from .tars import expand

TABLE_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".csv")
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
HANDFUL = 16  # fewer samples than this are almost certainly a mistake


def open(
    obj: Any,
    labels: Any = None,
    size: Size | None = None,
    name: str | None = None,
    conditions: Mapping[str, str] | DataSpec | None = None,
    max_gb: float = limits.DEFAULT_GB,
) -> Source:
    """Open a data source of any kind.

    obj: a folder of images (flat, or one sub-folder per class), a .npy or .npz file, archives of pictures in WebDataset
        format ("photos.tar", "photos-{000..012}.tar", "photos-*.tar", or their folder), tables of pictures or numbers
        (.parquet, .feather, .arrow, .csv, or a folder saved by `datasets`), the name of a built-in set ("fashion",
        "emoji", "digits"), a tensor or array (N, *shape), a pair (x, labels), or a dict
        {"x": x, "temperature": t, ...} of samples and their conditions, the layout of an .npz file.
    labels: one integer or string per sample; they replace those of the source.
    size: side in pixels, or (height, width); for images only.
    name: name of the source.
    conditions: name -> "label", "multilabel", "scalar", "vector" or "field", for kinds that should not be guessed from
        the values, or "ignore" to leave a column out; or the spec of a model, to read the data in its format.
    max_gb: GiB of memory that one file may take once it is unpacked, or 32 times its own size if that is more; a
        picture takes three times the size of its pixels.

    Raises SfumatoError for data that cannot be used.
    """
    known = isinstance(conditions, DataSpec)
    if isinstance(conditions, DataSpec):
        conditions = {each: condition.kind for each, condition in conditions.conditions.items()}
    if not isinstance(conditions, Mapping | None):
        raise SfumatoError(f"conditions are names and kinds, {{'mass': 'scalar'}}, not {conditions!r:.80}")
    kinds = dict(conditions or {})
    if _is_pair(obj):
        obj, labels = obj[0], obj[1] if labels is None else labels
    with limits.at_most(max_gb):
        source = _read(obj, size, kinds)
    if size is not None:
        source = _resized(source, size)
    if labels is not None:
        rest = {other: each for other, each in source.conditions.items() if other != LABEL}
        source = replace(source, conditions={LABEL: encode_labels(labels, len(source)), **rest})
    if len(source) < HANDFUL and not known and not isinstance(obj, Source):
        number = "is only 1 sample" if len(source) == 1 else f"are only {len(source)} samples"
        few = f"There {number}: a model will repeat what it sees and learn little else."
        source = replace(source, notes=[*source.notes, few])
    return with_kinds(replace(source, name=name or source.name), kinds, known)


def _read(obj: Any, size: Size | None, kinds: Mapping[str, str]) -> Source:
    """Decide whether obj is an object, a name, a folder, a file or several files, and read it."""
    if isinstance(obj, Source):
        return obj
    if not isinstance(obj, str | os.PathLike):
        return _from_object(obj)
    text = os.fspath(obj)
    if text in builtin.NAMES:
        source = builtin.load(text)
        if Path(text).exists():
            source.notes.append(f"This is the built-in set; for the file or folder of that name write ./{text}")
        return source
    paths = _found(text)
    for path in paths:
        require_plain(path)
    first = paths[0]
    if first.is_dir():
        return _read_folder(first, size, kinds)
    name = first.name.partition(".")[0] if len(paths) == 1 else first.resolve().parent.name
    suffix = first.suffix.lower()
    if first.name.lower().endswith(TAR_SUFFIXES):
        return open_archives(paths, size, name)
    if suffix in TABLE_SUFFIXES:
        return open_table(paths, size, name, kinds)
    if len(paths) > 1:
        raise SfumatoError(
            f"{first} and {len(paths) - 1:,} more: only .tar archives and .parquet tables may be several"
        )
    if suffix == ".npy":
        return _from_array(arrays.read_npy(first), {}, str(first), first.stem)
    if suffix == ".npz":
        return _from_array(*arrays.read_npz(first), str(first), first.stem)
    if suffix in IMAGE_SUFFIXES:
        raise SfumatoError(f"{first} is a single image: give the folder that holds the images")
    raise SfumatoError(
        f"{first} is not a kind of data that can be read: give a folder of images, a .npy, .npz, .tar, .parquet or "
        f".csv file, or one of {', '.join(builtin.NAMES)}"
    )


def _read_folder(root: Path, size: Size | None, kinds: Mapping[str, str]) -> Source:
    """A data set saved by `datasets`, otherwise the first of images, archives and tables that the folder holds."""
    name = root.resolve().name
    if saved := tables.saved(root):
        return open_table(saved, size, name, kinds)
    files = sorted(p for p in root.rglob("*") if p.is_file() and not hidden(p.relative_to(root)))
    if any(p.suffix.lower() in IMAGE_SUFFIXES for p in files):
        return open_pictures(root, files, size)
    if archives := [p for p in files if p.suffix.lower() == ".tar"]:
        return open_archives(archives, size, name)
    if table := [p for p in files if p.suffix.lower() in TABLE_SUFFIXES and p.suffix.lower() != ".csv"]:
        return open_table(table, size, name, kinds)
    if not files:
        raise SfumatoError(f"{root} is empty: it holds no images")
    array = next((p for p in files if p.suffix.lower() in (".npy", ".npz", ".csv")), None)
    hint = f"; for an array give its file, e.g. {array}" if array else ", no .tar archives, no .parquet tables"
    raise SfumatoError(f"{root} holds no images among its {len(files):,} files{hint}")


def _found(text: str) -> list[Path]:
    """The folder, file or files that a text names. Raises SfumatoError with a suggestion if there are none."""
    if not text.strip():
        raise SfumatoError(f"no data given: name a folder, a file or one of {', '.join(builtin.NAMES)}")
    path = place(text, "Data")
    if path.exists():
        return [path]
    if several := expand(text):
        return several
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near_set = difflib.get_close_matches(text.lower(), builtin.NAMES, n=1)
    near_file = difflib.get_close_matches(path.name, siblings, n=1)
    if near_set:
        raise SfumatoError(f"{text} does not exist: did you mean the built-in set {near_set[0]!r}?")
    if near_file:
        raise SfumatoError(f"{text} does not exist: did you mean {path.parent / near_file[0]}?")
    raise SfumatoError(f"{text} does not exist, and is not one of the built-in sets ({', '.join(builtin.NAMES)})")


def _from_object(obj: Any) -> Source:
    x, beside = arrays.pick(obj, "the dict") if isinstance(obj, Mapping) else (obj, {})
    if isinstance(x, list | tuple) and x and all(isinstance(item, Tensor) for item in x):
        if len({item.shape for item in x}) > 1:
            raise SfumatoError("the tensors in the list have different shapes: every sample must have the same")
        x = torch.stack(list(x))
    if x is None or isinstance(x, bytes) or callable(x):
        raise SfumatoError(f"a {type(obj).__name__} is not data: give an array, a tensor, a folder or a file")
    for name, values in beside.items():  # an error in the caller's dict, but only a note for a file
        if _has_axis(values) and _has_axis(x) and len(values) != len(x):
            raise SfumatoError(
                f"the condition {name!r} has {len(values):,} entries for {len(x):,} samples: give one per sample, or "
                "leave it out"
            )
    return _from_array(x, beside, "the array", "array")


def _has_axis(values: Any) -> bool:
    one = isinstance(values, str | bytes | Mapping) or getattr(values, "ndim", 1) == 0
    return hasattr(values, "__len__") and not one


def _is_pair(obj: Any) -> bool:
    """Whether obj is (x, labels): a tuple of two whose first is itself a data source."""
    return (
        isinstance(obj, tuple)
        and len(obj) == 2
        and (isinstance(obj[0], str | os.PathLike | Mapping | list) or getattr(obj[0], "ndim", 0) > 0)
    )


def _from_array(data: Any, beside: Mapping[str, Any], where: str, name: str) -> Source:
    """beside: further arrays by name, which become conditions."""
    x, kind, notes = _arranged(data, where)
    arrays.require_finite(x, where)
    label = next((beside[key] for key in arrays.LABEL_KEYS if beside.get(key) is not None), None)
    if label is not None and len(label) != len(x):
        raise SfumatoError(f"there are {len(label):,} labels for {len(x):,} samples: give exactly one per sample")
    found, unread = columns(beside, len(x))
    conditions = with_label(found, arrays.LABEL_KEYS)
    return Source(x, kind, name, conditions, notes=[Source.headline(x), *notes, *unread])


def _arranged(data: Any, where: str) -> tuple[Samples, str, list[str]]:
    if isinstance(data, np.memmap) and not data.flags.writeable and not fits(data.nbytes):  # as `read_npy` maps it
        rows = Mapped(data, where)
        note = f"{rows.nbytes / 2**30:.1f} GiB do not fit into memory: samples are read when needed."
        return rows, rows.kind, [*rows.notes, note]
    return arrays.arrange(arrays.to_tensor(data, where), where)


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
