"""Data sets of Hugging Face's `datasets` in memory: their table of Arrow, with pictures that are files read into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SfumatoError, an
from ..files import first_line, reason, require_plain
from .folders import open_table
from .formats import Size
from .names import Asked, choose_split, split_of
from .source import Source
from .tables import TableFiles
from .text_files import open_column, text_column


def is_dataset(obj: Any) -> bool:
    """Whether an object is a data set of `datasets`: of one split, of several, or a stream."""
    return type(obj).__module__.partition(".")[0] == "datasets" and hasattr(obj, "with_format")


def open_dataset(obj: Any, size: Size | None, kinds: Mapping[str, str], asked: Asked) -> Source:
    """The source of a data set, read as a table in a file is. Raises SfumatoError for a stream, which has no end."""
    notes: list[str] = []
    if isinstance(obj, Mapping):
        if not obj:
            raise SfumatoError("the data set is empty: it has no splits")
        names = {name: split_of(name) or name for name in obj}
        split = choose_split(Counter(names.values()), asked.split, "the data set", "split")
        obj = next(obj[name] for name, known in names.items() if known == split.name)
        asked, notes = asked._replace(split=None), split.note
    if not hasattr(obj, "features") or not hasattr(obj, "save_to_disk"):
        raise SfumatoError(
            f"{an(type(obj).__name__)} is a stream without a known end: take a part of it into memory, "
            "datasets.Dataset.from_list(list(stream.take(10_000)))"
        )
    rows = _rows(obj)
    if not len(rows):
        raise SfumatoError("the data set is empty: it has no rows")
    found = of_table(rows, getattr(getattr(obj, "info", None), "dataset_name", None) or "dataset", size, kinds, asked)
    found.notes[1:1] = notes
    return found


def _rows(obj: Any) -> Any:
    """The rows of a data set as a table of pyarrow, with the names of its classes."""
    try:
        import pyarrow as pa

        table = obj.with_format("arrow")[:]
        if isinstance(table, pa.Table):
            return table.replace_schema_metadata(obj.features.arrow_schema.metadata)
        why = f"its rows are {an(type(table).__name__)}"
    except Exception as error:  # of code that is not `datasets`, or of columns that it cannot read
        why = first_line(error)
    what = an(type(obj).__name__)
    raise SfumatoError(f"{what} is no data set of `datasets` that can be read ({why}): give a dict of its columns")


def of_table(table: Any, name: str, size: Size | None, kinds: Mapping[str, str], asked: Asked) -> Source:
    """The source of a table of pyarrow whose columns are those of a data set."""
    files = TableFiles([], _with_pictures(table), "the data set")
    if (column := text_column(files, asked.key)) is not None:
        return open_column(files, name, column, asked._replace(key=None))
    asked.require_no_text("the data set")
    return open_table(files, size, name, kinds, asked)


def _with_pictures(table: Any) -> Any:
    """The table with the bytes of the files that its pictures are, {"bytes": None, "path": "cat.png"}."""
    import pyarrow as pa
    from pyarrow import types

    for i, kind in enumerate(table.schema.types):
        if not types.is_struct(kind) or {kind.field(j).name for j in range(kind.num_fields)} != {"bytes", "path"}:
            continue
        cells = table.column(i).to_pylist()
        if any(cell and cell["bytes"] is None and cell["path"] for cell in cells):
            read = [{**cell, "bytes": _read(cell)} if cell else None for cell in cells]
            table = table.set_column(i, table.schema.field(i), pa.array(read, kind))
    return table


def _read(cell: Mapping[str, Any]) -> bytes | None:
    """The bytes of a picture, from its file where the cell has none."""
    if cell["bytes"] is not None or not cell["path"]:
        found: bytes | None = cell["bytes"]
        return found
    path = Path(cell["path"])
    try:
        require_plain(path)
        return path.read_bytes()
    except OSError as error:
        raise SfumatoError(f"{path}, a picture of the data set, cannot be read: {reason(error)}") from None
