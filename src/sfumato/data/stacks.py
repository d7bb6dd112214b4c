"""Files of one or more samples each (`file_format.Stack`): one file, several, or a folder of them -> a Source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError, counted
from ..files import require_plain
from ..machine import fits
from . import arrays, limits, metadata, sequences
from .column import Column, column
from .file_format import Scan, Stack, Stored, reading
from .images import together
from .kinds import CLASS_NAMES, with_label
from .labels import label_column
from .names import Asked, choose_split, class_names, listed, split_of
from .source import LABEL, Source

BY_FILE = 8  # of fewer files none is held out whole
OWN_LENGTH = 1 << 16  # numbers a channel of the longest recording that is not cut where recordings differ


def open_stacks(paths: Sequence[Path], form: Stack, name: str, asked: Asked, root: Path | None = None) -> Source:
    """The samples of all files, with the metadata files of their folder, or else its sub-folders as classes.

    root: the folder of the files.
    """
    where = str(root) if root is not None else together(paths)
    choose_split({}, asked.split, where, "file")
    if not form.named:
        Asked(None, asked.key).require_unused(where)
    if asked.tokens is not None or (asked.length is not None and not form.windows):
        asked.require_no_text(where)
    names = [path.name if root is None else path.relative_to(root).as_posix() for path in paths]
    scans = [_scanned(path, form, asked.key) for path in paths]
    length, cut = _length(scans, form, asked, where)
    x, counts, layout, whole = _loaded(paths, scans, form, asked, length)
    source = _source(x, form, name, names, counts, where, layout, whole)
    stored: Stored = {"ending": form.ending(paths[0]), **scans[0].stored}
    rows = np.repeat(np.arange(len(paths)), counts)
    conditions, notes = conditions_of_files(root, names)
    files = [f"{counted(len(paths), form.what)} of {counted(len(x), 'sample')}."] if len(x) != len(paths) else []
    return replace(
        source,
        conditions={each: found.take(rows) for each, found in conditions.items()},
        notes=[*source.notes, *files, *cut, *scans[0].notes, *notes],
        stored=stored,
    )


def conditions_of_files(root: Path | None, names: Sequence[str]) -> tuple[dict[str, Column], list[str]]:
    """(the conditions of each file, notes): the metadata files of their folder, or else its sub-folders as classes."""
    if root is None:
        return {}, []
    found = [path for path in sorted(root.rglob("metadata.*")) if path.is_file()]
    tables = [path for path in found if path.name.lower() in metadata.NAMES]
    beside = metadata.read(metadata.records(root, tables), names, range(len(names)))
    conditions, notes = with_label(beside.columns, CLASS_NAMES), beside.notes
    if LABEL not in conditions:
        folders = [tuple(part for part in name.split("/")[:-1] if split_of(part) is None) for name in names]
        classes, why = class_names(folders)
        notes += why
        if classes is not None:
            conditions = {LABEL: label_column(column(classes))} | conditions
    return conditions, notes


def _scanned(path: Path, form: Stack, key: str | None) -> Scan:
    """What a file claims to hold, where that is real numbers of no more bytes than it may take."""
    require_plain(path)
    with reading(path, form.what, form.extra):
        scan = form.scan(path, key)
    if scan.dtype.kind not in "biuf":
        raise SfumatoError(f"{path} must hold real numbers, but its values are {scan.dtype}")
    if not scan.nbytes:
        raise SfumatoError(f"{path} is empty: it holds samples of shape {scan.shape}")
    limits.require_file(path, scan.nbytes)
    return scan


def _length(scans: Sequence[Scan], form: Stack, asked: Asked, where: str) -> tuple[int | None, list[str]]:
    """(the length of a window, a note), None where whole files are samples, of several lengths up to `OWN_LENGTH`.

    Raises SfumatoError where files differ in anything else."""
    rates = {scan.stored["rate"] for scan in scans if "rate" in scan.stored}
    if len(rates) > 1:
        raise SfumatoError(
            f"{where} holds recordings at {listed(f'{rate:,} Hz' for rate in sorted(rates))}: bring them to one rate "
            "first, since nothing is resampled here"
        )
    kinds = {(scan.shape[:-1] if form.windows else scan.shape, str(scan.dtype)) for scan in scans}
    if len(kinds) > 1:
        shown = listed(f"{shape} {dtype}" for shape, dtype in sorted(kinds, key=str))
        raise SfumatoError(f"{where} holds samples of several shapes or types ({shown}): give files of one")
    ends = [scan.shape[-1] for scan in scans]
    if not form.windows or (asked.length is None and len(set(ends)) == 1):
        return None, []
    if asked.length is None and max(ends) <= OWN_LENGTH:
        return None, ["Each recording is a sequence of its own length (--length cuts all into windows of one)."]
    length = asked.length or min(ends)
    if length > max(ends):
        raise SfumatoError(
            f"{where} holds at most {max(ends):,} numbers a channel, fewer than {length:,}: lower --length"
        )
    lost = sum(end % length for end in ends)
    return length, [f"Cut into windows of {length:,} (--length); {lost:,} of {sum(ends):,} at the ends are left out."]


def _loaded(
    paths: Sequence[Path], scans: Sequence[Scan], form: Stack, asked: Asked, length: int | None
) -> tuple[Tensor, list[int], str, str]:
    """(samples (N, *shape), the number of each file; of sequences of several lengths their layout and, if they are
    whole numbers, their dtype)."""
    if not fits(sum(scan.nbytes for scan in scans)):
        raise SfumatoError(
            f"{together(paths)} does not fit into memory: save it as a .npy file, which is read from disk"
        )
    parts = []
    for path in paths:
        with reading(path, form.what, form.extra):
            part = form.load(path, asked.key)
            parts.append(part if length is None else _windows(part, length))
    counts = [len(part) for part in parts]
    if len({part.shape[1:] for part in parts}) > 1 or (form.windows and asked.layout and {*counts} == {1}):
        made = sequences.joined([torch.from_numpy(part[0]) for part in parts], together(paths), "CL")
        return made.x, counts, made.layout, made.whole
    return arrays.to_tensor(np.concatenate(parts), together(paths)), counts, "", ""


def _windows(x: np.ndarray, length: int) -> np.ndarray:
    """(n, C, T) -> (n T // length, C, length)."""
    count = x.shape[-1] // length
    cut = x[..., : count * length].reshape(*x.shape[:-1], count, length)
    return np.moveaxis(cut, -2, 1).reshape(-1, *x.shape[1:-1], length)


def _source(
    tensor: Tensor, form: Stack, name: str, names: Sequence[str], counts: Sequence[int], where: str, layout: str,
    whole: str,
) -> Source:  # fmt: skip
    """Held out are whole files, where there are enough; of fewer the last samples, where neighbours are alike."""
    missing = arrays.missing_share(tensor, where, layout)
    arrays.require_unfilled(tensor, where)
    kind = (
        "image"
        if tensor.ndim == 4 and tensor.dtype in arrays.IMAGE_DTYPES and tensor.shape[1] in (1, 3, 4)
        else "array"
    )
    several = len(tensor) > len(names)
    ids = [f"{file}:{i}" if several else file for file, n in zip(names, counts, strict=True) for i in range(n)]
    groups = [file for file, n in zip(names, counts, strict=True) for _ in range(n)] if len(names) >= BY_FILE else ids
    last = form.continuous and several and len(names) < BY_FILE
    units = [(len(tensor) - 1 - i) / len(tensor) for i in range(len(tensor))] if last else []
    headline = (
        sequences.headline(tensor, layout, whole or str(tensor.dtype).removeprefix("torch."))
        if layout
        else Source.headline(tensor)
    )
    return Source(
        tensor, kind, name, ids=ids, notes=[headline], groups=groups, units=units, missing=missing, layout=layout,
        whole=whole,
    )  # fmt: skip
