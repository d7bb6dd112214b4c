"""The kind of condition of each column: set by the user, or guessed from the values.

    whole numbers of few values -> label     numbers (N,) -> scalar     (N, d) -> vector     (N, C, *spatial) -> field
    strings that repeat -> label             lists of strings -> multilabel    strings called caption -> text

"Few" means at most max(2, sqrt(N)) distinct values; a column called label or class always holds classes, and one called
caption or prompt always texts. Columns that cannot be read, or never change, are left out with a note.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..conditions import KINDS
from ..errors import SfumatoError, counted, suggest
from ..nets.conditions import FORWARD_ARGUMENTS
from ..registry import bare
from . import arrays, limits
from .column import BOOLS, Column, Unread, cells, column, named
from .labels import label_column
from .names import listed
from .source import LABEL, Source

IGNORE = "ignore"
CLASS_NAMES = ("label", "labels", "class", "cls")  # columns of these names hold classes, however many
TEXT = "text"
TEXT_NAMES = ("caption", "captions", "prompt", "prompts", "text", "txt")  # columns of free text


def few(count: int) -> int:
    """The largest number of distinct values that count as classes of `count` samples: max(2, sqrt(count))."""
    return max(2, math.isqrt(count))


def columns(raw: Mapping[str, Any], count: int) -> tuple[dict[str, Column], list[str]]:
    """(arrays with one value for each of `count` samples as columns, a note on those that cannot be read)."""
    found: dict[str, Column] = {}
    unread: dict[str, str] = {}
    for name, values in raw.items():
        if values is None:
            continue
        try:
            with named(str(name)):
                found[str(name)] = _one_each(values, count)
        except Unread as why:
            unread[str(name)] = str(why)
    return found, not_used(unread)


def _one_each(values: Any, count: int) -> Column:
    if isinstance(values, Column):
        return values
    axes = getattr(values, "ndim", 1)  # a list has one
    if not hasattr(values, "__len__") or isinstance(values, str | bytes | Mapping) or axes == 0:
        raise Unread("it is no array")
    if len(values) != count:
        raise Unread(f"it has {len(values):,} entries, not {count:,}")
    limits.require_real(values, "it")
    return column(values)


def not_used(unread: Mapping[str, str]) -> list[str]:
    """A note on columns that are left out, with reasons; [] if there are none."""
    if not unread:
        return []
    named = [f"{name} ({why})" for name, why in list(unread.items())[:8]]
    more = f" and {len(unread) - 8} more" if len(unread) > 8 else ""
    return [f"Not used as conditions: {', '.join(named)}{more}."]


def with_label(found: Mapping[str, Column], names: Sequence[str]) -> dict[str, Column]:
    """The first column of these names that can hold classes becomes the condition "label"; the rest follow."""
    for name in names:
        if name in found:
            try:
                label = label_column(replace(found[name], names=None))  # of two, 0 and 1 keep their numbers
            except SfumatoError:
                continue
            return {LABEL: label, **{other: each for other, each in found.items() if other not in (name, LABEL)}}
    return dict(found)


def with_kinds(source: Source, kinds: Mapping[str, str], known: bool = False) -> Source:
    """The source with a kind for each condition. kinds: name -> kind, or "ignore"; other columns are guessed.

    known: the kinds come from a model, so the data may lack some names, and columns may be constant.
    Raises SfumatoError for a name that the data lack, an unknown kind, and values that do not fit the kind.
    """
    kinds = {name: kind for name, kind in kinds.items() if not known or name in source.conditions}
    _check(kinds, source.conditions)
    kept: dict[str, Column] = {}
    unread: dict[str, str] = {}
    notes: list[str] = []
    for name, found in source.conditions.items():
        if kinds.get(name) == IGNORE:
            continue
        try:
            kept[name] = _of_kind(name, found, kinds.get(name), source.x.ndim, known and name in kinds)
        except Unread as why:
            if name == LABEL and found.names and len(found.given):
                notes.append(f"All samples are of one class ({_shown(found)}), so there is no class condition.")
            else:
                unread[name] = str(why)
    if kept == source.conditions:
        return source
    left = [name for name in source.conditions if kinds.get(name) == IGNORE]
    asked = [f"Left out, as asked: {listed(left)}."] if left else []
    notes += [*asked, *_questioned(kept), *_described(kept), *not_used(unread)]
    return replace(source, conditions=kept, notes=[*source.notes, *notes])


def _check(kinds: Mapping[str, str], known: Iterable[str]) -> None:
    for name, kind in kinds.items():
        if bare(kind) not in (*KINDS, IGNORE):
            raise SfumatoError(
                f"the condition {name!r} cannot be of the kind {kind!r}: {suggest(kind, (*KINDS, IGNORE))}"
            )
        if name not in known:
            hint = suggest(name, known) if known else "it has none."
            raise SfumatoError(f"there is no condition {name!r} in the data: {hint}")


def _of_kind(name: str, found: Column, kind: str | None, axes: int, constant_ok: bool) -> Column:
    """The column converted to its kind, guessed if None. Raises `Unread` if useless. axes: those of the samples."""
    if found.kind and found.kind == (kind or found.kind):
        return found
    if name in FORWARD_ARGUMENTS:
        raise Unread("a condition cannot have this name: rename it")
    if not len(found.given):
        raise Unread("all its values are missing")
    chosen = kind or _guess(name, found)
    try:
        made = _converted(found, chosen, axes)
    except SfumatoError as why:
        if kind is None and chosen == "field":
            raise Unread(str(why)) from None
        raise SfumatoError(f"the condition {name!r} cannot be a {chosen}: {why}") from None
    if not constant_ok and _constant(made):
        raise Unread(f"its value is always {_shown(made)}")
    return replace(made, kind=chosen)


def _guess(name: str, found: Column) -> str:
    """The kind that a column seems to be. Raises `Unread` for free text and for numbers that count the samples."""
    values, form = found.given, found.form
    if found.names is not None:
        return "label"
    if form != "numbers" and name.lower() in TEXT_NAMES:
        return TEXT
    if form == "lists":
        return "multilabel"
    if form == "strings":
        distinct = len(set(values.tolist()))
        if name not in CLASS_NAMES and distinct > few(len(values)):
            raise Unread(f"text, {distinct:,} different: --condition {name}:text reads it")
        return "label"
    if values.ndim > 1:
        return "multilabel" if values.dtype == bool else "vector" if values.ndim == 2 else "field"
    if name in CLASS_NAMES and bool((values == np.round(values)).all()):
        return "label"
    if values.dtype.kind == "f":
        return "scalar"
    if len(np.unique(values)) <= few(len(values)):
        return "label"
    if len(found) == len(values) and bool((np.diff(values) == 1).all()):
        raise Unread("it counts the samples")
    return "scalar"


def _converted(found: Column, kind: str, axes: int) -> Column:
    """The values in the form of a condition of this kind; axes: those of the samples."""
    if kind == "label":
        return label_column(found)
    if bare(kind) == TEXT:
        return _texts(found)
    if kind == "multilabel" and found.form == "numbers" and found.values.ndim != 2:
        raise SfumatoError("each sample needs a list of names, names separated by commas, or a row of 0 and 1")
    if kind not in ("scalar", "vector", "field"):  # a user's kind reads its own column
        return found
    found = _as_numbers(found)
    if kind == "field":
        return _field(found, axes)
    if kind == "vector":
        return replace(found, values=found.values.reshape(len(found), -1))
    if found.values.ndim != 1:
        raise SfumatoError(f"it has {'x'.join(map(str, found.values.shape[1:]))} numbers per sample, not one")
    return found


def _texts(found: Column) -> Column:
    """A column of strings: class names are spelt, and of several captions of a sample the first is taken."""
    spelt = Column(found.spelt, found.present)
    if spelt.values.dtype == object and spelt.form == "lists":
        cells = [cell[0] if here and cell else None for cell, here in zip(spelt.values, spelt.present, strict=True)]
        spelt = column(cells)
    if spelt.values.dtype != object:
        raise SfumatoError(f"it holds no text, but values such as {spelt.given[0]!r}")
    return spelt


def _field(found: Column, axes: int) -> Column:
    """A field with channels first, and as many spatial axes as the samples."""
    values = found.values
    if axes == 4 and values.dtype in (np.uint8, np.uint16):
        values = arrays.arrange(torch.from_numpy(values), "a field")[0].numpy()
    if values.ndim == axes - 1 and values.ndim > 1:
        values = values[:, None]
    if axes < 3 or values.ndim != axes:
        spatial = f"{axes - 2} spatial axes" if axes > 2 else "no spatial axes"
        raise SfumatoError(f"its values have shape {found.values.shape[1:]}, but the samples have {spatial}")
    return replace(found, values=values)


def _as_numbers(found: Column) -> Column:
    """A column of numbers, parsed from strings or class names if need be."""
    if found.names is None and found.form == "numbers":
        return found
    spelt = Column(found.spelt, found.present)
    if found.names == BOOLS:
        return replace(found, names=None)
    if spelt.form == "strings":
        numbers = cells([str(cell) if here else None for cell, here in zip(spelt.values, found.present, strict=True)])
        if numbers.form == "numbers":
            return numbers
    raise SfumatoError(f"it holds no numbers, but values such as {spelt.given[0]!r}")


def _constant(made: Column) -> bool:
    values = made.given
    if values.dtype == object:
        return len(set(values.tolist())) == 1
    return bool((values == values[:1]).all())


def _shown(made: Column) -> str:
    text = str(made.names[int(made.given[0])] if made.names is not None else made.given[0])
    return text if len(text) <= 40 else f"{text[:40]} ..."


def _questioned(kept: Mapping[str, Column]) -> list[str]:
    """A note if there are almost as many classes as samples."""
    notes = []
    for name, found in kept.items():
        classes, count = len(found.names or ()), len(found)
        if found.kind == "label" and classes > 1 and count >= 20 and 2 * classes > count:
            of = "" if name == LABEL else f" of {name!r}"
            notes.append(f"There are {classes:,} classes{of} for {count:,} samples: are the labels classes?")
    return notes


def _described(kept: Mapping[str, Column]) -> list[str]:
    """Notes on the kinds, unless there is only a label, and on missing values."""
    notes = []
    if set(kept) - {LABEL}:
        found = ", ".join(f"{name} ({_worded(each)})" for name, each in kept.items())
        notes.append(f"Conditions: {found}; --condition NAME:ignore leaves one out, NAME:KIND sets its kind.")
    notes += [_counted(name, found) for name, found in kept.items() if bare(found.kind) == TEXT]
    missing = [
        f"{found.missing:,} of {name}" for name, found in kept.items() if found.missing and bare(found.kind) != TEXT
    ]
    if missing:
        notes.append(f"Missing values: {', '.join(missing)}; these samples are used without them.")
    return notes


def _counted(name: str, found: Column) -> str:
    """How many captions there are, and their length."""
    length = sum(len(caption.split()) for caption in found.given) / len(found.given)
    what = (
        counted(len(found.given), "caption") if name == "caption" else f"{counted(len(found.given), 'text')} of {name}"
    )
    return f"{what} found, {found.missing:,} missing, mean {length:.0f} words."


def _worded(found: Column) -> str:
    """A column in a few words."""
    if found.kind == "label":
        return f"label, {counted(len(found.names or ()), 'class', 'classes')}"
    if found.kind in ("vector", "field"):
        return f"{found.kind}, {' x '.join(map(str, found.values.shape[1:]))}"
    return found.kind
