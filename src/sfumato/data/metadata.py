"""metadata.csv, .jsonl or .parquet in a folder of pictures, as Hugging Face's imagefolder has it.

A column file_name holds the path of a picture, from the folder that the file is in; each other column is one value a
picture. Folders within may have files of their own.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from sys import intern
from typing import Any, NamedTuple

from ..errors import SfumatoError
from ..files import reason
from . import tables
from .column import Column, cells, named
from .settle import columns

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "metadata.json")
KEY = "file_name"
_SHOWN = 3  # names that a note lists

Cells = dict[str, list[Any]]  # by column


class Beside(NamedTuple):
    """Columns of the pictures, notes on them, and (file, reason) of metadata files that are not used."""

    columns: dict[str, Column]
    notes: list[str]
    unused: list[tuple[str, str]]


def read(root: Path, files: Sequence[Path], pictures: Sequence[str], kept: Sequence[int]) -> Beside:
    """What metadata files among `files` say of the pictures (all by path from root) that are kept.

    Rows of one picture are joined. Raises SfumatoError for a file that is no table, has no file_name, or says two
    things of one picture.
    """
    chosen, unused = _chosen(root, files)
    table: Cells = {}
    rows: dict[str, int] = {}
    text: set[str] = set()
    for path in chosen:
        found = _READERS[path.suffix.lower()](path)
        if KEY not in found and path.suffix.lower() == ".json":  # which may be about something else
            unused.append((path.relative_to(root).as_posix(), f"no list of objects, each with {KEY!r}"))
            continue
        _add(table, rows, path, found, path.parent.relative_to(root))
        text.update(found if path.suffix.lower() == ".csv" else ())
    if not rows:
        return Beside({}, [], unused)
    at = [rows.get(pictures[i]) for i in kept]
    raw: dict[str, Any] = {name: [None if row is None else column[row] for row in at] for name, column in table.items()}
    for name in text & raw.keys():
        if not any(isinstance(cell, list | dict) for cell in raw[name]):
            with named(name):
                raw[name] = cells([None if cell is None else str(cell) for cell in raw[name]])
    beside, notes = columns(raw, len(at))
    where = chosen[0].name if len(chosen) == 1 else f"{len(chosen)} metadata files"
    strangers = sorted(rows.keys() - set(pictures))
    if strangers:
        more = ", ..." if len(strangers) > _SHOWN else ""
        listed = ", ".join(strangers[:_SHOWN]) + more
        notes.append(f"{len(strangers):,} rows of {where} name no picture that is here ({listed}).")
    bare = sum(row is None for row in at)
    if bare:
        notes.append(f"{bare:,} of {len(at):,} pictures have no row in {where}: what it says is missing for them.")
    return Beside(beside, notes, unused)


def _chosen(root: Path, files: Sequence[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """One metadata file a folder, the first of `NAMES`; and the others."""
    here: dict[Path, list[Path]] = {}
    for path in files:
        if path.name.lower() in NAMES:
            here.setdefault(path.parent, []).append(path)
    chosen, unused = [], []
    for _, found in sorted(here.items()):
        first, *rest = sorted(found, key=lambda path: NAMES.index(path.name.lower()))
        chosen.append(first)
        unused += [(path.relative_to(root).as_posix(), f"{first.name} is used instead") for path in rest]
    return chosen, unused


def _add(table: Cells, rows: dict[str, int], path: Path, found: Cells, folder: Path) -> None:
    """The rows of a file under those of others; columns that either lacks are empty there."""
    if KEY not in found:
        raise SfumatoError(
            f"{path} has no column {KEY!r}, which says whose each row is; it has "
            f"{', '.join(list(found)[:8]) or 'none'}: name it so, or give the file another name to leave it out"
        )
    names, before = found.pop(KEY), max(map(len, table.values()), default=len(rows))
    count = len(names)
    for name in found:
        table.setdefault(name, [None] * before)
    for name, column in table.items():
        column += found.get(name, [None] * count)
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise SfumatoError(f"{path} has no {KEY} in row {i + 1}")
        key = (PurePosixPath(folder.as_posix()) / name.strip().replace("\\", "/")).as_posix()
        first = rows.setdefault(key, before + i)
        for column in table.values() if first != before + i else ():
            was, now = column[first], column[before + i]
            column[first] = now if was in (None, "") else was
            if was != now and was not in (None, "") and now not in (None, ""):
                raise SfumatoError(f"{path} says two things of {name}, {was} and {now}: keep one of them")


def _csv(path: Path) -> Cells:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            lines = [line for line in csv.reader(file, delimiter=max(",;\t", key=header.count), strict=True) if line]
    except OSError as error:
        raise SfumatoError(f"{path} cannot be read: {reason(error)}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise SfumatoError(f"{path} is no table of text (.csv): {str(error).splitlines()[0]}") from None
    names = [name.strip() for name in lines[0]] if lines else []
    if len(set(names)) < len(names):
        raise SfumatoError(f"{path} has two columns of one name: {', '.join(names)}")
    found: Cells = {name: [] for name in names}
    for number, line in enumerate(lines[1:], 1):
        if len(line) > len(names):
            raise SfumatoError(f"{path} has {len(line)} cells in row {number}, and {len(names)} columns")
        for name, cell in zip_longest(names, line, fillvalue=""):
            found[name].append(intern(cell))
    return found


def _jsonl(path: Path) -> Cells:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is no text"
        raise SfumatoError(f"{path} cannot be read: {why}") from None
    return _records(path, [(f"line {i}", line) for i, line in enumerate(lines, 1) if line.strip()])


def _json(path: Path) -> Cells:
    """A list of objects, as metadata.json often is; of anything else nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    listed = isinstance(found, list) and all(isinstance(record, dict) for record in found)
    return _records(path, [(f"entry {i}", record) for i, record in enumerate(found, 1)]) if listed else {}


def _records(path: Path, given: Sequence[tuple[str, Any]]) -> Cells:
    found: Cells = {}
    for count, (place, record) in enumerate(given):
        try:
            record = json.loads(record) if isinstance(record, str) else record
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise SfumatoError(f"{path} is no table: {place} is no JSON object")
        for name, cell in record.items():
            found.setdefault(name, [None] * count).append(cell)
        for column in found.values():
            column += [None] * (count + 1 - len(column))
    return found


def _parquet(path: Path) -> Cells:
    table = tables.Table([path])
    return {name: table.column(name) for name in table.schema.names}


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
