"""metadata.csv, .jsonl or .parquet in a folder of pictures, in the layout of Hugging Face's imagefolder.

The column file_name holds the path of a picture, relative to the metadata file; every other column holds one value per
picture. Sub-folders may have their own metadata files.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .. import schema
from ..errors import SfumatoError, counted
from ..files import first_line, reason
from .column import Column, Unread, cells, named
from .kinds import columns
from .names import choose_split, split_of
from .tables import SPLIT_NAMES, TableFiles

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
KEY = "file_name"
_SHOWN = 3  # most names listed in a note

Record = dict[str, Any]  # one row: value by column


class Beside(NamedTuple):
    """Columns with a value per picture, notes on them, and the metadata files that they come from."""

    columns: dict[str, Column]
    notes: list[str]
    files: list[Path]


class Records(NamedTuple):
    """The rows of metadata files by picture, a path relative to their root; the columns that are text; the files."""

    rows: dict[str, Record]
    text: set[str]
    files: list[Path]

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))


def records(root: Path, files: Sequence[Path]) -> Records:
    """The rows of the metadata files among `files`; those of the same picture are merged.

    Raises SfumatoError for a file that is not a table, has no file_name, or gives a picture two different values in a
    column.
    """
    found = Records({}, set(), _chosen(files))
    for path in found.files:
        for number, record in enumerate(_READERS[path.suffix.lower()](path), 1):
            _add(found.rows, path, number, record, path.parent.relative_to(root))
            found.text.update(record if path.suffix.lower() == ".csv" else ())
    return found


class Chosen(NamedTuple):
    """The pictures of one split, the column that names it (None without one), notes."""

    pictures: list[int]
    column: str | None
    notes: list[str]


def choose(found: Records, pictures: Sequence[str], asked: str | None, other: Collection[str], where: str) -> Chosen:
    """The pictures of one split, where a column names that of each; else all. other: columns of other kinds."""
    for name in found.names:
        if name.lower() in SPLIT_NAMES and name not in other:
            splits = [split_of(str(found.rows.get(picture, {}).get(name) or "")) for picture in pictures]
            if None not in splits:
                split = choose_split(Counter(splits), asked, where, "picture", f"the column {name!r}")
                return Chosen([i for i, each in enumerate(splits) if each == split.name], name, split.note)
    return Chosen(list(range(len(pictures))), None, [])


def read(found: Records, pictures: Sequence[str], kept: Sequence[int], left: str | None = None) -> Beside:
    """The columns of metadata files but for `left`, for the pictures (paths relative to their root) at `kept`."""
    rows, text, chosen = found
    if not rows:
        return Beside({}, [], chosen)
    own = [rows.get(pictures[i], {}) for i in kept]
    names = [name for name in found.names if name != left]
    raw = {name: [row.get(name) for row in own] for name in names}
    beside, notes = columns({name: _parsed(name, raw[name]) if name in text else raw[name] for name in names}, len(own))
    where = chosen[0].name if len(chosen) == 1 else f"{len(chosen)} metadata files"
    strangers = sorted(rows.keys() - set(pictures))
    if strangers:
        listed = ", ".join(strangers[:_SHOWN]) + (", ..." if len(strangers) > _SHOWN else "")
        notes.append(f"Pictures that do not exist have {counted(len(strangers), 'row')} of {where} ({listed}).")
    bare = sum(pictures[i] not in rows for i in kept)
    if bare:
        notes.append(f"{bare:,} of {len(own):,} pictures have no row in {where}: their values are missing.")
    return Beside(beside, notes, chosen)


def _chosen(files: Sequence[Path]) -> list[Path]:
    """One metadata file per folder, the first of `NAMES`."""
    found = [path for name in reversed(NAMES) for path in files if path.name.lower() == name]
    return sorted({path.parent: path for path in found}.values())


def _add(rows: dict[str, Record], path: Path, number: int, record: Record, folder: Path) -> None:
    """Merge one row into those of its picture."""
    name = record.pop(KEY, None)
    if not isinstance(name, str) or not name.strip():
        raise SfumatoError(f"{path} has no {KEY} in row {number}")
    row = rows.setdefault((PurePosixPath(folder.as_posix()) / name.strip().replace("\\", "/")).as_posix(), {})
    for column, now in record.items():
        before = row.get(column)
        if before in (None, ""):
            row[column] = now
        elif now not in (None, "") and now != before:
            two = f"{before!s:.40} and {now!s:.40}"
            raise SfumatoError(f"{path} gives two values of {column} for {name}, {two}: keep one of them")


def _parsed(name: str, values: list[Any]) -> Any:
    """Text cells as numbers if all of them are numbers."""
    if any(isinstance(cell, list | dict) for cell in values):
        return values
    words = [None if cell is None else str(cell) for cell in values]
    try:
        with named(name):
            return cells(words)
    except Unread:  # numbers of more digits than a number has
        return words


def _require_key(path: Path, names: Iterable[str]) -> None:
    if KEY not in names:
        raise SfumatoError(
            f"{path} has no column {KEY!r}, the picture of each row; it has {', '.join(list(names)[:8]) or 'none'}: "
            "name it so, or give the file another name to leave it out"
        )


def _csv(path: Path) -> list[Record]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            lines = [line for line in csv.reader(file, delimiter=max(",;\t", key=header.count), strict=True) if line]
    except OSError as error:
        raise SfumatoError(f"{path} cannot be read: {reason(error)}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise SfumatoError(f"{path} is no table of text (.csv): {first_line(error)}") from None
    names = [name.strip() for name in lines[0]] if lines else []
    _require_key(path, names)
    if len(set(names)) < len(names):
        raise SfumatoError(f"{path} has two columns of one name: {', '.join(names)}")
    for number, line in enumerate(lines[1:], 1):
        if len(line) > len(names):
            raise SfumatoError(f"{path} has {len(line)} cells in row {number}, and {len(names)} columns")
    return [dict(zip(names, line, strict=False)) for line in lines[1:]]


def _jsonl(path: Path) -> list[Record]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # `splitlines` ends lines at U+2028, too
    except (OSError, UnicodeDecodeError) as error:
        why = reason(error) if isinstance(error, OSError) else "it is no text"
        raise SfumatoError(f"{path} cannot be read: {why}") from None
    return [_record(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _record(path: Path, number: int, line: str) -> Record:
    try:
        record = schema.json_of(line, f"line {number}")
    except SfumatoError as error:
        raise SfumatoError(f"{path} is no table: {error}") from None
    if not isinstance(record, dict):
        raise SfumatoError(f"{path} is no table: line {number} is no JSON object")
    return record


def _parquet(path: Path) -> list[Record]:
    table = TableFiles([path])
    _require_key(path, table.schema.names)
    return [row for i in range(len(table.counts)) for row in table.group(i, table.schema.names).to_pylist()]


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
