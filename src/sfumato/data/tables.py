"""Tables in Parquet files, or as Hugging Face's `datasets` saves them (Arrow files): which columns are what, and cells.

One column of encoded pictures makes a set of pictures; else columns of numbers make vectors (N, D), or one column of
lists of numbers the samples. A column named label, or one that its writer calls a class, holds the labels. Rows are
read by row group, the unit that such a file is read in.
"""

from __future__ import annotations

import io
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from PIL import Image

from ..errors import SfumatoError
from . import cache
from .items import Items

LABEL_NAMES = ("label", "labels", "class", "cls", "category", "target", "y", "fine_label", "coarse_label")
PICTURE_NAMES = ("image", "img", "picture", "photo", "jpg", "png", "jpeg", "webp")
LIST_NAMES = ("x", "data", "values", "features")
_KEPT = 6  # row groups in memory: those of a window of the order, and of the next
_SHOWN = 12  # columns that an error names


def _pyarrow(where: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise SfumatoError(
            f"{where} is read by pyarrow, which is not installed: pip install 'sfumato[parquet]'"
        ) from None
    return pyarrow


class Columns(NamedTuple):
    """What the columns are for: of `pictures` and `numbers` one is given; names: those of the classes, if known;
    beside: the others."""

    pictures: str | None
    numbers: list[str]
    label: str | None
    names: list[str] | None
    beside: list[str]


@final
class Table:
    """Row groups of some files of one schema. Any thread may read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        _pyarrow(str(paths[0]))
        self.paths = list(paths)
        self.where = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths):,} files)"
        self._files = [_opened(path) for path in self.paths]
        self._groups = [(file, i) for file in self._files for i in range(file.groups)]
        self.schema = self._files[0].schema
        for path, file in zip(self.paths, self._files, strict=True):
            if file.schema.names != self.schema.names or file.schema.types != self.schema.types:
                raise SfumatoError(f"{path} has other columns than {self.paths[0]}: give files of one table")
        self.counts = [file.rows(i) for file, i in self._groups]
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._kept: OrderedDict[tuple[int, tuple[str, ...]], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def key(self) -> Any:
        return [[str(path.resolve()), *cache.stamp(path)] for path in self.paths]

    def group(self, number: int, columns: Sequence[str]) -> Any:
        """A row group's columns as a pyarrow table; the last few stay in memory."""
        name = (number, tuple(columns))
        with self._lock:  # a file is read by one thread at a time
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
            file, i = self._groups[number]
            try:
                table = file.read(i, list(columns))
            except Exception as error:  # pyarrow has many kinds
                raise SfumatoError(f"{self.where} is damaged: {str(error).splitlines()[0]}") from None
            self._kept[name] = table
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return table

    def group_of(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def column(self, name: str) -> list[Any]:
        """All cells of one column, as Python's values."""
        return [cell for i in range(len(self.counts)) for cell in self.group(i, [name]).column(0).to_pylist()]


class _Parquet:
    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as parquet

        self._file = parquet.ParquetFile(path, memory_map=True)
        self.schema, self.groups = self._file.schema_arrow, self._file.num_row_groups

    def rows(self, group: int) -> int:
        return self._file.metadata.row_group(group).num_rows

    def read(self, group: int, columns: list[str]) -> Any:
        return self._file.read_row_group(group, columns=columns, use_threads=False)


class _Arrow:
    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        # batches are windows on the mapped file
        try:
            stream = pa.ipc.open_stream(pa.memory_map(str(path)))
            self.schema, self._batches = stream.schema, list(stream)
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(pa.memory_map(str(path)))
            self.schema, self._batches = file.schema, [file.get_batch(i) for i in range(file.num_record_batches)]
        self.groups = len(self._batches)

    def rows(self, group: int) -> int:
        return self._batches[group].num_rows

    def read(self, group: int, columns: list[str]) -> Any:
        import pyarrow as pa

        return pa.Table.from_batches([self._batches[group].select(columns)])


def _opened(path: Path) -> _Parquet | _Arrow:
    try:
        return _Parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _Arrow(path)
    except Exception as error:  # pyarrow has many kinds
        lines = str(error).splitlines()
        raise SfumatoError(f"{path} cannot be read as a table: {lines[0] if lines else type(error).__name__}") from None


def saved(folder: Path) -> list[Path]:
    """The Arrow files of a data set that `datasets` saved in this folder; [] where it is none."""
    state = folder / "state.json"
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in folder.iterdir() if (p / "state.json").is_file())
        raise SfumatoError(
            f"{folder} holds the splits {', '.join(splits)}: give one, e.g. {folder / (splits or ['train'])[0]}"
        )
    if not state.is_file():
        return []
    try:
        names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise SfumatoError(f"{state} is damaged: save the data set again") from None
    return [folder / name for name in names]


def columns(table: Table) -> Columns:
    """What each column is for; SfumatoError, with the columns, where none can be learned from."""
    features = _features(table.schema)
    kinds = {field.name: field.type for field in table.schema}
    called = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    label = next((name for name in [*called, *LABEL_NAMES] if name in kinds and _can_be_label(kinds[name])), None)
    names = features.get(label, {}).get("names") if label else None
    rest = [name for name in kinds if name != label]
    encoded = [name for name in rest if _holds_bytes(kinds[name]) and _is_picture(table, name)]
    lists = [name for name in rest if depth(kinds[name]) > 0 and is_number(leaf(kinds[name]))]
    single = [name for name in rest if is_number(kinds[name]) and not name.startswith("__index_level")]
    pictures = _first(encoded, PICTURE_NAMES)
    chosen = [] if pictures else [found] if (found := _first(lists, LIST_NAMES)) else single
    if not pictures and not chosen:
        shown = [f"{name} ({kind})" for name, kind in list(kinds.items())[:_SHOWN]]
        more = f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else ""
        raise SfumatoError(
            f"{table.where} has no column to learn from: pictures (encoded bytes), numbers or lists of numbers; it has "
            f"{', '.join(shown)}{more}"
        )
    used = {pictures, label, *chosen}
    return Columns(pictures, chosen, label, names, [name for name in kinds if name not in used])


def _first(names: list[str], liked: Sequence[str]) -> str | None:
    return next((name for name in liked if name in names), names[0] if names else None)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` says of the columns in the schema's metadata."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: feature for name, feature in found.items() if isinstance(feature, dict)}


def is_number(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def is_string(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)


def _can_be_label(kind: Any) -> bool:
    import pyarrow.types as types

    return is_string(kind) or types.is_integer(kind) or types.is_boolean(kind)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _storage(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)


def depth(kind: Any) -> int:
    import pyarrow.types as types

    kind = _storage(kind)
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return 1 + depth(kind.value_type) if is_list else 0


def leaf(kind: Any) -> Any:
    kind = _storage(kind)
    return leaf(kind.value_type) if depth(kind) else kind


def _bytes(cell: Any) -> bytes | None:
    return cell.get("bytes") if isinstance(cell, dict) else cell


def _is_picture(table: Table, name: str) -> bool:
    """Whether the first cells of a column start as pictures do."""
    for number in range(len(table.counts)):
        for cell in table.group(number, [name]).column(0).slice(0, 8).to_pylist():
            packed = _bytes(cell)
            if packed:
                try:
                    with Image.open(io.BytesIO(packed)):
                        return True
                except Exception:  # Pillow's decoders raise whatever they like
                    continue
        return False
    return False


@final
class Cells(Items):
    """The pictures in a column."""

    def __init__(self, table: Table, column: str) -> None:
        self.table, self.column, self.where = table, column, table.where
        self.names = [str(i) for i in range(len(table))]
        self.blocks = table.counts

    def read(self, number: int) -> bytes:
        group = self.table.group_of(number)
        cells = self.table.group(group, [self.column]).column(0)
        cell = cells[number - int(self.table.starts[group])].as_py()
        packed = _bytes(cell)
        if not packed:
            held = cell.get("path") if isinstance(cell, dict) else None
            raise ValueError(f"it holds no picture, only the name {held}" if held else "the cell is empty")
        return packed

    @property
    def nbytes(self) -> int:
        return sum(path.stat().st_size for path in self.table.paths)

    def key(self) -> Any:
        return [self.table.key(), self.column]
