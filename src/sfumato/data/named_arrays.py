"""Which of several named arrays (.npz files, dicts) are the samples, which the labels, and which belong to a split."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..errors import SfumatoError
from .arrays import CLASSES
from .names import LABEL_NAMES, SAMPLE_NAMES, Asked, Split, array_name, choose_split, listed

LABEL_KEYS = ("y", "labels", "label", "target", "targets")  # arrays of these names hold labels, if they can


class Picked(NamedTuple):
    """The samples among several arrays, the name of theirs, the arrays beside them by name, and notes."""

    x: Any
    name: str
    beside: dict[str, Any]
    notes: list[str]


def pick(arrays: Mapping[str, Any], where: str, asked: Asked) -> Picked:
    """The samples: the array that `asked.key` names, else the one whose name says so, else the largest.

    Of arrays named after splits (x_train, test_labels) those of one split are read, without its name: its labels are
    then "y" or "labels". Raises SfumatoError, with the arrays, where they leave it open.
    """
    if not any(map(_has_rows, arrays.values())):
        raise SfumatoError(f"{where} has no array with one entry a sample: it holds {_shapes(arrays)}")
    named = {key: array_name(str(key)) for key in arrays}
    keys = [key for key in arrays if asked.key in (None, key)]
    if not keys and asked.key is not None:
        keys = [key for key in arrays if named[key][1].lower() == asked.key.lower()]
        if not keys:
            raise SfumatoError(f"{where} has no array {asked.key!r}: it holds {_shapes(arrays)}")
    split = _split({key: arrays[key] for key in keys}, named, where, asked)
    own = [key for key in keys if named[key][0] == split.name]
    chosen = own[0] if len(own) == 1 and asked.key else _samples(arrays, {key: named[key][1] for key in own}, where)
    rest, keys_of = dict[str, Any](), dict[str, str]()
    twins, unread = list[str](), list[str]()
    for key, (of, name) in sorted(named.items(), key=lambda item: item[1][0] != split.name):  # its own first
        if key != chosen and _same(arrays[key], arrays[chosen]):
            twins.append(repr(key))
        elif key != chosen and (of in (None, split.name) or (split.name is None and not _is_samples(arrays[key]))):
            short = name if of == split.name else str(key)
            rest.setdefault(short, arrays[key])
            keys_of.setdefault(short, str(key))
        elif key != chosen and split.name is None:
            unread.append(f"{key} {tuple(arrays[key].shape)}")
    label = _labels(rest, len(arrays[chosen]) if _has_rows(arrays[chosen]) else 0)
    if label is not None and label.startswith("arr_"):
        rest["label"] = rest.pop(label)
    notes = [*split.note, _decided(chosen, None if label is None else keys_of[label])] if len(arrays) > 1 else []
    if twins:
        notes.append(f"{listed(twins)} holds the same numbers and is left out.")
    if unread:
        notes.append(f"Left out, as its name says of another split: {listed(unread)}.")
    return Picked(arrays[chosen], str(chosen), rest, notes)


def _split(arrays: Mapping[str, Any], named: Mapping[str, tuple[str | None, str]], where: str, asked: Asked) -> Split:
    """The split to read; none where samples have a name without one."""
    could = [key for key, value in arrays.items() if _is_samples(value)]
    plain = any(named[key][0] is None and named[key][1].lower() in SAMPLE_NAMES for key in could)
    found = [key for key in could if named[key][0] and named[key][1].lower() not in LABEL_NAMES]
    if plain and asked.split is None:
        found = []
    counts = Counter[str | None]()
    for key in found:
        counts[named[key][0]] += len(arrays[key])
    return choose_split(counts, asked.split, where, "sample")


def _samples(arrays: Mapping[str, Any], rest: Mapping[str, str], where: str) -> str:
    """The key of the samples among those in `rest`, key -> name without split."""
    could = [key for key in rest if _is_samples(arrays[key])]
    small = [key for key in rest if key not in could and _has_rows(arrays[key])]
    for name in SAMPLE_NAMES:
        for key in [*could, *small]:
            label = name in LABEL_NAMES and not getattr(arrays[key], "ndim", 1) > 2
            if rest[key].lower() == name and not label:
                return key
    free = [key for key in could if rest[key].lower() not in LABEL_NAMES]
    sizes = sorted(((math.prod(arrays[key].shape), key) for key in free), key=lambda pair: pair[0])
    if not sizes and len(rest) == len(small) == 1 and rest[small[0]].lower() not in LABEL_NAMES:
        return small[0]
    if not sizes or (len(sizes) > 1 and sizes[-1][0] == sizes[-2][0]):
        several = "several arrays that could be samples" if sizes else "no array that is samples by its name and shape"
        raise SfumatoError(f"{where} holds {several}: name one with --key (in Python key=...), of {_shapes(arrays)}")
    return sizes[-1][1]


def _has_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _is_samples(value: Any) -> bool:
    """Whether an array may be samples by its shape and dtype: numbers, of two axes or more."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
        return False
    return isinstance(value, np.ndarray | Tensor) and value.ndim > 1 and value.shape[1:] != (1,)


def _same(one: Any, other: Any) -> bool:
    """Whether two arrays hold the same numbers in different shapes, as images and data of scikit-learn's digits do."""
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)) or one.shape == other.shape:
        return False
    unread = not any(one.strides) or not any(other.strides)  # their shapes stand for values that were not unpacked
    return not unread and one.size == other.size and bool((one.ravel() == other.ravel()).all())


def _labels(beside: Mapping[str, Any], count: int) -> str | None:
    """The array of labels: by its name, else the only whole numbers in an array without a name (arr_1)."""
    for key in label_keys(beside):
        if "float" not in str(getattr(beside[key], "dtype", "")):
            return key
    whole = {key: np.asarray(value) for key, value in beside.items() if re.fullmatch(r"arr_\d+", key)}
    free = [key for key, v in whole.items() if v.dtype.kind in "iu" and v.shape in ((count,), (count, 1))]
    return free[0] if len(free) == 1 else None


def label_keys(names: Iterable[str]) -> list[str]:
    """Those of the names that labels have, the likeliest first."""
    return [key for known in LABEL_KEYS for key in names if key.lower() == known]


def spelt(beside: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays with names of classes in the place of their numbers, -1 for none, where a file holds these names too."""
    names, numbers = beside.get(CLASSES), beside.get("labels")
    if not (isinstance(names, np.ndarray) and names.dtype.kind == "U" and names.ndim == 1 and len(names)):
        return dict(beside)
    if not (isinstance(numbers, np.ndarray) and numbers.dtype.kind in "iu" and numbers.ndim == 1):
        return dict(beside)
    if numbers.size and not -1 <= numbers.min() <= numbers.max() < len(names):
        return dict(beside)
    return {name: each for name, each in beside.items() if name != CLASSES} | {"labels": np.append(names, "")[numbers]}


def _decided(samples: str, label: str | None) -> str:
    """A note on the arrays that were chosen."""
    if label is None:
        return f"The samples are {samples!r} (--key names another array)."
    return (
        f"The samples are {samples!r}, the labels {label!r} (--key names other samples, --condition label:ignore "
        "leaves the labels out)."
    )


def _shapes(arrays: Mapping[str, Any]) -> str:
    shapes = {key: f" {tuple(value.shape)}" if getattr(value, "ndim", 0) else "" for key, value in arrays.items()}
    return listed((f"{key}{shape}" for key, shape in shapes.items()), 12) or "nothing"
